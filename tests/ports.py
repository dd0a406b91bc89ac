"""Ports of this machine for tests that must name one before anything listens on it.

Invariant: a process gives none out twice, and none is of those that the system gives to connections that go out, so
that what a test was given is still free when the test listens on it.
"""

import secrets
import socket
from typing import Final

# Below what Linux and macOS take for outgoing connections, and above what services are known by.
_FIRST: Final = 20_000
_COUNT: Final = 12_000
_TRIES: Final = 1_000

_given: set[int] = set()


def free_port() -> int:
    """A port on which nobody listens now."""
    return _free(1)


def free_address() -> str:
    """The same on loopback, as settings have it: `host:port`."""
    return f"127.0.0.1:{free_port()}"


def free_range(count: int) -> str:
    """So many of them in a row, as settings have them: `first-last`."""
    first = _free(count)
    return f"{first}-{first + count - 1}"


def _free(count: int) -> int:
    for _ in range(_TRIES):
        first = _FIRST + secrets.randbelow(_COUNT - count)
        wanted = range(first, first + count)
        if _given.isdisjoint(wanted) and all(_is_free(port) for port in wanted):
            _given.update(wanted)
            return first
    raise AssertionError(f"no {count} ports in a row are free from {_FIRST} to {_FIRST + _COUNT}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
