"""Every kind of picture people hand in, against Pillow and transformers, and every kind that is no picture."""

from __future__ import annotations

import io
import struct
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

import pictures
from diptych.errors import MediaError, UnsupportedMedia
from diptych.media import rgb as strips
from diptych.media.image import decode, resize

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def read(data: bytes, max_pixels: int = 10**6) -> np.ndarray:
    return decode(data, max_pixels=max_pixels, name="photo.x")


def saved(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (31, 17), (64, 128)])
def test_a_lossless_format_gives_back_every_pixel(kind, width, height):
    pixels = pictures.noise(width, height, seed=width)
    settings = {"lossless": True} if kind == "WEBP" else {}
    decoded = read(pictures.encoded(pixels, kind, **settings))
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_a_lossy_format_comes_close(kind):
    pixels = pictures.gradient(64, 48)
    assert np.abs(read(pictures.encoded(pixels, kind, quality=95)).astype(int) - pixels).mean() < 4


def modes() -> dict[str, bytes]:
    """One file for each way of storing pixels whose reading transformers settles."""
    rgb = Image.fromarray(pictures.gradient(24, 16, seed=3))
    seen = rgb.convert("RGBA")
    seen.putalpha(Image.fromarray(pictures.gradient(24, 16, seed=4)[..., 0]))
    palette = rgb.quantize(16)
    holes = rgb.quantize(16)
    holes.info["transparency"] = bytes(range(0, 256, 16))
    return {
        "palette": saved(palette),
        "palette with one hole": saved(palette, transparency=3),
        "palette with alpha": saved(holes, transparency=bytes(range(0, 256, 16))),
        "grey": saved(rgb.convert("L")),
        "grey with alpha": saved(seen.convert("LA")),
        "alpha": saved(seen),
        "alpha in WebP": saved(seen, "WEBP", lossless=True),
        "colour key": saved(rgb, transparency=rgb.getpixel((3, 3))),
        "one bit": saved(rgb.convert("1")),
        "one bit TIFF": saved(rgb.convert("1"), "TIFF", compression="group4"),
        "CMYK JPEG": saved(rgb.convert("CMYK"), "JPEG"),
        "CMYK TIFF": saved(rgb.convert("CMYK"), "TIFF"),
        "YCbCr TIFF": saved(rgb.convert("YCbCr"), "TIFF"),
        "progressive JPEG": saved(rgb, "JPEG", progressive=True),
        "grey JPEG": saved(rgb.convert("L"), "JPEG"),
        "GIF": saved(palette, "GIF"),
        "GIF with a hole": saved(palette, "GIF", transparency=3),
        "LZW TIFF": saved(rgb, "TIFF", compression="tiff_lzw"),
    }


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(modes()))
def test_every_mode_reads_as_in_transformers(name):
    from transformers.image_transforms import convert_to_rgb

    data = modes()[name]
    np.testing.assert_array_equal(read(data), convert_to_rgb(Image.open(io.BytesIO(data)), return_numpy=True))


@pytest.mark.parametrize("name", [*sorted(modes()), "grey of 16 bits", "floats"])
def test_a_picture_read_in_many_strips_is_the_same(name, monkeypatch):
    ramp = np.linspace(0, 1, 24 * 16).reshape(16, 24)
    more = {"grey of 16 bits": (ramp * 65535).astype(np.uint16), "floats": ramp.astype(np.float32) * 300}
    data = modes().get(name) or saved(Image.fromarray(more[name]), "TIFF")
    whole = read(data)
    monkeypatch.setattr(strips, "STRIP", 24 * 3 + 1)
    np.testing.assert_array_equal(read(data), whole)


@pytest.mark.parity
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_turned_picture_is_put_upright_as_by_the_transformers_loader(kind, orientation, tmp_path):
    from transformers.image_utils import load_image

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned"
    path.write_bytes(pictures.encoded(pictures.gradient(40, 24, seed=1), kind, exif=exif))
    np.testing.assert_array_equal(read(path.read_bytes()), np.asarray(load_image(str(path))))


def test_a_picture_turned_on_its_side_has_its_sides_swapped():
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = pictures.noise(30, 20)
    np.testing.assert_array_equal(read(pictures.encoded(pixels, "PNG", exif=exif)), np.rot90(pixels, -1))


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_means_nothing_leaves_the_picture_as_it_is(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = pictures.noise(30, 20)
    np.testing.assert_array_equal(read(pictures.encoded(pixels, "PNG", exif=exif)), pixels)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\0\x09" + b"\x01\x12" * 8]
)
def test_damaged_exif_data_leaves_the_picture_as_it_is_and_warns_nobody(exif):
    data = pictures.encoded(pictures.gradient(16, 8), "JPEG", exif=exif)
    assert read(data).shape == (8, 16, 3)


