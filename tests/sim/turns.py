"""Blocking code among tasks: it runs on a thread of its own, but only while the event loop stands still for it.

Invariant: of the loop and all these threads one runs at a time, and hands over at known places alone; so what runs
next follows from the world's seed, though a transaction can stop between two statements while others go on.
"""

import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


async def in_turns(fn: Callable[[], T]) -> T:
    """What `fn` returns or raises. While it runs it may call `wait_for`."""
    turn = _Turn(fn)
    asked = turn.go_on(None, None)
    while asked is not None:
        try:
            answer = await asked
        except BaseException as error:  # noqa: BLE001 - the function's own affair, a cancellation too
            asked = turn.go_on(None, error)
        else:
            asked = turn.go_on(answer, None)
    return turn.outcome()


def wait_for(coroutine: Coroutine[Any, Any, T]) -> T:
    """Inside a function that runs in turns: let the loop await this, and everybody else go on meanwhile."""
    thread = threading.current_thread()
    assert isinstance(thread, _Thread)
    return cast("T", thread.turn.ask(coroutine))


def on_loop(fn: Callable[[], T]) -> T:
    """Inside such a function: what belongs to the loop's thread, at once and without anybody going on meanwhile."""

    async def call() -> T:
        return fn()

    return wait_for(call())


class _Thread(threading.Thread):
    turn: "_Turn[Any]"


class _Turn(Generic[T]):
    """One function, its thread, and whose turn it is."""

    def __init__(self, fn: Callable[[], T]) -> None:
        self._fn = fn
        self._ours, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._asked: Coroutine[Any, Any, Any] | None = None
        self._answer: tuple[Any, BaseException | None] = None, None
        self._result: T | None = None
        self._error: BaseException | None = None
        context = contextvars.copy_context()
        # A daemon: what a life that broke off leaves half-way keeps no program from its end.
        self._thread = _Thread(target=lambda: context.run(self._run), daemon=True)
        self._thread.turn = self
        self._thread.start()

    def go_on(self, answer: Any, error: BaseException | None) -> Coroutine[Any, Any, Any] | None:
        """On the loop: let it run until it asks for something, or ends (None)."""
        self._answer, self._asked = (answer, error), None
        self._theirs.release()
        self._ours.acquire()
        if self._asked is None:
            self._thread.join()
        return self._asked

    def outcome(self) -> T:
        if self._error is not None:
            raise self._error
        return cast("T", self._result)

    def ask(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """On the thread."""
        self._asked = coroutine
        self._ours.release()
        self._theirs.acquire()
        answer, error = self._answer
        if error is not None:
            raise error
        return answer

    def _run(self) -> None:
        self._theirs.acquire()
        try:
            self._result = self._fn()
        except BaseException as error:  # noqa: BLE001 - it is its caller's
            self._error = error
        self._ours.release()
