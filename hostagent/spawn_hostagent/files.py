"""Files that a crash must not tear, and folders that nobody else may look into.

Invariant: a file is wholly the old one or wholly the new one, and never readable by another user for a moment.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spawn_hostagent.failures import Failure

_HAS_MODES = os.name == "posix"
_TRY_AGAIN_S = 0.1


def make_private_folder(path: Path) -> None:
    """Create the folder, 0700, or close one that is there. Raises Failure where that is not ours to do."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _HAS_MODES and path.stat().st_mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise Failure(
            f"{path} cannot be made: {reason(error)}. Run this as root, or name another folder as state_dir."
        ) from error


def write_private(path: Path, content: bytes) -> None:
    """Replace the file, 0600, and see it on the disk. Raises Failure."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        _sync_folder(path.parent)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise Failure(f"{path} cannot be written: {reason(error)}.") from error


def read_private(path: Path) -> bytes | None:
    """What is in it, None where there is no file. Raises Failure for one that others may read or nobody can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Failure(f"{path} cannot be read: {reason(error)}. Run this as root or as its owner.") from error
    with os.fdopen(descriptor, "rb") as file:
        if _HAS_MODES and os.fstat(file.fileno()).st_mode & 0o077:
            raise Failure(f"{path} can be read by other users of this machine: run `chmod 600 {path}`.")
        return file.read()


@contextmanager
def held(path: Path, patience_s: float) -> Iterator[None]:
    """Be the only process in here: waits for another one, whose lock dies with it. Blocks. Raises Failure."""
    make_private_folder(path.parent)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise Failure(
            f"{path} cannot be opened: {reason(error)}. Run this as root or as its owner."
        ) from error
    try:
        end = time.monotonic() + patience_s
        while not _locked(descriptor):
            if time.monotonic() > end:
                raise Failure(
                    f"another spawn-host has held {path} for {patience_s:.0f} s: see what it waits for."
                )
            time.sleep(_TRY_AGAIN_S)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Whether the lock is ours now. Windows, which lends nothing, has no such lock, and nobody to wait for."""
    if sys.platform == "win32":
        return True
    import fcntl  # noqa: PLC0415 - there is none on Windows

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable; Windows has no such call for folders."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
