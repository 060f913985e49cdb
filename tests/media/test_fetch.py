"""What is fetched over HTTP, what is refused, and that a server's neighbours are out of reach."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import website
from website import PNG

from diptych.errors import MediaError, MediaTooLarge, UnsupportedMedia
from diptych.media import address, line
from diptych.media.access import Access
from diptych.media.fetch import fetch
from diptych.options import Options
from diptych.types import MediaKind

HERE = Access(allow_private=True)
PUBLIC = Access()
Answer = list[tuple[object, ...]]


def get(url: str, access: Access = HERE, kind: MediaKind = "image") -> bytes:
    return fetch(url, url, kind, access)


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    with website.site() as server:
        yield server


@pytest.fixture(scope="module")
def home(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy but those that a test names."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A function that gives a name other addresses at each look-up, and the hosts looked up."""
    looked: list[str] = []

    def answer(*answers: list[str]) -> list[str]:
        def stub(host: str, port: int, *_args: object, **_kinds: object) -> Answer:
            looked.append(host)
            found = answers[min(len(looked), len(answers)) - 1]
            return [
                (socket.AF_INET6, 1, 6, "", (a, port, 0, 0)) if ":" in a else (socket.AF_INET, 1, 6, "", (a, port)) for a in found
            ]

        monkeypatch.setattr(socket, "getaddrinfo", stub)
        return looked

    return answer


@pytest.mark.parametrize("page", ["good", "octets", "untyped", "chunks", "good?a= b&c#part", "bär x"])
def test_a_picture_is_fetched(home: str, page: str) -> None:
    assert get(f"{home}/{page}") == PNG


def test_it_is_asked_for_plainly(home: str, server: ThreadingHTTPServer) -> None:
    get(f"{home}/good")
    path, headers = server.asked[-1]
    assert path == "/good"
    assert headers == {
        "Host": home.removeprefix("http://"),
        "User-Agent": "diptych",
        "Accept": "image/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }


@pytest.mark.parametrize(
    ("page", "status", "says"),
    [
        ("html", 415, "is text/html, and image is expected"),
        ("packed", 415, "comes packed as gzip"),
        ("moved", 400, "redirects to http://127.0.0.1/secret, and redirects are not followed"),
        ("moved-to-lines", 400, r"redirects to http://a/\?\? bx{70,90}\.\.\., and"),
        ("none", 400, "the server answered 404 Not Found"),
        ("short", 400, "broke off 30 bytes before its end"),
        ("heads", 400, "its answer is longer than it may be"),
    ],
)
def test_a_bad_answer_is_told(home: str, page: str, status: int, says: str) -> None:
    with pytest.raises(MediaError, match=says) as caught:
        get(f"{home}/{page}")
    assert f"{home}/{page}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status == status


def test_sound_is_no_picture_nor_the_other_way_round(home: str) -> None:
    with pytest.raises(UnsupportedMedia, match="is image/png, and audio is expected"):
        get(f"{home}/good", kind="audio")


@pytest.mark.parametrize("page", ["large", "large-chunks"])
def test_a_large_body_is_cut_off(home: str, page: str) -> None:
    assert len(get(f"{home}/{page}", replace(HERE, max_bytes=200_000))) == 200_000
    with pytest.raises(MediaTooLarge, match="has over 199,999 bytes") as caught:
        get(f"{home}/{page}", replace(HERE, max_bytes=199_999))
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b""),
    ],
)
def test_a_server_that_drips_is_left_at_the_deadline(head: bytes, drop: bytes) -> None:
    access = replace(HERE, max_seconds=0.4)

    def refused() -> None:
        with pytest.raises(MediaError, match=r"did not arrive within 0.4 s"):
            get(f"http://127.0.0.1:{port}/", access)

    with website.dripping(head, 0.02, drop) as port:
        assert 0.35 < website.seconds(refused) < 0.8


def test_an_answer_without_end_is_cut_off() -> None:
    more = b"HTTP/1.1 100 Continue\r\n\r\n"
    with website.dripping(more, 0, more * 1000) as port, pytest.raises(MediaError, match="longer than it may be"):
        get(f"http://127.0.0.1:{port}/")


