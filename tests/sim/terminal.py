"""What a run tells: lines that stay, and a line of how far it is.

Invariant: on a terminal that line is one, written over in place; in a pipe or a file it is a line of its own now and
then, with nothing in it but text.
"""

import shutil
import time
from typing import Final, TextIO

IN_PLACE_EVERY_S: Final = 0.5
IN_A_PIPE_EVERY_S: Final = 10.0
_BACK: Final = "\r\x1b[K"
"""To the line's begin, and all of it away (ECMA-48, CR and EL)."""


class Terminal:
    """Writes to `out` at once."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_in_place = out.isatty()
        self._is_open = False
        self._told = time.monotonic()

    def tell(self, text: str) -> None:
        """These lines, for good."""
        print(f"{_BACK if self._is_open else ''}{text}", file=self._out, flush=True)
        self._is_open = False

    def progress(self, line: str) -> None:
        """How far it is; what comes too soon after the one before is left out."""
        now = time.monotonic()
        if now - self._told < (IN_PLACE_EVERY_S if self._is_in_place else IN_A_PIPE_EVERY_S):
            return
        self._told = now
        if self._is_in_place:
            width = shutil.get_terminal_size().columns - 1
            print(f"{_BACK}{line[:width]}", end="", file=self._out, flush=True)
            self._is_open = True
        else:
            self.tell(line)
