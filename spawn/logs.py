"""What the log may say: what happened, never what was sent.

Requests carry payments, signatures, passwords and people's data, and an exception may quote any of them. Invariant: a
line is either words of ours, or of a library about itself. So libraries are heard only when something is wrong, since
before that they print what they handle (a client its URLs, with the keys in them; a database its parameters); an
exception is told by where it happened, and by its message only if we know who wrote that.
"""

import logging
import sqlite3
import traceback
from collections.abc import Iterator
from typing import IO, Final

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
OURS: Final = "spawn"
_UVICORN: Final = "uvicorn."
_UVICORN_ACCESS: Final = "uvicorn.access"
_TARGET: Final = 2
"""Where the request's target stands among the arguments of a line of uvicorn's access log."""
_BOOTS: Final = "/v1/boots/"
"""What follows in a path is a right, and no name."""


def start(stream: IO[str]) -> None:
    """Send every log of this process to `stream`, discreetly."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(FORMAT))
    handler.addFilter(discreet)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def discreet(record: logging.LogRecord) -> bool:
    """Whether a record may be written; what it must not say is taken out of it."""
    if record.levelno < _heard_from(record.name):
        return False
    if record.exc_info is not None and record.exc_info[1] is not None:
        record.exc_text = told(record.exc_info[1])
        record.exc_info = None
    if record.name == "asyncio":
        # Below its first line stands the repr of a task, and of the exception in it.
        record.msg, record.args = record.getMessage().partition("\n")[0], ()
    elif record.name == _UVICORN_ACCESS and isinstance(record.args, tuple):
        target = str(record.args[_TARGET]).partition("?")[0]
        target = f"{_BOOTS}..." if target.startswith(_BOOTS) else target
        record.args = (*record.args[:_TARGET], target, *record.args[_TARGET + 1 :])
    return True


def _heard_from(name: str) -> int:
    if _is_ours(name):
        return logging.NOTSET
    return logging.INFO if name.startswith(_UVICORN) else logging.WARNING


def told(error: BaseException) -> str:
    """An exception and its causes: where each was raised, of which kind it is, and what may be said of it."""
    return "\n".join(_lines(error, set()))


def _lines(error: BaseException, known: set[int]) -> Iterator[str]:
    known.add(id(error))
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    for other in (cause, *members):
        if other is not None and id(other) not in known:
            yield from _lines(other, known)
            yield "which led to"
    for frame in traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__)):
        yield f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}: {frame.line}'
    kind = type(error)
    yield ": ".join([f"{kind.__module__}.{kind.__qualname__}", *_message(error)])


def _message(error: BaseException) -> list[str]:
    """What an exception says, if it is ours, SQLite's, which quotes names only, or the system's."""
    if isinstance(error, OSError) and error.strerror is not None:
        return [error.strerror]
    if _is_ours(type(error).__module__) or isinstance(error, sqlite3.Error):
        return [str(error)]
    return []


def _is_ours(name: str) -> bool:
    return name.partition(".")[0].partition("_")[0] == OURS
