"""Where a picture may come from, and what is said when it cannot be had."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

import pictures
import sounds
from diptych.errors import MediaError
from diptych.media import fetch
from diptych.media import load as loading
from diptych.media.load import load
from diptych.types import Media, Source

PIXELS = pictures.gradient(20, 12)
PNG = pictures.encoded(PIXELS)


def image(url: str | None = None, **fields: object) -> Media:
    return load(Source("image", url=url, **fields), max_pixels=10**6)


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
    with pytest.raises(MediaError, match=r"^cat is 20×12 = 240 pixels, over the limit of 239"):
        load(Source("image", data=PNG, id="cat"), max_pixels=239)


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
        ("data:text/html,<html>", "is an HTML page"),
        ("", "neither data nor a path nor a URL"),
        ("a\0b.png", "embedded null byte"),
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


def test_an_endless_file_is_read_to_the_limit_only(monkeypatch):
    monkeypatch.setattr(loading, "MAX_BYTES", 10_000)
    with pytest.raises(MediaError, match="/dev/zero has over 10,000 bytes"):
        image("/dev/zero")


def test_video_is_refused_by_name():
    with pytest.raises(MediaError, match=r"^clip.mp4 is given as video, and only images and audio are supported"):
        load(Source("video", url="clip.mp4"), max_pixels=1)


def test_sound_stays_the_bytes_of_its_file():
    data = sounds.wav(np.zeros(100))
    one, two = (load(Source("audio", data=d), max_pixels=1) for d in (data, data[:-2] + b"\x01\x00"))
    assert one.kind == "audio"
    assert one.data.tobytes() == data
    assert one.key != two.key


def test_a_picture_is_no_sound_and_the_message_calls_it_a_recording():
    with pytest.raises(MediaError, match=r"^the recording is no WAV, MP3 or FLAC file \(it begins with b'\\x89PNG'\)"):
        load(Source("audio", data=PNG), max_pixels=1)


class Site(BaseHTTPRequestHandler):
    """A few pages, good and bad."""

    def do_GET(self) -> None:
        match self.path:
            case "/good":
                self.page(200, "image/png", PNG)
            case "/octets":
                self.page(200, "application/octet-stream", PNG)
            case "/untyped":
                self.page(200, None, PNG)
            case "/html":
                self.page(200, "text/html; charset=utf-8", b"<html>sign in</html>")
            case "/lies":
                self.page(200, "image/png", b"<html>sign in</html>")
            case "/moved":
                self.page(302, "text/html", b"", Location="http://127.0.0.1/secret")
            case "/short":
                self.page(200, "image/png", PNG[:-30], length=len(PNG))
            case "/large":
                self.page(200, "image/png", b"\0" * 200_000)
            case _:
                self.page(404, "text/html", b"no")

    def page(self, status: int, kind: str | None, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {
            **headers,
            "Content-Length": str(length or len(body)),
            **({"Content-Type": kind} if kind else {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """Fetch without the proxy that the machine may have."""
    monkeypatch.setenv("no_proxy", "*")


@pytest.mark.parametrize("page", ["good", "octets", "untyped"])
def test_a_picture_is_fetched(site, page):
    np.testing.assert_array_equal(image(f"{site}/{page}").data, PIXELS)


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("html", "is text/html, and image is expected"),
        ("lies", "is an HTML page, and a picture in PNG"),
        ("moved", "redirects to http://127.0.0.1/secret, and redirects are not followed"),
        ("none", "the server answered 404 Not Found"),
        ("short", "broke off 30 bytes before its end"),
    ],
)
def test_a_bad_answer_is_told(site, page, says):
    with pytest.raises(MediaError, match=says) as caught:
        image(f"{site}/{page}")
    assert f"{site}/{page}" in str(caught.value)


def test_a_large_body_and_a_slow_one_are_cut_off(site, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_BYTES", 100_000)
    with pytest.raises(MediaError, match="has over 100,000 bytes"):
        image(f"{site}/large")
    monkeypatch.setattr(fetch, "MAX_SECONDS", -1.0)
    with pytest.raises(MediaError, match="did not arrive within"):
        image(f"{site}/good")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "http://", "http://a b/x", "https://127.0.0.1:99999/", "http://[::1/x"])
def test_an_address_that_answers_nothing_is_told(url):
    with pytest.raises(MediaError, match=r"^cannot fetch ") as caught:
        image(url)
    assert "\n" not in str(caught.value)
