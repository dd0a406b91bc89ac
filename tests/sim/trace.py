"""What happened, line by line: a hash of all of it, the last lines, and the whole of it for whoever wants it."""

from collections import deque
from collections.abc import Callable
from hashlib import sha256
from typing import Final

TAIL: Final = 60


class Trace:
    """Invariant: the hash depends on every line, and on nothing else."""

    def __init__(self, write: Callable[[str], None] | None = None) -> None:
        self._hash = sha256()
        self._tail: deque[str] = deque(maxlen=TAIL)
        self._write = write

    def add(self, line: str) -> None:
        self._hash.update(line.encode())
        self._hash.update(b"\n")
        self._tail.append(line)
        if self._write is not None:
            self._write(line)

    @property
    def hash(self) -> str:
        return self._hash.hexdigest()[:16]

    @property
    def tail(self) -> list[str]:
        return list(self._tail)
