"""Networks of the tests' own: a lent machine and the world around it, joined by a cable, apart from this machine's.

Invariant: nothing here reaches this machine's network, and all of it is gone with the test.
"""

import ctypes
import itertools
import os
import selectors
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

CLONE_NEWNET: Final = 0x40000000
FOLDER: Final = Path("/var/run/netns")
_libc: Final = ctypes.CDLL(None, use_errno=True)
_made: Final = itertools.count()
"""How many pairs of networks this process has made, for their names."""

HOST: Final = "192.168.77.2"
"""The lent machine, on the LAN of its owner."""
GATEWAY: Final = "192.168.77.1"
RESOLVER: Final = "192.168.77.53"
"""Where the owner's machines ask for names: a private address, as in most homes."""
NEIGHBOUR: Final = "192.168.77.9"
"""Another machine of the owner's."""
METADATA: Final = "169.254.169.254"
CARRIER: Final = "100.64.0.9"
"""Something in the network of the owner's carrier."""
RESERVED: Final = "240.0.0.9"
"""Of a block that nobody was given (RFC 1112 section 4); Linux takes it for any other address."""
INTERNET: Final = "203.0.113.10"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


def _enter(path: Path) -> None:
    with path.open("rb") as namespace:
        if _libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {path}")


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Everything that this thread opens, and the threads and processes that it starts, is in that network."""
    here = Path(f"/proc/self/task/{threading.get_native_id()}/ns/net")
    with here.open("rb") as before:
        _enter(FOLDER / name)
        try:
            yield
        finally:
            if _libc.setns(before.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns back")


class World:
    """`host` and `outside` are names of network namespaces; listeners stand where a tenant must not come, and may."""

    def __init__(self, label: str) -> None:
        self.host, self.outside = f"{label}-host", f"{label}-world"
        self._selector = selectors.DefaultSelector()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="listeners")
        self.met: list[str] = []
        """Which listeners were reached, in order; a test that looks clears it first."""

    def open(self) -> None:
        cable = f"sp{os.getpid()}"
        for name in (self.host, self.outside):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip(
            "-n",
            self.host,
            "link",
            "add",
            f"{cable}a",
            "type",
            "veth",
            "peer",
            "name",
            "up0",
            "netns",
            self.outside,
        )
        _ip("-n", self.host, "link", "set", f"{cable}a", "name", "up0")
        _ip("-n", self.host, "address", "add", f"{HOST}/24", "dev", "up0")
        for address in (GATEWAY, RESOLVER, NEIGHBOUR):
            _ip("-n", self.outside, "address", "add", f"{address}/24", "dev", "up0")
        for address in (METADATA, CARRIER, RESERVED, INTERNET):
            _ip("-n", self.outside, "address", "add", f"{address}/32", "dev", "lo")
        for name in (self.host, self.outside):
            _ip("-n", name, "link", "set", "up0", "up")
        _ip("-n", self.host, "route", "add", "default", "via", GATEWAY)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]  # every one of them is a socket
        self._selector.close()
        for name in (self.host, self.outside):
            if (FOLDER / name).exists():
                _ip("netns", "delete", name)

    def listen(self, where: str, address: str, port: int, *, udp: bool = False) -> None:
        """Stand a service up that answers `reached <address>:<port>`; `where` is one of the two networks."""
        with inside(where):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        if not udp:
            listener.listen(16)
        self._selector.register(listener, selectors.EVENT_READ, f"{address}:{port}")

    def _serve(self) -> None:
        while not self._stopped.is_set():
            for key, _ in self._selector.select(timeout=0.2):
                listener = key.fileobj
                assert isinstance(listener, socket.socket)
                self.met.append(key.data)
                answer = f"reached {key.data}\n".encode()
                if listener.type == socket.SOCK_DGRAM:
                    asked, sender = listener.recvfrom(2048)
                    listener.sendto(_resolved(asked) if key.data.endswith(":53") else answer, sender)
                    continue
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(answer)


def _resolved(question: bytes) -> bytes:
    """A DNS answer that says `INTERNET` to whatever was asked (RFC 1035 section 4.1)."""
    header = question[:2] + b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00"
    body = question[12:]
    asked = body[: body.index(b"\x00") + 5]
    return header + asked + b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04" + socket.inet_aton(INTERNET)


def sweep_dead() -> None:
    """Remove the networks of runs that were killed; each is named after its process."""
    for path in FOLDER.glob("spawn-*-*") if FOLDER.exists() else ():
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            _ip("netns", "delete", path.name)


@contextmanager
def world() -> Iterator[World]:
    """Both networks, joined; gone afterwards."""
    sweep_dead()
    made = World(f"spawn-{os.getpid()}-{next(_made)}")
    with ExitStack() as stack:
        stack.callback(made.close)
        made.open()
        yield made
