"""Which process runs the jobs: one lease elects it, and each write of a job is fenced by that lease's token.

Invariant: a job's effect is committed only while its process holds the lease under the very token with which the tick
began, whatever clocks say: the token is compared in the effect's own transaction. Time only decides how soon another
process takes over, and no two clocks are compared for it: who waits sees whether the lease *moved* while so many
seconds passed here, by a clock that nobody sets. So neither a clock step nor skewed clocks elect a second leader,
and a holder whose machine slept, or that was stopped for longer than its lease, finds out at its next write.
"""

import asyncio
import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, TypeVar

from msgspec.structs import replace
from spawn_ledger.tx import Params, Row, Tx
from spawn_schemas.ids import Entropy

from spawn.clock import Clock
from spawn.jobs.ticker import Job
from spawn.store import leases
from spawn.store.database import NO_PARAMS, Database
from spawn.store.leases import Lease, LeaseLost

log = logging.getLogger(__name__)
T = TypeVar("T")

NAME: Final = "ticker"
RENEW_S: Final = 30
"""How old a lease may get before its holder renews it: two writes a minute is what an idle service costs."""
LEASE_S: Final = 50
"""How long a lease must not move before another takes it; with the tick after that, jobs rest for a minute at most."""

_term: Final[ContextVar[int]] = ContextVar("term")
"""The token with which the tick that is under way began; the tasks that it starts inherit it."""


def holder_name(entropy: Entropy) -> str:
    """A name for this process that no other has, and that tells an operator where it runs."""
    return f"{platform.node()}:{os.getpid()}:{entropy.bytes(8).hex()}"


class Leader:
    """This process's share of the election."""

    def __init__(self, db: Database, clock: Clock, holder: str) -> None:
        self._db = db
        self._clock = clock
        self._holder = holder
        self._token: int | None = None
        self._renewed_at = 0.0
        self._seen: Lease | None = None
        self._seen_at = 0.0
        self._resigned = False
        self._one_at_a_time = asyncio.Lock()

    async def token(self) -> int | None:
        """The token under which jobs may run now; None while another process runs them."""
        async with self._one_at_a_time:
            if self._resigned:
                return None
            if self._token is not None and not await self._is_still_ours(self._token):
                self._token = None
            if self._token is None:
                self._token = await self._take()
            return self._token

    async def resign(self) -> None:
        """Let a successor start at once. This process runs no job after that."""
        async with self._one_at_a_time:
            self._resigned = True
            token, self._token = self._token, None
            if token is not None:
                await self._db.write(lambda tx: leases.release(tx, NAME, self._holder, token))

    @contextmanager
    def term(self, token: int) -> Iterator[None]:
        """What is written inside, through `Fenced`, is written under this token or not at all."""
        before = _term.set(token)
        try:
            yield
        finally:
            _term.reset(before)

    def fence(self, fn: Callable[[Tx], T]) -> Callable[[Tx], T]:
        """`fn`, refused with LeaseLost when the lease is not held as it was when the tick began."""
        token = _term.get(None)
        if token is None:
            raise RuntimeError("a job's database writes only inside a tick: run the job as `leased` made it")

        def fenced(tx: Tx) -> T:
            leases.require_held(tx, NAME, self._holder, token)
            return fn(tx)

        return fenced

    def lost(self) -> None:
        """A write found the lease in other hands: the next tick asks anew instead of trusting its age."""
        if self._token == _term.get(None):
            self._token = None

    async def _is_still_ours(self, token: int) -> bool:
        began = self._clock.elapsed_s()
        if began - self._renewed_at < RENEW_S:
            return True
        until = self._clock.now_s() + LEASE_S
        renewed = await self._db.write(lambda tx: leases.renew(tx, NAME, self._holder, token, until=until))
        self._renewed_at = began
        return renewed

    async def _take(self) -> int | None:
        found = await self._db.read(leases.SELECT_LEASE, {"name": NAME})
        seen = leases.lease_from(found[0]) if found else None
        if seen is not None and not self._may_take(seen):
            return None
        began = self._clock.elapsed_s()
        until = self._clock.now_s() + LEASE_S
        token = await self._db.write(lambda tx: leases.take(tx, NAME, self._holder, seen=seen, until=until))
        if token is not None:
            self._renewed_at = began
            log.info("this process runs the jobs from now on (term %d)", token)
        return token

    def _may_take(self, seen: Lease) -> bool:
        """Whether it is free, or ours by a write whose answer was lost, or has not moved for so long."""
        if seen.is_free or seen.holder == self._holder:
            return True
        now = self._clock.elapsed_s()
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        return now - self._seen_at >= LEASE_S


class Fenced:
    """`Database` for jobs: reads as ever, writes only while the lease is held."""

    def __init__(self, db: Database, leader: Leader) -> None:
        self._db = db
        self._leader = leader

    @property
    def exclusive(self) -> bool:
        return self._db.exclusive

    async def read(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        return await self._db.read(sql, params)

    async def write(self, fn: Callable[[Tx], T]) -> T:
        """As any `Database`; raises LeaseLost besides, and has changed nothing then."""
        try:
            return await self._db.write(self._leader.fence(fn))
        except LeaseLost:
            self._leader.lost()
            raise

    async def close(self) -> None:
        await self._db.close()


def leased(job: Job, leader: Leader) -> Job:
    """The same job, which does nothing while another process runs the jobs.

    Its tick raises LeaseLost when the lease is lost on the way: what it has not done is still due for the next holder.
    """

    async def tick(now: int) -> None:
        token = await leader.token()
        if token is not None:
            with leader.term(token):
                await job.tick(now)

    return replace(job, tick=tick)