def test_transparent_ink_stands_on_white():
    ink = Image.new("RGBA", (9, 9), (0, 0, 0, 0))
    ink.putpixel((4, 4), (0, 0, 0, 255))
    ink.putpixel((5, 4), (0, 0, 0, 128))
    decoded = read(saved(ink))
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert decoded[4, 4].tolist() == [0, 0, 0]
    assert decoded[4, 5].tolist() == [127, 127, 127]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("top", [255, 4095, 65535])
def test_sixteen_bit_grey_keeps_its_high_byte(kind, top):
    values = np.linspace(0, top, 32 * 8).astype(np.uint16).reshape(8, 32)
    data = b"P5 32 8 65535\n" + values.astype(">u2").tobytes() if kind == "PPM" else saved(Image.fromarray(values), kind)
    decoded = read(data)
    np.testing.assert_array_equal(decoded, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, -1))


def test_sixteen_bit_grey_and_colour_agree():
    """Colour is scaled by Pillow, grey by us."""
    values = np.random.default_rng(0).integers(0, 65536, (8, 32), np.uint16)
    head = struct.pack(">IIBBBBB", 32, 8, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + np.repeat(row[:, None], 3, 1).astype(">u2").tobytes() for row in values)
    colour = (
        b"\x89PNG\r\n\x1a\n"
        + pictures.png_chunk(b"IHDR", head)
        + pictures.png_chunk(b"IDAT", zlib.compress(rows))
        + pictures.png_chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(read(colour), read(saved(Image.fromarray(values))))


@pytest.mark.parametrize(
    ("dtype", "white"), [("i4", 255), ("i4", 65535), ("i4", 2**31 - 1), ("f4", 1), ("f4", 255), ("f4", 65535)]
)
def test_thirty_two_bit_grey_is_scaled_to_the_range_it_uses(dtype, white):
    ramp = np.linspace(0, 1, 64).reshape(4, 16)
    decoded = read(saved(Image.fromarray((ramp * white).astype(dtype)), "TIFF"))
    full = 2**32 - 1 if white == 2**31 - 1 else white  # of 32 bits, white is the unsigned maximum
    np.testing.assert_allclose(decoded[..., 0], ramp * 255 * white / full, atol=1.01)


def test_floats_that_are_no_numbers_do_no_harm():
    values = np.array([[np.nan, np.inf, -np.inf, 0.5, -1.0]], np.float32)
    assert read(saved(Image.fromarray(values), "TIFF"))[0, 1, 0] == 255


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (20, 10), colour) for colour in (RED, GREEN, BLUE)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {}))
    assert np.abs(read(data).astype(int) - RED).max() < 8


def test_of_a_jpeg_with_several_pictures_the_first_is_taken():
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN)]
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(read(data).astype(int) - RED).max() < 8
    broken = data.replace(b"MPF\0", b"MPF\0\xff", 1)
    assert read(broken).shape == (16, 16, 3)  # Pillow warns about it, and nobody hears


