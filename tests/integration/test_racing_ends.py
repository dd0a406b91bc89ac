"""A deposit's end, and what races it, by enumeration: in both orders, and with a death at every write and cloud call.

The points are those of `tests.e2e.crashing`, passed in process: a death there is an exception after which nothing of
that service works any more; another is then built on the same files and goes on, and the client repeats its call.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any, Final, cast

import httpx
import pytest
from spawn_providers.simulated_faults import Fault, LostAnswer, LostRequest, Outage

from spawn.app import build
from tests import databases
from tests.e2e.crashing import Points, crashing
from tests.harness import BASE_URL, VirtualClock, World, bury, open_world
from tests.integration.server_steps import (
    DAY,
    SMALL,
    accepted_at,
    burnt,
    compute_usdc,
    lasts_s,
    machines,
    recording,
    rent,
)
from tests.integration.test_deposit_lives import HOUR, told, warned
from tests.wallets import Wallet

WEEK: Final = 7 * DAY
BACKOFF_MAX_S: Final = 300
PAID_IN: Final = 400_000
RICH: Final = 6_000_000
RESERVE: Final = 1_500_000
DRIVES_MAX: Final = 200
POLL_S: Final = 15
POINTS_MIN: Final = 4


class Crash(Exception):
    """The process died here."""


class RaisingPoints(Points):
    """Points at which a process dies by an exception, and at all that follow."""

    def __init__(self, die_at: int | None) -> None:
        super().__init__(None, Path())
        self._fatal: int | None = None
        self._planned = die_at

    def begin(self) -> None:
        """Count from here."""
        self.passed, self._fatal = [], self._planned

    @property
    def dead(self) -> bool:
        return self._fatal is not None and len(self.passed) >= self._fatal

    def pass_by(self, label: str) -> None:
        self.passed.append(label)
        if self.dead:
            raise Crash(label)


Step = Callable[["Scene"], Awaitable[None]]


@dataclass
class Scene:
    """A world just before the race, its one customer and server, and the service that is to die in it."""

    world: World
    wallet: Wallet
    server_id: str
    since: int
    end: int
    points: RaisingPoints
    payment: str | None = None
    reborn: bool = False

    async def tick(self) -> None:
        await self.world.tick("burn")

    async def drive(self) -> None:
        """Let the operations run to their end; a service that died in one of them writes no more."""
        for _ in range(DRIVES_MAX):
            if not await self.world.rows("SELECT id FROM operation WHERE status = 'running'"):
                return
            self.world.clock.advance(POLL_S)
            await self.world.tick("operations")
            if self.points.dead and not self.reborn:
                raise Crash
        raise AssertionError("an operation never ended")

    async def second(self) -> None:
        self.world.clock.advance(1)

    async def pay_in(self) -> None:
        """The very same payment, however often it is sent."""
        path, body = "/v1/balance/deposit", {"amount": "0.50"}
        if self.payment is None:
            asked = await self.world.ask("POST", path, body)
            now = self.world.clock.now_s()
            self.payment = self.wallet.payment(asked.headers["PAYMENT-REQUIRED"], now=now, nonce=77)
        await self._sent(self.world.send_payment(self.payment, "POST", path, body), {200})

    async def destroy(self) -> None:
        path = f"/v1/servers/{self.server_id}"
        await self._sent(self.world.sign(self.wallet, "DELETE", path, key="delete-1"), {200, 409})

    async def resize(self) -> None:
        path, body = f"/v1/servers/{self.server_id}/resize", {"type": "medium", "upgrade_disk": False}
        await self._sent(self.world.sign(self.wallet, "POST", path, body, key="resize-1"), {200})

    async def _sent(self, sending: Awaitable[httpx.Response], expected: set[int]) -> None:
        answer = await sending
        if answer.status_code in {500, 503}:
            raise Crash(answer.text)
        assert answer.status_code in expected, answer.text

    # --- what must be so -----------------------------------------------------------------------------------------

    async def check_destroyed(self, reason: str) -> None:
        server = await self.world.server(self.server_id)
        assert (server.status, server.reason) == ("destroyed", reason)
        assert await machines(self.world) == []
        for kind in ("server.destroying", "server.destroyed"):
            assert len(await told(self.world, kind)) == 1
        if reason == "deposit_exhausted":
            (ended,) = await told(self.world, "server.destroying")
            (last,) = [e for e in await told(self.world, "deposit.low") if e["threshold_s"] == 6 * HOUR]
            assert ended["at"] - last["at"] >= 6 * HOUR
            assert len(await told(self.world, "deposit.exhausted")) == 1
            assert await compute_usdc(self.world, self.server_id) == burnt(SMALL, self.end - self.since)
        assert server.cost_daily_usdc is not None
        assert server.ended_at is not None
        hours = ceil((server.ended_at - self.since) / HOUR)
        assert server.cost_usdc == burnt(server.cost_daily_usdc, hours * HOUR)
        assert await self.world.account(f"srv:{self.server_id}") == 0

    async def check_books(self) -> None:
        assert await self.world.rows("SELECT id FROM hold WHERE state = 'pending'") == []
        causes = await self.world.rows("SELECT cause FROM event WHERE cause IS NOT NULL")
        assert all(count == 1 for count in Counter(row["cause"] for row in causes).values())
        settled = await told(self.world, "payment.settled")
        assert len(settled) == len(await self.world.rows("SELECT id FROM transfer WHERE code = 'topup'"))
        for row in await self.world.rows("SELECT id FROM operation"):
            ends = [e for e in await told(self.world, "operation.succeeded") if e["action"] == row["id"]]
            ends += [e for e in await told(self.world, "operation.failed") if e["action"] == row["id"]]
            assert len(ends) == 1
        await self.world.check_books()


async def destroyed_by_want(scene: Scene) -> None:
    await scene.check_destroyed("deposit_exhausted")


async def destroyed_on_request(scene: Scene) -> None:
    await scene.check_destroyed("requested")
    assert await compute_usdc(scene.world, scene.server_id) == burnt(SMALL, scene.end - scene.since)
    assert await told(scene.world, "deposit.exhausted") == []


async def saved(scene: Scene) -> None:
    """It lives, and pays for each second since."""
    assert (await scene.world.server(scene.server_id)).status == "running"
    assert await machines(scene.world) == [scene.server_id]
    for kind in ("server.destroying", "deposit.exhausted", "deposit.restored"):
        assert await told(scene.world, kind) == []
    server = await scene.world.server(scene.server_id)
    assert server.charged_until is not None
    assert server.charged_until > scene.end
    assert await compute_usdc(scene.world, scene.server_id) == burnt(
        SMALL, server.charged_until - scene.since
    )


async def kept_as_credit(scene: Scene) -> None:
    """The money came too late, and is there for another."""
    await scene.check_destroyed("deposit_exhausted")
    spent = burnt(SMALL, scene.end - scene.since)
    assert await scene.world.available(scene.wallet.address) == PAID_IN - 10_000 - spent + 500_000


async def resized_and_warned(scene: Scene) -> None:
    server = await scene.world.server(scene.server_id)
    assert (server.status, server.type) == ("running", "medium")
    assert [threshold_s for threshold_s, _ in await warned(scene.world)] == [WEEK]
    assert len(await told(scene.world, "server.resized")) == 1
    assert await told(scene.world, "server.destroying") == []


@dataclass(frozen=True)
class Race:
    """What happens, in this order, `before_end_s` before the last paid second; and what is true afterwards."""

    name: str
    steps: tuple[Step, ...]
    truth: Step
    before_end_s: int = 0
    faults: tuple[Fault, ...] = ()


BURN, DRIVE, SECOND = Scene.tick, Scene.drive, Scene.second
OUTAGE: Final = (Outage(retry_after_s=5), LostRequest(), LostAnswer())

RACES: Final = (
    Race("the end", (SECOND, BURN, DRIVE), destroyed_by_want),
    Race("the end in an outage", (SECOND, BURN, DRIVE), destroyed_by_want, faults=OUTAGE),
    Race("a top-up before the end", (SECOND, Scene.pay_in, BURN, DRIVE), saved),
    Race("a top-up after the end", (SECOND, BURN, Scene.pay_in, DRIVE), kept_as_credit),
    Race("a delete before the end", (Scene.destroy, SECOND, BURN, DRIVE), destroyed_on_request),
    Race("a delete in the second of the end", (SECOND, Scene.destroy, BURN, DRIVE), destroyed_by_want),
    Race("a delete after the end", (SECOND, BURN, Scene.destroy, DRIVE), destroyed_by_want),
    Race(
        "a resize before a warning",
        (Scene.resize, SECOND, BURN, DRIVE, BURN),
        resized_and_warned,
        before_end_s=WEEK + 1,
    ),
    Race(
        "a resize after a warning",
        (SECOND, BURN, Scene.resize, DRIVE, BURN),
        resized_and_warned,
        before_end_s=WEEK + 1,
    ),
)


@dataclass(frozen=True)
class Start:
    """Where a race begins: files, the second, and what is known."""

    folder: Path
    now: int
    server_id: str
    since: int
    end: int


async def prepare(folder: Path, race: Race) -> Start:
    """A world at rest, right before the race."""
    rich = race.before_end_s > 0
    async with open_world(folder) as world:
        wallet = await world.customer(f"{(RICH if rich else PAID_IN) / 1_000_000:.2f}")
        deposit = f"{RESERVE / 1_000_000:.2f}" if rich else "0.30"
        server_id = await rent(world, wallet, deposit=deposit, auto_renew=not rich)
        since = await accepted_at(world, server_id)
        end = since + lasts_s(SMALL, RESERVE if rich else PAID_IN - 10_000)
        await world.burn_until(end - race.before_end_s)
        await world.tick("burn")
        return Start(folder, world.clock.now_s(), server_id, since, end)


@asynccontextmanager
async def opened(
    start: Start, race: Race, folder: Path, points: RaisingPoints
) -> AsyncIterator[tuple[Scene, World]]:
    """A copy of the start: with a service that passes by these points, and as it is without."""
    databases.copy(start.folder, folder)
    async with open_world(folder, clock=VirtualClock(start.now)) as world:
        world.cloud_faults.plan("delete", *race.faults)
        mortal = await built(replace(world, parts=crashing(world.parts, points)))
        points.begin()
        scene = Scene(mortal, Wallet.numbered(1), start.server_id, start.since, start.end, points)
        yield scene, world
        await scene.world.http.aclose()


async def built(world: World) -> World:
    """The world with a service of its own, made of its parts."""
    service = await build(world.settings, world.parts, ticking=False)
    transport = httpx.ASGITransport(app=cast("Any", service.app), raise_app_exceptions=False)
    return replace(world, service=service, http=httpx.AsyncClient(transport=transport, base_url=BASE_URL))


async def run(scene: Scene, race: Race, whole: World) -> None:
    """Take the steps; the one that the process dies in is taken again by the next."""
    for step in race.steps:
        try:
            await step(scene)
        except Crash:
            assert scene.points.dead
        if scene.points.dead and not scene.reborn:
            await reborn(scene, whole)
            await step(scene)


async def reborn(scene: Scene, whole: World) -> None:
    """Another process on the same files, which does not die."""
    await scene.world.http.aclose()
    await bury(whole.parts)
    scene.world, scene.reborn = await built(whole), True


@pytest.mark.parametrize("race", RACES, ids=lambda race: race.name)
async def test_a_race_ends_as_its_order_says_wherever_the_process_dies(tmp_path: Path, race: Race) -> None:
    (tmp_path / "start").mkdir()
    start = await prepare(tmp_path / "start", race)
    points = await trial(start, race, tmp_path / "whole", None)
    assert len(points) >= POINTS_MIN
    for number, point in enumerate(points, 1):
        passed = await trial(start, race, tmp_path / f"died-{number}", number)
        assert passed[number - 1] == point


async def trial(start: Start, race: Race, folder: Path, die_at: int | None) -> list[str]:
    """One race, with one death or none; answers the points passed by the service that could die."""
    async with opened(start, race, folder, RaisingPoints(die_at)) as (scene, whole):
        try:
            await run(scene, race, whole)
            passed = list(scene.points.passed)
            if not scene.reborn:
                await reborn(scene, whole)
            await race.truth(scene)
            await scene.check_books()
        except Exception as error:
            error.add_note(f"died at {die_at}: {scene.points.passed[-1:]}")
            raise
    return passed


async def test_a_delete_is_tried_for_as_long_as_the_provider_is_away_and_is_on_us(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("2.00")
        server_id = await rent(world, wallet, deposit="0.30", auto_renew=False)
        since = await accepted_at(world, server_id)
        end = since + lasts_s(SMALL, 300_000)
        await world.burn_until(end + 1)
        available = await world.available(wallet.address)
        world.cloud_faults.plan("delete", *(Outage(retry_after_s=5) for _ in range(10_000)))
        tries: list[int] = []
        while world.clock.now_s() < end + WEEK:
            before = recorders[0].changes.count("delete")
            await world.tick("operations", "burn")
            if recorders[0].changes.count("delete") > before:
                tries.append(world.clock.now_s())
            (row,) = await world.rows("SELECT next_at FROM operation WHERE status = 'running'")
            world.clock.advance(max(1, row["next_at"] - world.clock.now_s()))
        gaps = [later - earlier for earlier, later in pairwise(tries)]
        assert all(earlier <= later for earlier, later in pairwise(gaps)), "it backs off"
        assert max(gaps) == BACKOFF_MAX_S
        assert len(tries) > (WEEK - HOUR) // BACKOFF_MAX_S
        assert (await world.server(server_id)).status == "destroying"
        assert await told(world, "server.destroyed") == []
        world.cloud_faults._planned["delete"].clear()
        for _ in range(DRIVES_MAX):
            world.clock.advance(POLL_S)
            await world.tick("operations", "burn")
        server = await world.server(server_id)
        assert server.status == "destroyed"
        assert await machines(world) == []
        assert server.cost_daily_usdc is not None
        assert server.ended_at is not None
        hours = ceil((server.ended_at - since) / HOUR)
        cost = burnt(server.cost_daily_usdc, end - since)
        assert await world.account("cost:provider") == cost
        assert await world.account("exp:overrun") == burnt(server.cost_daily_usdc, hours * HOUR) - cost
        assert await world.available(wallet.address) == available, "none of it is the wallet's"
        assert await compute_usdc(world, server_id) == burnt(SMALL, end - since)
        await world.check_books()
