"""One process runs the jobs, whatever clocks say, and what another was about to write is not written."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from spawn_ledger.tx import Tx

from spawn.jobs.ticker import Job, leased
from spawn.services.leader import LEASE_S, RENEW_S, Fenced, Leader
from spawn.store.database import Database, DatabaseFailed
from spawn.store.leases import RELEASE_LEASES, LeaseLost
from tests import databases
from tests.harness import VirtualClock, count_writes, open_world
from tests.integration.two_leaders import SkewedClock

T = TypeVar("T")

HOUR, DAY, YEAR = 3600, 86_400, 365 * 86_400
NOTE = "INSERT INTO stray (provider, ref, first_seen_at) VALUES ('test', :ref, 0)"


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    url = databases.database_url(tmp_path)
    databases.make(url)
    database = await databases.open_database(url)
    yield database
    await database.close()


@pytest.fixture
def real() -> VirtualClock:
    return VirtualClock()


def writing(db: Fenced, ref: str) -> Job:
    """A job that leaves a note."""

    async def tick(_now: int) -> None:
        await db.write(lambda tx: tx.execute(NOTE, {"ref": ref}))

    return Job(name=ref, every_s=1, tick=tick)


class Deaf:
    """A database whose writes are kept, and whose answers do not arrive."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.hears = False
        self.exclusive = db.exclusive
        self.read, self.close = db.read, db.close

    async def write(self, fn: Callable[[Tx], T]) -> T:
        answer = await self._db.write(fn)
        if not self.hears:
            raise TimeoutError
        return answer


async def notes(db: Database) -> list[str]:
    return [row["ref"] for row in await db.read("SELECT ref FROM stray ORDER BY ref")]


async def test_one_of_two_runs_the_jobs(db: Database, real: VirtualClock) -> None:
    first, second = Leader(db, real, "first"), Leader(db, real, "second")
    for _ in range(20 * LEASE_S):
        real.advance(1)
        assert await first.token() == 1
        assert await second.token() is None


async def test_both_at_once_make_one_leader(db: Database, real: VirtualClock) -> None:
    leaders = [Leader(db, real, f"process {n}") for n in range(8)]
    tokens = await asyncio.gather(*(leader.token() for leader in leaders for _ in range(3)))
    assert sorted(token for token in tokens if token is not None) == [1, 1, 1]


async def test_a_leader_that_dies_is_followed_within_a_minute(db: Database, real: VirtualClock) -> None:
    first, second = Leader(db, real, "first"), Leader(db, real, "second")
    assert await first.token() == 1
    real.advance(10)
    assert await second.token() is None
    waited = 0
    while await second.token() is None:
        real.advance(1)
        waited += 1
        assert waited <= 60
    assert waited == LEASE_S
    assert await first.token() is None, "it renews by its token, which is not the lease's any more"


async def test_an_orderly_end_lets_the_next_one_start_at_once(db: Database, real: VirtualClock) -> None:
    first, second = Leader(db, real, "first"), Leader(db, real, "second")
    assert await first.token() == 1
    assert await second.token() is None
    await first.resign()
    assert await second.token() == 2
    assert await first.token() is None
    await first.resign()
    assert await second.token() == 2


