"""Where a picture may come from, and what is said when it cannot be had."""

from __future__ import annotations

import base64
import os

import numpy as np
import pytest

import pictures
import sounds
from diptych.errors import MediaError, MediaTooLarge, UnsupportedMedia
from diptych.media.access import Access
from diptych.media.load import load
from diptych.options import Options
from diptych.types import Media, Source

PIXELS = pictures.gradient(20, 12)
PNG = pictures.encoded(PIXELS)


LOCAL = Access.local(Options())


def image(url: str | None = None, access: Access = LOCAL, **fields: object) -> Media:
    return load(Source("image", url=url, **fields), access)


def test_bytes_a_path_a_file_url_and_a_data_url_give_the_same(tmp_path):
    path = pictures.save(tmp_path / "a picture ü%20.png", PIXELS)
    text = base64.b64encode(PNG).decode()
    sources = [
        str(path),
        path.as_uri(),
        path.as_uri().replace("file://", "file://localhost"),
        path.as_uri().replace("file://", "FILE:"),
        f"data:image/png;base64,{text}",
        f"DATA:image/png;charset=x;BASE64,{text}",
        f"data:;base64,{text}",
        f"data:;base64,{text.rstrip('=')}",
        f"data:;base64,{text.replace('+', '-').replace('/', '_')}",
        f"data:;base64,{text.replace('+', '%2B').replace('=', '%3D')}",
        "data:;base64," + "\n ".join(text[i : i + 60] for i in range(0, len(text), 60)),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
    ]
    for media in [image(data=PNG), *map(image, sources)]:
        np.testing.assert_array_equal(media.data, PIXELS)
        assert media.key == image(data=PNG).key


def test_a_relative_path_is_read(tmp_path, monkeypatch):
    pictures.save(tmp_path / "here.png", PIXELS)
    monkeypatch.chdir(tmp_path)
    assert image("here.png").data.shape == PIXELS.shape


def test_the_key_is_of_the_pixels_and_not_of_the_file():
    keys = {image(data=pictures.encoded(PIXELS, kind)).key for kind in ("PNG", "BMP", "TIFF", "PPM")}
    assert len(keys) == 1
    assert len(keys.pop()) == 32


def test_other_pixels_or_the_same_in_another_shape_have_another_key():
    changed = PIXELS.copy()
    changed[3, 4, 1] ^= 1
    pictures_ = [PIXELS, changed, PIXELS.reshape(20, 12, 3), PIXELS.reshape(6, 40, 3)]
    assert len({image(data=pictures.encoded(p)).key for p in pictures_}) == 4


