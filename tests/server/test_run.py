"""How the server listens."""

from __future__ import annotations

import socket

import pytest

from diptych.errors import InputError
from diptych.options import ServerOptions
from diptych.server import run


def test_connections_send_at_once() -> None:
    """Otherwise a body waits up to 40 ms behind its headers for the client's acknowledgement."""
    with run.bind(ServerOptions(port=0)) as listening:
        listening.setblocking(True)
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_that_is_taken_is_told() -> None:
    with run.bind(ServerOptions(port=0)) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port}: .*; choose another --host or --port"):
            run.bind(ServerOptions(port=port))