async def test_a_start_with_an_exclusive_database_does_not_wait(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with open_world(tmp_path, clock=clock) as world:
        assert await world.service.workers.leader.token() == 1
    async with open_world(tmp_path, clock=clock) as world:
        assert await world.service.workers.leader.token() == 2


async def test_a_token_is_never_used_again(db: Database, real: VirtualClock) -> None:
    for turn in range(1, 6):
        leader = Leader(db, real, "the same name")
        assert await leader.token() == turn
        if turn % 2:
            await leader.resign()
        else:
            await db.write(lambda tx: tx.execute(RELEASE_LEASES))


@pytest.mark.parametrize("step_s", [-YEAR, -DAY, -HOUR, -31, -1, 1, 31, LEASE_S, HOUR, DAY, YEAR])
@pytest.mark.parametrize("whose", ["holder", "other", "both"])
async def test_a_clock_step_elects_nobody(db: Database, real: VirtualClock, step_s: int, whose: str) -> None:
    clocks = SkewedClock(real), SkewedClock(real)
    first, second = Leader(db, clocks[0], "first"), Leader(db, clocks[1], "second")
    for second_ in range(6 * LEASE_S):
        if second_ == 2 * LEASE_S:
            clocks[0].skew_s += step_s if whose != "other" else 0
            clocks[1].skew_s += step_s if whose != "holder" else 0
        real.advance(1)
        assert await first.token() == 1
        assert await second.token() is None


@pytest.mark.parametrize("skew_s", [-YEAR, -HOUR, HOUR, YEAR])
async def test_a_takeover_takes_as_long_with_skewed_clocks(
    db: Database, real: VirtualClock, skew_s: int
) -> None:
    skewed = SkewedClock(real)
    skewed.skew_s = skew_s
    first, second = Leader(db, real, "first"), Leader(db, skewed, "second")
    for holder, other, token in ((first, second, 1), (second, first, 2), (first, second, 3)):
        assert await holder.token() == token
        assert await other.token() is None
        real.advance(LEASE_S - 1)
        assert await other.token() is None
        real.advance(1)
        assert await other.token() == token + 1


async def test_holding_the_lease_costs_two_writes_a_minute_and_waiting_none(
    db: Database, real: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Leader(db, real, "first"), Leader(db, real, "second")
    await first.token()
    writes = count_writes(db, monkeypatch)
    for _ in range(HOUR):
        real.advance(1)
        await first.token()
        await second.token()
    assert len(writes) == HOUR // RENEW_S <= 2 * 60


async def test_what_is_written_after_another_took_over_is_refused(db: Database, real: VirtualClock) -> None:
    first, second = Leader(db, real, "first"), Leader(db, real, "second")
    half_done, resumed = asyncio.Event(), asyncio.Event()
    fenced = Fenced(db, first)

    async def two_writes(_now: int) -> None:
        await fenced.write(lambda tx: tx.execute(NOTE, {"ref": "a"}))
        half_done.set()
        await resumed.wait()
        await fenced.write(lambda tx: tx.execute(NOTE, {"ref": "b"}))

    tick = asyncio.ensure_future(leased(Job(name="two", every_s=1, tick=two_writes), first).tick(0))
    await half_done.wait()
    assert await second.token() is None
    real.advance(LEASE_S)
    await leased(writing(Fenced(db, second), "c"), second).tick(0)
    resumed.set()
    with pytest.raises(LeaseLost):
        await tick
    assert await notes(db) == ["a", "c"]


async def test_a_tick_of_an_earlier_term_stays_refused_when_its_process_leads_again(
    db: Database, real: VirtualClock
) -> None:
    first, second = Leader(db, real, "first"), Leader(db, real, "second")
    begun, resumed = asyncio.Event(), asyncio.Event()
    fenced = Fenced(db, first)

    async def late(_now: int) -> None:
        begun.set()
        await resumed.wait()
        await fenced.write(lambda tx: tx.execute(NOTE, {"ref": "late"}))

    tick = asyncio.ensure_future(leased(Job(name="late", every_s=1, tick=late), first).tick(0))
    await begun.wait()
    await second.token()
    real.advance(LEASE_S)
    assert await second.token() == 2
    await second.resign()
    await leased(writing(fenced, "new"), first).tick(0)
    resumed.set()
    with pytest.raises(LeaseLost):
        await tick
    assert await notes(db) == ["new"]
    assert await first.token() == 3, "the old tick's loss is not the new term's"


async def test_the_first_refused_write_ends_the_term(db: Database, real: VirtualClock) -> None:
    leader = Leader(db, real, "first")
    job = leased(writing(Fenced(db, leader), "a"), leader)
    await leader.token()
    await db.write(lambda tx: tx.execute("UPDATE lease SET holder = 'thief', token = token + 1"))
    with pytest.raises(LeaseLost):
        await job.tick(0)
    await job.tick(0)
    assert await notes(db) == []


async def test_a_lease_taken_by_a_write_whose_answer_was_lost_is_taken_again(
    db: Database, real: VirtualClock
) -> None:
    deaf = Deaf(db)
    leader = Leader(deaf, real, "first")
    with pytest.raises(TimeoutError):
        await leader.token()
    deaf.hears = True
    assert await leader.token() == 2


async def test_a_job_writes_inside_a_tick_only(db: Database, real: VirtualClock) -> None:
    leader = Leader(db, real, "first")
    await leader.token()
    with pytest.raises(RuntimeError, match="inside a tick"):
        await writing(Fenced(db, leader), "a").tick(0)
    assert await notes(db) == []


async def test_who_runs_the_jobs_is_told(
    db: Database, real: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await Leader(db, real, "first").token()
    assert caplog.messages == ["this process runs the jobs from now on (term 1)"]


async def test_a_database_that_failed_fails_the_tick(db: Database, real: VirtualClock) -> None:
    leader = Leader(db, real, "first")
    job = leased(writing(Fenced(db, leader), "a"), leader)
    await job.tick(0)
    await db.close()
    with pytest.raises(DatabaseFailed):
        await job.tick(0)
