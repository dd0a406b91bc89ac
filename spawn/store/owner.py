"""Who owns a database file: one process at a time, on a disk whose locks and flushes are real.

SQLite before 3.51.3 can corrupt a database that two connections write or checkpoint at once, and group commit
needs a single queue. Invariant: whoever holds an `Owner` is the only writer; a refusal creates and changes nothing.
"""

import fcntl
import os
import re
from pathlib import Path, PurePath
from typing import Final, Self

from spawn.store.database import DatabaseBusy, StoreError, UnsuitableFilesystem

MOUNTINFO: Final = Path("/proc/self/mountinfo")

# 9p, virtiofs and overlay stay allowed: they are the local disks of virtual machines and containers.
_NETWORK_FILESYSTEM: Final = re.compile(
    r"nfs\d*|cifs|smb\d*|smbfs|(fuse\.)?(sshfs|ceph|glusterfs)|lustre|afs|(fuse\.)?davfs2?"
)
_OCTAL_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


def filesystem_type(mountinfo: str, path: PurePath) -> str | None:
    """Return the type of the filesystem that holds the absolute `path`, or None when no mount does.

    `mountinfo` is the text of /proc/self/mountinfo as proc(5) describes it: the mount point is the fifth
    field, with blanks escaped in octal, and the type follows a lone hyphen. The last mount on a point hides others.
    """
    found: str | None = None
    depth = 0
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        point = PurePath(_OCTAL_ESCAPE.sub(lambda match: chr(int(match[1], 8)), mount.split(" ")[4]))
        if path.is_relative_to(point) and len(point.parts) >= depth:
            found, depth = source.partition(" ")[0], len(point.parts)
    return found


class Owner:
    """The right of this process to write one database, until `release` or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def claim(cls, database: Path, *, mountinfo: Path = MOUNTINFO) -> Self:
        """Become the owner of `database`, which need not exist yet.

        Raises UnsuitableFilesystem, DatabaseBusy, and StoreError when its folder cannot be written.
        """
        path = database.resolve()
        if mountinfo.exists():
            _refuse_network_filesystem(filesystem_type(mountinfo.read_text(), path), path)
        lock = path.with_name(path.name + ".lock")
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(
                f"cannot create {lock}: {error.strerror}. The folder must exist and be writable."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode().strip()
            os.close(descriptor)
            raise _busy(path, holder) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return cls(descriptor)

    def release(self) -> None:
        """Let another process own the database. The lock file stays: removing it would race with the next."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def _busy(path: Path, holder: str) -> DatabaseBusy:
    who = f"process {holder}" if holder else "another process"
    return DatabaseBusy(
        f"{path} is in use by {who}. Stop that process first, or give this one a database of its own "
        "with SPAWN_DATABASE_URL; several processes cannot share a SQLite database."
    )


def _refuse_network_filesystem(kind: str | None, path: Path) -> None:
    if kind is not None and _NETWORK_FILESYSTEM.fullmatch(kind):
        raise UnsuitableFilesystem(
            f"{path} lies on a network filesystem ({kind}), where SQLite cannot rely on locks and flushes. "
            "Put the database on a local disk with SPAWN_DATABASE_URL."
        )
