"""Names of hosts → addresses that may be connected to."""

from __future__ import annotations

import queue
import socket
import threading
import time
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any, NamedTuple

from diptych.errors import MediaError

MAX_LOOKUPS = 8  # at once: one that is given up goes on until the system's resolver gives up too
# What `is_global` of one Python or another takes for public.
_SPECIAL = tuple(
    ip_network(block)
    for block in (
        "192.0.0.0/24",  # protocol assignments; 192.0.0.192 has Oracle's metadata
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.175.48.0/24",  # AS112
        "168.63.129.16/32",  # Azure's metadata, where every machine there finds it
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "3fff::/20",  # documentation
    )
)
_UNICAST = ip_network("2000::/3")  # all of IPv6 that is given out; not the mapped and translated IPv4 addresses


class Address(NamedTuple):
    """What a socket connects to: `host` is the address in numbers, and `sockaddr` has it too."""

    family: int
    host: str
    sockaddr: tuple[Any, ...]


def is_public(text: str) -> bool:
    """Whether an address in numbers is of the open network."""
    ip = ip_address(text)
    if any(ip in block for block in _SPECIAL if block.version == ip.version):
        return False
    if isinstance(ip, IPv4Address):
        return ip.is_global and not ip.is_multicast and not ip.is_reserved
    return ip in _UNICAST and ip.is_global


def resolve(host: str, port: int, deadline: float) -> list[Address]:
    """All addresses of a host, looked up once. Raises OSError where it has none, TimeoutError past the deadline (of
    `time.monotonic`)."""
    if not _slots.acquire(timeout=left(deadline)):
        raise TimeoutError
    found: queue.SimpleQueue[list[Address] | OSError | UnicodeError] = queue.SimpleQueue()
    threading.Thread(target=_look_up, args=(host, port, found), name="diptych-lookup", daemon=True).start()
    try:
        answer = found.get(timeout=left(deadline))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, list):
        return answer
    raise answer


def left(deadline: float) -> float:
    """The seconds left until a deadline. Raises TimeoutError where there are none."""
    if (seconds := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return seconds


def checked(addresses: list[Address], name: str) -> list[Address]:
    """The addresses, where all are public. Raises MediaError where one is not: which one an answer lists first is chance."""
    if all(is_public(address.host) for address in addresses):
        return addresses
    raise MediaError(f"{name} is an address of a private network, and none is fetched from; send the file's bytes")


def _look_up(host: str, port: int, found: queue.SimpleQueue[list[Address] | OSError | UnicodeError]) -> None:
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found.put([Address(family, str(sockaddr[0]), sockaddr) for family, *_, sockaddr in infos])
    except (OSError, UnicodeError) as error:
        found.put(error)
    finally:
        _slots.release()


_slots = threading.BoundedSemaphore(MAX_LOOKUPS)
