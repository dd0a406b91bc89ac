"""A delete that meets a resize, or another delete: the server is gone once and the money is right to the micro-USDC.

The refund is computed here from the price list and the clock alone.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from spawn_providers.simulated_faults import Delay, Fault, Outage

from tests.harness import ORDER, World, open_world
from tests.integration.paid_calls import Barrier, machines, paid_in, refusal, usdc
from tests.integration.server_steps import accepted_at
from tests.wallets import Wallet

PAID_IN = usdc("20.00")
DEPOSIT = usdc("2.00")
SMALL, MEDIUM = 150_000, 220_000  # micro-USDC per day
CREATE, GET, RESIZE, DELETE = usdc("0.01"), usdc("0.001"), usdc("0.01"), usdc("0.005")
DAY = 86_400
LIVED_S = 7_200  # long enough for the burn to pass the minimum of one hour


@dataclass
class Rented:
    """A small server that has run for two hours, paid from the balance."""

    world: World
    wallet: Wallet
    id: str
    since: int
    medium_since: int | None = None

    @property
    def path(self) -> str:
        return f"/v1/servers/{self.id}"

    def cost(self) -> int:
        """What it has burnt by now; fractions of a micro-USDC are carried over the change of rate."""
        now = self.world.clock.now_s()
        medium_since = now if self.medium_since is None else self.medium_since
        return (SMALL * (medium_since - self.since) + MEDIUM * (now - medium_since)) // DAY

    async def phase(self) -> tuple[int, str] | None:
        """Step and phase of the running operation."""
        found = await self.world.rows(
            "SELECT step, phase FROM operation WHERE server_id = :id AND status = 'running'", id=self.id
        )
        return (found[0]["step"], found[0]["phase"]) if found else None

    async def assert_gone(self, *, cost: int, fees: int) -> None:
        """Destroyed, its machine too, and nothing but this cost and these fees is missing from the balance."""
        await self.world.run_for(120)
        assert (await self.world.server(self.id)).status == "destroyed"
        assert await machines(self.world) == 0
        assert await self.phase() is None
        assert await self.world.account(f"srv:{self.id}") == 0
        assert await self.world.available(self.wallet.address) == PAID_IN - cost - CREATE - GET - fees
        assert await self.world.rows("SELECT id FROM hold WHERE state = 'pending'") == []
        await self.world.check_books()


@asynccontextmanager
async def rented(folder: Path) -> AsyncIterator[Rented]:
    async with open_world(folder, first_answer_s=0.2) as world:
        wallet = await world.customer("20.00")
        server = await world.rent(wallet, deposit="2.00")
        since = await accepted_at(world, server["id"])
        world.clock.advance(LIVED_S)
        await world.tick()
        yield Rented(world, wallet, server["id"], since)


def delta(reserve: int) -> int:
    """What a reserve lacks to last as long for a medium as it did for a small, rounded up."""
    return -(-reserve * MEDIUM // SMALL) - reserve


async def resize_until(it: Rented, step: int, phase: str) -> Barrier:
    """Resize, and let time pass until the operation is in this phase of this step (shut down, resize, start).

    Answers what holds up the provider's call, where it is found on its way.
    """
    barrier = Barrier()
    fault: dict[str, list[Fault]] = {"queued": [Outage(retry_after_s=30)], "sent": [Delay(gate=barrier)]}
    it.world.cloud_faults.plan("act", *(None,) * step, *fault.get(phase, []))
    resized = await it.world.sign(it.wallet, "POST", f"{it.path}/resize", {"type": "medium"})
    assert resized.status_code == 200, resized.text
    for _ in range(120):
        if it.medium_since is None and (await it.world.server(it.id)).type == "medium":
            it.medium_since = it.world.clock.now_s()
        if await it.phase() == (step, phase):
            return barrier
        it.world.clock.advance(1)
        await tick_until_held(it.world, barrier)
    raise AssertionError(f"the resize never was {phase} in step {step}")


async def tick_until_held(world: World, barrier: Barrier) -> None:
    """Let the operations do what is due, to its end or until a call is held up."""
    ticking = asyncio.ensure_future(world.tick("operations"))
    held = asyncio.ensure_future(barrier.reached.wait())
    await asyncio.wait((ticking, held), return_when=asyncio.FIRST_COMPLETED)
    ticking.cancel()
    held.cancel()


@pytest.mark.parametrize(
    ("step", "phase"),
    [
        *((step, phase) for step in (0, 1) for phase in ("queued", "sent", "accepted")),
        (2, "accepted"),  # the machine is up again by itself: the start is found done before it is asked for
    ],
)
async def test_a_delete_ends_a_resize_wherever_it_stands(tmp_path: Path, step: int, phase: str) -> None:
    async with rented(tmp_path) as it:
        added = delta(DEPOSIT - it.cost())
        barrier = await resize_until(it, step, phase)
        it.world.clock.advance(1_000)  # so that the two rates differ by more than a rounding
        cost = it.cost()
        gone = await it.world.sign(it.wallet, "DELETE", it.path)
        assert gone.status_code == 200, gone.text
        # What was added to the deposit comes back too, whether it was only held by then or in the reserve already.
        assert usdc(gone.json()["deposit_refunded"]) == DEPOSIT + added - cost - DELETE
        barrier.set()
        obeyed = (step, phase) not in {(0, "queued"), (0, "sent")}
        await it.assert_gone(cost=cost, fees=DELETE + (RESIZE if obeyed else 0))


@pytest.mark.parametrize("first", ["resize", "delete"])
async def test_a_delete_and_a_resize_at_once_end_destroyed(tmp_path: Path, first: str) -> None:
    async with rented(tmp_path) as it:
        cost = it.cost()
        resize = it.world.sign(it.wallet, "POST", f"{it.path}/resize", {"type": "medium"})
        delete = it.world.sign(it.wallet, "DELETE", it.path)
        if first == "resize":
            resized, gone = await asyncio.gather(resize, delete)
        else:
            gone, resized = await asyncio.gather(delete, resize)
        assert gone.status_code == 200, gone.text
        added = delta(DEPOSIT - cost)
        assert usdc(gone.json()["deposit_refunded"]) - DEPOSIT + cost + DELETE in {0, added}
        if resized.status_code == 200:
            shown = await it.world.rows("SELECT accepted_at FROM operation WHERE command = 'resize_server'")
            obeyed = shown[0]["accepted_at"] is not None
        else:
            refusal(resized, 409, "conflict")
            obeyed = False
        await it.assert_gone(cost=cost, fees=DELETE + (RESIZE if obeyed else 0))


async def test_of_many_deletes_one_wins(tmp_path: Path) -> None:
    async with rented(tmp_path) as it:
        cost = it.cost()
        answers = await asyncio.gather(*(it.world.sign(it.wallet, "DELETE", it.path) for _ in range(10)))
        assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 9}
        for answer in answers:
            if answer.status_code == 409:
                refusal(answer, 409, "conflict")
        await it.assert_gone(cost=cost, fees=DELETE)


async def test_of_many_paid_deletes_one_wins_and_what_the_others_paid_is_credit(tmp_path: Path) -> None:
    async with rented(tmp_path) as it:
        cost = it.cost()
        barrier = it.world.chain_faults.gate = Barrier()
        paying = [asyncio.ensure_future(it.world.pay(it.wallet, "DELETE", it.path)) for _ in range(5)]
        await barrier.reached.wait()
        barrier.set()
        answers = await asyncio.gather(*paying)
        assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 4}
        for answer in answers:
            if answer.status_code == 200:
                # Its fee was paid on top, so that the whole of the deposit comes back.
                assert usdc(answer.json()["deposit_refunded"]) == DEPOSIT - cost
        paid = (len(await paid_in(it.world, it.wallet)) - 1) * DELETE
        await it.assert_gone(cost=cost, fees=DELETE - paid)


async def test_the_minimum_of_an_hour_is_kept_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        created = await world.sign(wallet, "POST", "/v1/servers", ORDER | {"deposit": "2.00"})
        path = f"/v1/servers/{created.json()['server']['id']}"
        gone = await asyncio.gather(*(world.sign(wallet, "DELETE", path) for _ in range(3)))
        assert Counter(answer.status_code for answer in gone) == {200: 1, 409: 2}
        await world.run_for(120)
        assert await world.available(wallet.address) == PAID_IN - CREATE - DELETE - SMALL // 24
        assert await machines(world) == 0
        await world.check_books()