def test_the_pixel_limit_is_passed_on():
    with pytest.raises(MediaTooLarge, match=r"^cat is 20×12 = 240 pixels, over the limit of 239"):
        image(None, Access(max_pixels=239), data=PNG, id="cat")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("no/such/file.png", r"^there is no file no/such/file.png; check the path$"),
        ("file:///no/such/file.png", r"^there is no file file:///no/such/file.png"),
        ("/", r"^/ is a folder, and a file is needed"),
        ("file://[a/b.png", "Invalid IPv6 URL; check the address"),
        ("file://other/a.png", "a file of the machine other"),
        ("ftp://example.org/a.png", "is a ftp: URL, and a path, data:, file:, http: or https: is expected"),
        ("data:image/png;base64", "has no comma"),
        ("data:image/png;base64,abc!", "not valid base64: .*encode"),
        ("data:image/png;base64,abcde", "not valid base64"),
        ("data:image/png;base64,", "is empty"),
        ("data:text/html,<html>", "is text/html, and a picture or a recording is expected"),
        ("data:,<html>", "is an HTML page"),
        ("", "neither data nor a path nor a URL"),
        ("a\0b.png", "embedded null byte"),
        ("\ud800.png", "surrogates not allowed"),
        ("x" * 5000, r"^cannot read x{97}\.\.\.: File name too long; check the path$"),
    ],
)
def test_a_source_that_cannot_be_read_says_why_in_one_line(url, says):
    with pytest.raises(MediaError, match=says) as caught:
        image(url)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_source_without_anything_is_refused():
    with pytest.raises(MediaError, match="neither data nor a path"):
        image(None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_refused(tmp_path):
    path = pictures.save(tmp_path / "secret.png", PIXELS)
    path.chmod(0)
    with pytest.raises(MediaError, match="Permission denied"):
        image(str(path))


def test_an_endless_file_is_read_to_the_limit_only():
    with pytest.raises(MediaTooLarge, match="/dev/zero has over 10,000 bytes"):
        image("/dev/zero", Access.local(Options(media_max_bytes=10_000)))


def test_bytes_and_data_urls_over_the_limit_are_refused():
    text = base64.b64encode(PNG).decode()
    assert image(None, Access(max_bytes=len(PNG)), data=PNG)
    small = Access(max_bytes=len(PNG) - 1)
    for fields in ({"data": PNG}, {"url": f"data:image/png;base64,{text}"}, {"url": text}):
        with pytest.raises(MediaTooLarge, match=rf"^the picture.* has over {len(PNG) - 1} bytes; make it smaller"):
            image(access=small, **fields)


def test_video_is_refused_by_name():
    with pytest.raises(UnsupportedMedia, match=r"^clip.mp4 is given as video, and only images and audio are supported"):
        load(Source("video", url="clip.mp4"), LOCAL)


def test_sound_stays_the_bytes_of_its_file():
    data = sounds.wav(np.zeros(100))
    one, two = (load(Source("audio", data=d), LOCAL) for d in (data, data[:-2] + b"\x01\x00"))
    assert one.kind == "audio"
    assert one.data.tobytes() == data
    assert one.key != two.key


def test_a_picture_is_no_sound_and_the_message_calls_it_a_recording():
    with pytest.raises(UnsupportedMedia, match=r"^the recording is a PNG picture, and a recording in WAV, MP3 or FLAC"):
        load(Source("audio", data=PNG), LOCAL)


def test_sound_that_lasts_too_long_is_refused():
    data = sounds.wav(np.zeros(32000))
    assert load(Source("audio", data=data), Access(max_audio_seconds=2.0))
    with pytest.raises(MediaTooLarge, match=r"^talk lasts 2 s or more, and 1.9 s are the most"):
        load(Source("audio", data=data, id="talk"), Access(max_audio_seconds=1.9))


def test_a_server_reads_base64_and_data_urls_but_no_path(tmp_path, monkeypatch):
    pictures.save(tmp_path / "here.png", PIXELS)
    monkeypatch.chdir(tmp_path)
    server, text = Access(), base64.b64encode(PNG).decode()
    for url in (text, text.rstrip("="), f"data:image/png;base64,{text}", f"data:;base64,{text}"):
        np.testing.assert_array_equal(image(url, server).data, PIXELS)
    for url in ("here.png", str(tmp_path / "here.png"), "malformed", "C:\\here.png", "\ud800"):
        with pytest.raises(MediaError, match=r"^the picture is (not valid base64|data that begins)") as caught:
            image(url, server)
        assert caught.value.status == 400
    with pytest.raises(MediaError, match="names a file, and none may be read; set --media-path"):
        image((tmp_path / "here.png").as_uri(), server)


def test_a_server_reads_files_below_its_directory_only(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    pictures.save(tmp_path / "in" / "sub" / "a b.png", PIXELS)
    server = Access(files=tmp_path / "in")
    for url in ("file://sub/a b.png", "file:////sub//a b.png", "FILE://sub/a b.png"):
        np.testing.assert_array_equal(image(url, server).data, PIXELS)
    with pytest.raises(MediaError, match=r"^there is no file file://sub/none.png; check the name"):
        image("file://sub/none.png", server)
    with pytest.raises(MediaError, match=r"not valid base64|data that begins"):
        image("sub/a b.png", server)


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("data:text/html;base64,PGh0bWw+", 415),
        ("data:application/pdf;base64,JVBERi0=", 415),
        ("data:image/svg+xml,<svg/>", 415),
        ("data:audio/wav;base64,UklGRgAAAABXQVZF", 415),
        ("data:image/png;base64,", 400),
        ("data:image/png;base64,aGVsbG8=", 400),
        ("data:image/png;base64,iVBORw0KGgo=", 400),
        ("ftp://example.org/a.png", 400),
        ("", 400),
    ],
)
def test_what_cannot_be_used_has_its_status(url, status):
    for access in (LOCAL, Access()):
        with pytest.raises(MediaError) as caught:
            image(url, access)
        assert caught.value.status == status


def test_names_of_others_cannot_break_a_message():
    with pytest.raises(MediaError, match=r"^cat\?\?\[0m is empty") as caught:
        image(None, data=b"", id="cat\n\x1b[0m")
    with pytest.raises(MediaError) as long:
        image(None, data=b"", id="x" * 10**6)
    assert len(str(long.value)) < 300
    assert "\n" not in str(caught.value)
