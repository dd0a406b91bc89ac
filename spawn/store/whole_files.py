"""Files that are there whole or not at all, whatever happens while they are written.

Invariant: what is at the path was written to its end, flushed to the disk and renamed, and the folder was flushed
after that; only its owner can read it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spawn.store.database import StoreError


@contextmanager
def whole(path: Path, *, replace: bool) -> Iterator[Path]:
    """Give an empty file beside `path`, which becomes `path` when the block ends well and is removed otherwise.

    Raises StoreError where `path` is there and may not be replaced, and where its folder cannot be written.
    """
    if path.exists() and not replace:
        raise exists(path)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}.") from error
    try:
        yield unfinished
        flush(unfinished)
        if replace:
            unfinished.replace(path)
        else:
            _rename_to_nothing(unfinished, path)
        flush(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _rename_to_nothing(unfinished: Path, path: Path) -> None:
    """A rename would take the place of what somebody else has put there meanwhile; a link does not."""
    try:
        path.hardlink_to(unfinished)
    except FileExistsError:
        raise exists(path) from None


def exists(path: Path) -> StoreError:
    return StoreError(f"{path} exists already: name another file, or say --force.")


def flush(path: Path) -> None:
    """What was written to this file, or the names in this folder, survive a power cut from here on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