@pytest.mark.parametrize(("width", "height"), [(1, 5000), (5000, 1)])
def test_a_picture_of_one_line_is_read(width, height):
    pixels = pictures.noise(width, height)
    np.testing.assert_array_equal(read(pictures.encoded(pixels)), pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("part", [0.01, 0.1, 0.5, 0.9])
def test_a_truncated_picture_is_refused_in_one_line(kind, part):
    data = pictures.encoded(pictures.noise(64, 64), kind)
    with pytest.raises(MediaError, match=r"^photo.x is [^\n]+(get it again|give another)$"):
        read(data[: max(int(len(data) * part), 2)])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
@pytest.mark.parametrize("seed", range(20))
def test_damaged_bytes_give_a_picture_or_one_clear_error(kind, seed):
    data = bytearray(pictures.encoded(pictures.noise(24, 24), kind))
    rng = np.random.default_rng(seed)
    for i in rng.integers(12, len(data), 12):
        data[i] = rng.integers(256)
    said = "photo.x "
    try:
        assert read(bytes(data)).shape[2] == 3
    except MediaError as error:
        said = str(error)
    assert said.startswith("photo.x ")
    assert "\n" not in said


def test_a_damaged_checksum_is_noticed():
    data = bytearray(pictures.encoded(pictures.noise(24, 24)))
    data[200] ^= 1
    with pytest.raises(MediaError, match=r"is a PNG picture that cannot be decoded: .*damaged"):
        read(bytes(data))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><body>404", "an HTML page"),
        (b"\xef\xbb\xbf \n<HTML lang=en>", "an HTML page"),
        (b"<!-- saved --><html>", "an HTML page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"<svg/>", "an SVG drawing"),
        (b'<?xml version="1.0"?><Error>', "an XML document"),
        (b'{"error": "not found"}', "JSON text"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "a PostScript file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC picture"),
        (b"\xff\x0a\xfa\x1f", "a JPEG XL picture"),
        (b"8BPS\0\1", "a Photoshop picture"),
        (b"\0\0\1\0\1\0", "a Windows icon"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"\0\0\0\x18ftypisom", "a video"),
        (b"RIFF\0\0\0\0WAVEfmt ", "audio"),
        (b"GGUF\3\0\0\0", "a GGUF model"),
        (b"hello world", "data that begins with b'hello wo'"),
        (b"\0" * 100, "data that begins with"),
    ],
)
def test_what_is_no_picture_is_told_apart(data, found):
    with pytest.raises(MediaError, match=r"^photo.x is .*JPEG.*") as caught:
        read(data)
    assert found in str(caught.value)
    assert caught.value.status == (400 if "data that" in found or "empty" in found else 415)
    assert isinstance(caught.value, UnsupportedMedia) == (caught.value.status == 415)


def test_a_page_of_comments_is_told_apart_at_once():
    """Each could end where any of the next ones does: looked at in all these ways, it would take for ever."""
    start = time.perf_counter()
    for data in (b"<!---->" * 146, b"<?xml ?>" + b"<!---->" * 145, b"<!--" * 256, b"<!---->" * 100 + b"<svg/>"):
        with pytest.raises(MediaError):
            read(data)
    assert time.perf_counter() - start < 0.5


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(MediaError, match=r"^photo.x is"):
        read(pictures.png_header(0, 5))
    with pytest.raises(MediaError, match=r"^photo.x is"):
        read(b"P6 0 0 255\n")


def test_a_tiff_that_pillow_warns_about_warns_nobody():
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[270] = "said"
    data = bytearray(saved(Image.fromarray(pictures.gradient(8, 8)), "TIFF", tiffinfo=info))
    where = data.index(struct.pack("<HH", 270, 2))
    data[where + 4 : where + 12] = struct.pack("<II", 2**20, 8)  # a text longer than the file
    with pytest.warns(UserWarning, match="larger than file"):
        Image.open(io.BytesIO(bytes(data))).load()
    assert read(bytes(data)).shape == (8, 8, 3)


def test_threads_decode_side_by_side_and_leave_the_warnings_as_they_were():
    files = [pictures.encoded(pictures.noise(64, 64, seed), kind) for seed, kind in enumerate(["PNG", "TIFF", "BMP", "PPM"] * 4)]
    before, failed = list(warnings.filters), []

    def work(seed: int) -> None:
        for _ in range(5):
            if not np.array_equal(read(files[seed]), pictures.noise(64, 64, seed)):
                failed.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert list(warnings.filters) == before


SIZES = [(28, 28), (57, 31), (200, 3), (7, 300), (128, 96)]


@pytest.mark.parity
@pytest.mark.parametrize("filter", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("given", SIZES)
@pytest.mark.parametrize("wanted", [(28, 28), (56, 84), (140, 28), (333, 77)])
def test_resizing_equals_transformers_to_the_bit(filter, given, wanted):
    from PIL.Image import Resampling
    from transformers.image_transforms import resize as theirs

    for pixels in (pictures.noise(*given, seed=1), pictures.gradient(*given), pictures.text(*given)):
        expected = theirs(
            pixels.transpose(2, 0, 1), wanted[::-1], resample=Resampling[filter.upper()], input_data_format="channels_first"
        )
        np.testing.assert_array_equal(resize(pixels, *wanted, filter), np.moveaxis(expected, 0, -1))


@pytest.mark.parity
def test_filters_differ():
    pixels = pictures.noise(64, 64)
    results = [resize(pixels, 40, 40, name) for name in ("bicubic", "bilinear", "lanczos")]
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
