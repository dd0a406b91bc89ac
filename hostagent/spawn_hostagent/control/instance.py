"""One daemon for each state folder and each Docker: its locks, its pid file, and what systemd wants to hear.

Invariant: the locks are the operating system's and die with the process; the pid file only tells others whom to signal.
"""

import contextlib
import fcntl
import logging
import os
import socket
import struct
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final

LOCK_FILE: Final = "spawn-host.lock"
PID_FILE: Final = "spawn-host.pid"

_log: Final = logging.getLogger(__name__)


class CannotStart(Exception):
    """The daemon cannot run; the message says why and what to do."""


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only daemon of this state folder, and say who we are in its pid file. Raises CannotStart."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise CannotStart(
            f"{folder} cannot be used: {error.strerror}. Run as its owner, or set state_dir."
        ) from error
    try:
        _take(lock, folder)
        try:
            write_atomically(folder / PID_FILE, f"{os.getpid()}\n".encode())
        except OSError as error:
            # A full disk must not keep the daemon from stopping whoever fills it.
            _log.error("%s cannot be written, and `spawn-host stop` not find us: %s", PID_FILE, error)
        try:
            yield
        finally:
            (folder / PID_FILE).unlink(missing_ok=True)
    finally:
        os.close(lock)


@contextlib.contextmanager
def alone_with(docker: str) -> Iterator[None]:
    """Be the only daemon that runs tenants on this Docker, whatever its state folder. Raises CannotStart.

    Two with copies of one folder would stop and start each other's tenants as the leases that each knows of end. The
    lock is an abstract socket (unix(7)): there is one of a name in each network, as there is one firewall table.
    """
    if sys.platform != "linux":
        yield
        return
    place = os.path.realpath(docker.removeprefix("unix://")) if docker.startswith("unix://") else docker
    name = f"\0spawn-host-{sha256(place.encode()).hexdigest()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as lock:
        try:
            lock.bind(name)
        except OSError as error:
            raise CannotStart(
                f"Another spawn-host{_holder(name)} already runs tenants on {docker}. Stop it first; one machine needs "
                "one, and a copied state folder is of no use on it."
            ) from error
        lock.listen(1)
        yield


def write_atomically(path: Path, content: bytes) -> None:
    """Put this in the file's place at once, for its owner's eyes."""
    unfinished = path.with_name(f".{path.name}.new")
    handle = os.open(unfinished, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    unfinished.replace(path)


def notify(words: str) -> None:
    """Tell systemd, if it started us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(address)
        sender.sendall(words.encode())


def _holder(name: str) -> str:
    """Which process listens there, in words; nothing where it is just ending."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as knock:
        knock.setblocking(False)
        try:
            knock.connect(name)
            told = knock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return ""
    pid, _, _ = struct.unpack("3i", told)
    return f" (process {pid})"


def _take(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        with contextlib.suppress(OSError):
            pid = (folder / PID_FILE).read_text().strip()
            raise CannotStart(
                f"Another spawn-host (process {pid}) already uses {folder}. `spawn-host status` shows it."
            ) from error
        raise CannotStart(
            f"Another spawn-host already uses {folder}. `spawn-host status` shows it."
        ) from error
