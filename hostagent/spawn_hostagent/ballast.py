"""Some MiB of the agent's own disk that nobody else gets: given up where it is full, for what must be written then.

Invariant: no tenant is stopped later for want of it. It goes only after those who write on were stopped, since they
would have it at once; and it comes back where there is room again.
"""

import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Final

MIB: Final = 1024 * 1024
SIZE_MIB: Final = 8
"""The journal's log grows to four before SQLite begins it anew; small files and a status come beside it."""
ROOM_MIB: Final = 64
"""How much has to be free, or making it would be what fills the disk."""

_log: Final = logging.getLogger(__name__)


def is_full(error: BaseException) -> bool:
    """Whether a disk took no more."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class Ballast:
    """A file in this folder. Its calls block for as long as a disk takes to write a few MiB."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.file = folder / "ballast"

    def is_wanted(self) -> bool:
        """Whether less is free than what it would give."""
        return self._free_mib() < SIZE_MIB

    def make(self) -> None:
        """Lay it down, if it is not here and there is room. A disk that does not take it is no error."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.file.exists() or self._free_mib() < ROOM_MIB:
            return
        unfinished = self.file.with_suffix(".new")
        try:
            with unfinished.open("wb") as file:
                # No zeros: a file system that packs them would keep nothing.
                file.write(os.urandom(SIZE_MIB * MIB))
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(self.file)
        except OSError as error:
            _log.error("%s cannot be laid down: %s", self.file, error)
            unfinished.unlink(missing_ok=True)

    def give_up(self) -> None:
        """Let others of ours write, as far as it goes."""
        try:
            self.file.unlink()
        except FileNotFoundError:
            return
        _log.warning("The disk of %s is full: what was kept free for this is given up.", self._folder)

    def _free_mib(self) -> int:
        return shutil.disk_usage(self._folder).free // MIB
