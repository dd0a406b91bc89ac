"""What a life comes to: how long it was, what it did, and the promise that it found broken."""

import gc
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

ENGINES: Final = ("sqlite", "postgresql")
"""Where the books of a life may be kept."""


class Violation(BaseException):
    """A promise is broken. Not an Exception: nothing of the service may take it for one of its own."""

    def __init__(self, promise: str, text: str, *, move: int, step: int) -> None:
        super().__init__(f"{promise}: {text}")
        self.promise = promise
        self.text = text
        self.move = move
        self.step = step

    def __reduce__(self) -> tuple[object, ...]:
        # It comes back from another process.
        return _violation, (self.promise, self.text, self.move, self.step)


def _violation(promise: str, text: str, move: int, step: int) -> Violation:
    return Violation(promise, text, move=move, step=step)


def told_in_full(cause: BaseException | None) -> str:
    """With every line of code that it came by: the exception itself does not come back from another process."""
    return "" if cause is None else "".join(traceback.format_exception(cause))


@dataclass(frozen=True, kw_only=True)
class Life:
    """What came of one life. `moves` are the numbers of those that were played, `cause` is the violation's."""

    seed: str
    number: int
    steps: int
    moves: tuple[int, ...]
    violation: Violation | None
    trace_hash: str
    tail: tuple[str, ...]
    lived_s: int
    counts: dict[str, int]
    cause: str = ""


class _Listener(logging.Handler):
    def __init__(self, heard: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(logging.ERROR)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard(record)


@contextmanager
def listening(heard: Callable[[logging.LogRecord], None]) -> Iterator[None]:
    """Hear every error that the service logs: a defect, or something that its operator would have to look into."""
    logger, listener = logging.getLogger("spawn"), _Listener(heard)
    before = logger.level, logger.propagate
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.setLevel(before[0])
        logger.propagate = before[1]


@contextmanager
def uncollected() -> Iterator[None]:
    """Garbage is looked for before a world, not in it: that takes a tenth of a run. What outlives worlds stays."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