def test_a_look_up_that_hangs_is_left_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: ended.wait(20) and [])

    def refused() -> None:
        with pytest.raises(MediaError, match=r"did not arrive within 0.1 s"):
            get("http://slow.example/", replace(HERE, max_seconds=0.1))

    try:
        for _ in range(address.MAX_LOOKUPS + 2):  # the last ones wait for a thread in vain
            assert website.seconds(refused) < 0.5
        assert sum(t.name == "diptych-lookup" for t in threading.enumerate()) == address.MAX_LOOKUPS
    finally:
        ended.set()
    while any(t.name == "diptych-lookup" for t in threading.enumerate()):
        time.sleep(0.01)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/x",
        "http://",
        "http://a b/x",
        "https://127.0.0.1:99999/",
        "http://[::1/x",
        "http://no.such.host.invalid/",
        "http://me:secret@127.0.0.1/",
        "http://public.example\\@127.0.0.1/",
        "http://[fe80::1%25lo]/",
        "http://" + "a" * 300 + ".example/",
        "http://\ud800/",
        "http://a/\ud800",
    ],
)
def test_an_address_that_cannot_be_asked_is_told(url: str) -> None:
    for access in (HERE, PUBLIC):
        with pytest.raises(MediaError) as caught:
            get(url, access)
        assert caught.value.status == 400
        assert "\n" not in str(caught.value)


