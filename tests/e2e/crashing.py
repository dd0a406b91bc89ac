"""Parts of the service that kill their own process at one numbered point.

A point lies on either side of every effect: before it, when nothing has happened yet, and after it, when it has and
nobody has been told. Invariant: a process that passes a point has passed all earlier ones, and the point at which
it dies is the last thing it does: SIGKILL lets nothing be tidied up.
"""

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TypeVar

from spawn_ledger.tx import Params, Row, Tx
from spawn_providers.base import Change, Instance, Op, OpState, Provider, Spec, Verb
from spawn_providers.catalog import Catalog
from spawn_schemas.ids import ServerId

from spawn.parts import Parts
from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Facilitator, Rejected, Settled
from spawn.store.database import NO_PARAMS, Database

T = TypeVar("T")


class Points:
    """Counts the points as they are passed and dies at the one it was told, if any; the first is number 1.

    The name of the point at which it dies is left in `last_words`.
    """

    def __init__(self, die_at: int | None, last_words: Path) -> None:
        self.passed: list[str] = []
        self._die_at = die_at
        self._last_words = last_words

    def arm(self, die_at: int | None) -> None:
        """Count from here."""
        self.passed = []
        self._die_at = die_at

    def pass_by(self, label: str) -> None:
        self.passed.append(label)
        if len(self.passed) == self._die_at:
            self._last_words.write_text(label)
            die()

    async def around(self, label: str, effect: Callable[[], Awaitable[T]]) -> T:
        """A point, the effect, a point. An effect that raises has answered too."""
        self.pass_by(f"before {label}")
        try:
            return await effect()
        finally:
            self.pass_by(f"after {label}")


def die() -> NoReturn:
    """What `kill -9` does, at exactly this line."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("a process outlived SIGKILL")


class CrashingDatabase:
    """Dies before a write, or when it is committed and not answered."""

    def __init__(self, inner: Database, points: Points) -> None:
        self._inner = inner
        self._points = points

    @property
    def exclusive(self) -> bool:
        return self._inner.exclusive

    async def read(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        return await self._inner.read(sql, params)

    async def write(self, fn: Callable[[Tx], T]) -> T:
        name = fn.__qualname__.partition(".<locals>")[0]
        return await self._points.around(f"write of {name}", lambda: self._inner.write(fn))

    async def close(self) -> None:
        await self._inner.close()


class CrashingFacilitator:
    """Dies before the chain is asked, or when it has moved the money and we have not heard."""

    def __init__(self, inner: Facilitator, points: Points) -> None:
        self._inner = inner
        self._points = points

    async def settle(self, payment: ExactPayment) -> Settled | Rejected:
        return await self._points.around("facilitator.settle", lambda: self._inner.settle(payment))

    async def find(self, payment: ExactPayment) -> Settled | None:
        return await self._points.around("facilitator.find", lambda: self._inner.find(payment))

    async def is_over(self, payment: ExactPayment) -> bool:
        return await self._inner.is_over(payment)


class CrashingProvider:
    """Dies before the cloud is asked, or when it has obeyed and we have not heard."""

    def __init__(self, inner: Provider, points: Points) -> None:
        self.name = inner.name
        self.capabilities = inner.capabilities
        self._inner = inner
        self._points = points

    async def catalog(self) -> Catalog:
        return await self._points.around("provider.catalog", self._inner.catalog)

    async def create(self, key: ServerId, spec: Spec) -> Op:
        return await self._points.around("provider.create", lambda: self._inner.create(key, spec))

    async def find(self, key: ServerId, *, to_destroy: bool = False) -> Instance | None:
        return await self._points.around(
            "provider.find", lambda: self._inner.find(key, to_destroy=to_destroy)
        )

    async def get(self, ref: str) -> Instance | None:
        return await self._points.around("provider.get", lambda: self._inner.get(ref))

    async def list_owned(self) -> AsyncIterator[Instance]:
        self._points.pass_by("before provider.list_owned")
        async for instance in self._inner.list_owned():
            yield instance
        self._points.pass_by("after provider.list_owned")

    async def act(self, ref: str, verb: Verb, change: Change) -> Op:
        return await self._points.around(f"provider.{verb}", lambda: self._inner.act(ref, verb, change))

    async def delete(self, ref: str) -> Op:
        return await self._points.around("provider.delete", lambda: self._inner.delete(ref))

    async def poll(self, handles: Sequence[str]) -> list[OpState]:
        return await self._points.around("provider.poll", lambda: self._inner.poll(handles))


def crashing(parts: Parts, points: Points) -> Parts:
    """The same parts, each between its points."""
    return replace(
        parts,
        db=CrashingDatabase(parts.db, points),
        rail=replace(parts.rail, facilitator=CrashingFacilitator(parts.rail.facilitator, points)),
        providers={name: CrashingProvider(p, points) for name, p in parts.providers.items()},
    )
