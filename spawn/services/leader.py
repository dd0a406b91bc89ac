"""What one process at a time does: a lease elects it, and each write that it makes as such is fenced by its token.

Invariant: an effect is committed only while its process holds the lease under the very token with which the work
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
from functools import wraps
from typing import Final, TypeVar

import msgspec
from spawn_ledger.tx import Params, Row, Tx
from spawn_schemas.ids import Entropy

from spawn.clock import Clock
from spawn.store import leases
from spawn.store.database import NO_PARAMS, Database
from spawn.store.leases import Lease, LeaseLost

log = logging.getLogger(__name__)
T = TypeVar("T")

RENEW_S: Final = 30
"""How old a lease may get before its holder renews it: two writes a minute is what an idle service costs."""
LEASE_S: Final = 50
"""How long a lease must not move before another takes it; with the tick after that, jobs rest for a minute at most."""


class Office(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to hold: the name of its lease, what its holder does, for the log, and the two times."""

    name: str
    does: str
    renew_s: int = RENEW_S
    lease_s: int = LEASE_S

    def lasting(self, lease_s: int) -> "Office":
        """The same with another lease, renewed after as large a part of it."""
        return msgspec.structs.replace(self, lease_s=lease_s, renew_s=lease_s * RENEW_S // LEASE_S)


TICKER: Final = Office(name="ticker", does="runs the jobs")

_term: Final[ContextVar[int]] = ContextVar("term")
"""The token with which the tick that is under way began; the tasks that it starts inherit it."""


def holder_name(entropy: Entropy) -> str:
    """A name for this process that no other has, and that tells an operator where it runs."""
    return f"{platform.node()}:{os.getpid()}:{entropy.bytes(8).hex()}"


class Leader:
    """This process's share of the election to one office."""

    def __init__(self, db: Database, clock: Clock, holder: str, office: Office = TICKER) -> None:
        self._db = db
        self._clock = clock
        self._holder = holder
        self._office = office
        self._token: int | None = None
        self._renewed_at = 0.0
        self._seen: Lease | None = None
        self._seen_at = 0.0
        self._resigned = False
        self._one_at_a_time = asyncio.Lock()

    async def token(self) -> int | None:
        """The token under which this process may act now; None while another process does."""
        async with self._one_at_a_time:
            if self._resigned:
                return None
            if self._token is not None and not await self._is_still_ours(self._token):
                self._token = None
            if self._token is None:
                self._token = await self._take()
            return self._token

    async def resign(self) -> None:
        """Let a successor start at once. This process is never elected after that."""
        async with self._one_at_a_time:
            self._resigned = True
            token, self._token = self._token, None
            if token is not None:
                await self._db.write(lambda tx: leases.release(tx, self._office.name, self._holder, token))

    @contextmanager
    def term(self, token: int) -> Iterator[None]:
        """What is written inside, through `Fenced`, is written under this token or not at all."""
        before = _term.set(token)
        try:
            yield
        finally:
            _term.reset(before)

    def fence(self, fn: Callable[[Tx], T], token: int) -> Callable[[Tx], T]:
        """`fn`, refused with LeaseLost when the lease is not held under this token."""

        @wraps(fn)  # whoever names a write, in a log or a test, names what it does
        def fenced(tx: Tx) -> T:
            leases.require_held(tx, self._office.name, self._holder, token)
            return fn(tx)

        return fenced

    def lost(self, token: int) -> None:
        """A write found the lease in other hands: the next look asks anew instead of trusting its age."""
        if self._token == token:
            self._token = None

    async def _is_still_ours(self, token: int) -> bool:
        began = self._clock.elapsed_s()
        if began - self._renewed_at < self._office.renew_s:
            return True
        until = self._clock.now_s() + self._office.lease_s
        name = self._office.name
        renewed = await self._db.write(lambda tx: leases.renew(tx, name, self._holder, token, until=until))
        self._renewed_at = began
        return renewed

    async def _take(self) -> int | None:
        name = self._office.name
        found = await self._db.read(leases.SELECT_LEASE, {"name": name})
        seen = leases.lease_from(found[0]) if found else None
        if seen is not None and not self._may_take(seen):
            return None
        began = self._clock.elapsed_s()
        until = self._clock.now_s() + self._office.lease_s
        token = await self._db.write(lambda tx: leases.take(tx, name, self._holder, seen=seen, until=until))
        if token is not None:
            self._renewed_at = began
            log.info("this process %s from now on (term %d)", self._office.does, token)
        return token

    def _may_take(self, seen: Lease) -> bool:
        """Whether it is free, or ours by a write whose answer was lost, or has not moved for so long."""
        if seen.is_free or seen.holder == self._holder:
            return True
        now = self._clock.elapsed_s()
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        return now - self._seen_at >= self._office.lease_s


class Fenced:
    """`Database` for who holds an office: reads as ever, writes only while the lease is held.

    It is held under `token`; without one, as in jobs, under that of the tick which is under way.
    """

    def __init__(self, db: Database, leader: Leader, token: int | None = None) -> None:
        self._db = db
        self._leader = leader
        self._token = token

    @property
    def exclusive(self) -> bool:
        """See `Database.exclusive`."""
        return self._db.exclusive

    async def read(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        """See `Database.read`."""
        return await self._db.read(sql, params)

    async def write(self, fn: Callable[[Tx], T]) -> T:
        """As any `Database`; raises LeaseLost besides, and has changed nothing then."""
        token = _term.get(None) if self._token is None else self._token
        if token is None:
            raise RuntimeError("a job's database writes only inside a tick: run the job as `leased` made it")
        try:
            return await self._db.write(self._leader.fence(fn, token))
        except LeaseLost:
            self._leader.lost(token)
            raise

    async def close(self) -> None:
        """See `Database.close`."""
        await self._db.close()