def test_the_address_that_was_checked_is_the_one_connected_to(
    names: Callable[..., list[str]], server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public when it is checked and private when it is connected to."""
    looked = names(["93.184.215.14"], ["127.0.0.1"])
    tried: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _self, to: tried.append(to) or (_ for _ in ()).throw(OSError("no way")))
    with pytest.raises(MediaError, match="no way"):
        get("http://rebind.example/good", PUBLIC)
    assert looked == ["rebind.example"]
    assert tried == [("93.184.215.14", 80)]


def test_one_private_address_among_public_ones_is_enough_to_refuse(names: Callable[..., list[str]]) -> None:
    names(["93.184.215.14", "10.0.0.1"])
    with pytest.raises(MediaError, match=r"^http://both.example/ is an address of a private network.*bytes$") as caught:
        get("http://both.example/", PUBLIC)
    assert "10.0" not in str(caught.value)


PRIVATE = (
    "0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.8.8.8", "168.63.129.16",
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1",
    "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1",
    "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1",
    "fe80::1%1", "fec0::1", "ff02::1",
)  # fmt: skip
PUBLIC_ONES = ("1.1.1.1", "8.8.8.8", "93.184.215.14", "172.32.0.1", "100.128.0.1", "2606:4700::1", "2a00::1")


@pytest.mark.parametrize("private", PRIVATE)
def test_private_addresses_are_refused(names: Callable[..., list[str]], private: str) -> None:
    assert not address.is_public(private)
    names([private])
    with pytest.raises(MediaError, match="is an address of a private network"):
        get("http://name.example/", PUBLIC)


@pytest.mark.parametrize(
    "public", ["1.1.1.1", "8.8.8.8", "93.184.215.14", "172.32.0.1", "100.128.0.1", "2606:4700::1", "2a00::1"]
)
def test_public_addresses_are_let_through(public: str) -> None:
    assert address.is_public(public)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "LOCALHOST", "localhost.", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::1]",
     "[::ffff:7f00:1]", "①②⑦.0.0.1", "0"],
)  # fmt: skip
def test_this_machine_is_refused_however_it_is_spelt(host: str) -> None:
    with pytest.raises(MediaError) as caught:
        get(f"http://{host}/", PUBLIC)
    assert any(said in str(caught.value) for said in ("private network", "cannot fetch"))
    assert "refused" not in str(caught.value)  # nobody was asked


def test_unusual_ports_are_refused_unless_allowed(names: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    names(["93.184.215.14"])
    tried: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _self, to: tried.append(to) or (_ for _ in ()).throw(OSError("no way")))
    for url in ("http://a.example:22/", "https://a.example:8443/"):
        with pytest.raises(MediaError, match="and only 80 and 443 are fetched from"):
            get(url, PUBLIC)
    assert not tried
    for url, access in (
        ("http://a.example:443/", PUBLIC),
        ("http://a.example:8443/", replace(PUBLIC, allowed_hosts=("A.example:8443",))),
        ("http://a.example:80/", replace(PUBLIC, allowed_hosts=("a.example:80",))),
        ("http://A.Example./", replace(PUBLIC, allowed_hosts=("a.example",))),
    ):
        with pytest.raises(MediaError, match="no way"):
            get(url, access)
    assert len(tried) == 4


def test_only_allowed_hosts_are_fetched_from_where_some_are_named(names: Callable[..., list[str]], home: str) -> None:
    access = replace(PUBLIC, allowed_hosts=("good.example",))
    for url in ("http://evil.example/", "http://good.example.evil.example/", "http://xgood.example/"):
        with pytest.raises(MediaError, match="is of a host that is not allowed"):
            get(url, access)
    with pytest.raises(MediaError, match="only 80 and 443"):
        get("http://good.example:8080/", access)
    names(["127.0.0.1"])
    with pytest.raises(MediaError, match="private network"):  # allowed by its name only
        get("http://good.example/", access)


def test_none_is_fetched_where_none_may_be() -> None:
    with pytest.raises(MediaError, match="none is fetched from; send the file's bytes as a data URL"):
        get("https://example.org/a.png", Access(remote=False))


def test_the_next_address_is_tried(names: Callable[..., list[str]], server: ThreadingHTTPServer) -> None:
    names(["127.0.0.2", "127.0.0.1"])
    assert get(f"http://two.example:{server.server_port}/good") == PNG


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    named = ["-subj", "/CN=good.example", "-addext", "subjectAltName=DNS:good.example,IP:127.0.0.1"]
    subprocess.run([*made, *named, "-keyout", folder / "both.pem", "-out", folder / "cert.pem"], check=True, capture_output=True)
    with (folder / "both.pem").open("a") as both:
        both.write((folder / "cert.pem").read_text())
    return folder / "both.pem"


@pytest.fixture
def secure(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """The site over TLS, as good.example, which is trusted."""
    trusted = ssl.create_default_context(cafile=certificate)
    monkeypatch.setattr(line, "_tls", lambda: trusted)
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(certificate)
    with website.site(served) as server:
        yield server


def test_tls_verifies_the_name_and_not_the_address(names: Callable[..., list[str]], secure: ThreadingHTTPServer) -> None:
    names(["127.0.0.1"])
    assert get(f"https://good.example:{secure.server_port}/good") == PNG
    with pytest.raises(MediaError, match=r"certificate verify failed: Hostname mismatch"):
        get(f"https://other.example:{secure.server_port}/good")


def test_a_handshake_that_hangs_is_left_at_the_deadline() -> None:
    with website.dripping(b"", 0.05, b"\x16") as port, pytest.raises(MediaError, match=r"did not arrive|cannot fetch"):
        assert website.seconds(lambda: get(f"https://127.0.0.1:{port}/", replace(HERE, max_seconds=0.3))) < 1


def test_the_command_line_goes_through_the_proxy_of_the_environment_and_a_server_does_not(
    server: ThreadingHTTPServer, secure: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = Access.local(Options())
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://me:s%40cret@127.0.0.1:{server.server_port}")
    assert get("http://elsewhere.example/good", local) == PNG
    path, headers = server.asked[-1]
    assert (path, headers["Proxy-Authorization"]) == ("http://elsewhere.example/good", "Basic bWU6c0BjcmV0")
    assert get(f"https://127.0.0.1:{secure.server_port}/good", local) == PNG
    assert server.asked[-1][0] == f"127.0.0.1:{secure.server_port}"
    n = len(server.asked)
    with pytest.raises(MediaError, match="cannot fetch"):
        get("http://elsewhere.invalid/good", HERE)
    assert len(server.asked) == n


def test_proxies_that_cannot_be_spoken_to_are_told(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    local = Access.local(Options())
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(MediaError, match="http_proxy is a socks5: address"):
        get("http://elsewhere.example/good", local)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert get(f"http://127.0.0.1:{server.server_port}/good", local) == PNG


@pytest.mark.parametrize("user", ["me@", "me:secret@", "@", "127.0.0.1\\@"])
def test_an_address_with_a_user_is_refused(home: str, user: str) -> None:
    with pytest.raises(MediaError, match="it names a user; check the address"):
        get(f"{home.replace('://', f'://{user}')}/good")
