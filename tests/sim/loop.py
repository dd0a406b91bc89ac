"""An event loop without a world: time passes only when nobody has anything to do, threads run in place.

Invariant: what runs next follows from what was scheduled, in order; nothing of the machine (clock, sockets, threads)
gets in. So the same seed lives the same life, and years pass in seconds.
"""

import asyncio
import heapq
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

BUSY: Final = 400_000
"""Callbacks in one stretch of time after which somebody surely runs in circles."""


class Busy(Exception):
    """Something wakes itself without end while no time passes, or far too often."""


class SimLoop(asyncio.BaseEventLoop):
    """Driven from outside: `run_callbacks`, `run_for`, `complete`."""

    _ready: Any
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self.stopping: Callable[[], bool] = lambda: False
        """Asked after each callback whether to stop at once."""

    def time(self) -> float:
        """Seconds since the world began."""
        return self._now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """In place, or on the thread that owns what it touches while we wait; heard of in the next turn."""
        future: asyncio.Future[T] = self.create_future()
        try:
            result = func(*args) if executor is None else executor.submit(func, *args).result()
        except Exception as error:  # noqa: BLE001 - it belongs to whoever awaits it
            self.call_soon(_fail, future, error)
        else:
            self.call_soon(_succeed, future, result)
        return future

    def run_callbacks(self, count: int) -> None:
        """Run at most so many, while no time passes."""
        with self._running():
            self._run_ready(count)

    def run_for(self, seconds: float) -> None:
        """Let this time pass with everything that happens in it. Raises Busy."""
        end = self._now + seconds
        left = BUSY
        with self._running():
            while not self.stopping():
                left -= self._run_ready(left)
                if left <= 0:
                    raise Busy
                if self._ready:
                    continue
                due = self._next_timer()
                if due is None or due > end:
                    break
                self._wake(due)
        self._now = max(self._now, end) if not self.stopping() else self._now

    def complete(self, coroutine: Coroutine[Any, Any, T], *, within_s: float = 3600.0) -> T:
        """Run it to its end, with all that goes on meanwhile. Raises Busy when that takes too long."""
        task = self.create_task(coroutine)
        end = self._now + within_s
        left = BUSY
        with self._running():
            while not task.done() and not self.stopping():
                left -= self._run_ready(1)
                due = None if self._ready else self._next_timer()
                if left <= 0 or (not self._ready and (due is None or due > end)):
                    raise Busy
                if due is not None:
                    self._wake(due)
        if not task.done():
            task.cancel()
        return task.result()

    @property
    def next_timer_s(self) -> float | None:
        """When the next thing happens by itself."""
        return self._now if self._ready else self._next_timer()

    def _run_ready(self, count: int) -> int:
        ran = 0
        while self._ready and ran < count and not self.stopping():
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()
                ran += 1
        return ran

    def _next_timer(self) -> float | None:
        while self._scheduled and self._scheduled[0].cancelled():
            handle = heapq.heappop(self._scheduled)
            handle._scheduled = False  # type: ignore[attr-defined]  # the library's own bookkeeping
        return self._scheduled[0].when() if self._scheduled else None

    def _wake(self, due: float) -> None:
        self._now = max(self._now, due)
        while (at := self._next_timer()) is not None and at <= self._now:
            handle = heapq.heappop(self._scheduled)
            handle._scheduled = False  # type: ignore[attr-defined]  # the library's own bookkeeping
            self._ready.append(handle)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # they are dropped when their time comes

    def _write_to_self(self) -> None:
        pass  # nobody sleeps in a system call

    @contextmanager
    def inside(self) -> Iterator[None]:
        """For whoever starts tasks from outside; `run_for` may be called inside."""
        with self._running():
            yield

    @contextmanager
    def _running(self) -> Iterator[None]:
        before, hooks = asyncio._get_running_loop(), sys.get_asyncgen_hooks()
        asyncio._set_running_loop(self)
        sys.set_asyncgen_hooks(firstiter=None, finalizer=_forget)
        try:
            yield
        finally:
            sys.set_asyncgen_hooks(*hooks)
            asyncio._set_running_loop(before)


class SimClock:
    """What the service takes for the time: right, or some hours off."""

    def __init__(self, loop: SimLoop, start_s: int) -> None:
        self._loop = loop
        self._start_s = start_s
        self.wrong_by_s = 0

    def now_s(self) -> int:
        return self._start_s + int(self._loop.time()) + self.wrong_by_s

    def now_ms(self) -> int:
        return self._start_s * 1000 + int(self._loop.time() * 1000) + self.wrong_by_s * 1000

    def elapsed_s(self) -> float:
        return self._loop.time()

    def set_wrong_by(self, seconds: int) -> None:
        self.wrong_by_s = seconds


def _forget(generator: AsyncGenerator[Any, Any]) -> None:
    """What a dead process left half-way is not brought to its end by whenever the collector finds it."""


def _succeed(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
