"""A world lives, is copied, lives on, and loses its database: what chain and cloud know is in the books again."""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from spawn_providers.base import Instance, Provider
from spawn_providers.simulated_faults import Faults, Outage
from spawn_schemas.ids import Address, ServerId
from spawn_schemas.money import Usdc, parse_usdc

from spawn.domain.servers import Reason, Status
from spawn.evm.node import NodeUnavailable
from spawn.payments.arrivals import Arrived
from spawn.payments.devnet import DevChain
from spawn.services.reconcile import UNSEEN_GRACE_S
from spawn.services.restore import Report
from spawn.store.database import Database, DatabaseFailed
from tests.harness import ORDER, VirtualClock, World, open_world
from tests.integration.arriving import DEPOSIT, FIVE, Dying, front_run, send
from tests.integration.restoring import backup, lose, restore
from tests.integration.server_steps import LARGE, MEDIUM, SMALL, burnt
from tests.wallets import Wallet

pytestmark = pytest.mark.embedded

HOUR = 3_600


@dataclass
class Life:
    """What a world looked like when its database was lost."""

    old: Wallet
    new: Wallet
    kept: str
    resized: str
    destroyed: str
    rented: str
    bought: str
    machines: dict[str, tuple[ServerId | None, Address | None]]
    paid: Counter[Address]
    last_event: int
    copied_at: int


async def machines(world: World) -> dict[str, tuple[ServerId | None, Address | None]]:
    return {machine.ref: (machine.key, machine.owner) async for machine in world.cloud.list_owned()}


async def paid_by_calls(world: World) -> Counter[Address]:
    """What each payer's authorizations have moved to us, as the chain tells it."""
    paid: Counter[Address] = Counter()
    cursor = ""
    while True:
        arrived, behind = await world.chain.page(cursor)
        for one in arrived:
            if one.nonce_key is not None:
                paid[one.sender] += one.amount
        if behind == cursor:
            return paid
        cursor = behind


async def destroy(world: World, wallet: Wallet, server: str) -> None:
    answer = await world.sign(wallet, "DELETE", f"/v1/servers/{server}")
    assert answer.status_code in (200, 202), answer.text
    await world.run_for(30)


async def live(folder: Path, clock: VirtualClock) -> Life:
    """Three servers, a backup; then payments, a rental from the balance, one by x402, a resize, a deletion."""
    async with open_world(folder, clock=clock) as world:
        old, new = await world.customer("20.00"), await world.wallet("50.00")
        kept = await world.rent(old, name="kept")
        resized = await world.rent(old, name="resized")
        destroyed = await world.rent(old, name="destroyed")
        await world.run_for(HOUR, step_s=60)
        await world.customer("1.00")
        copied_at = clock.now_s()
        backup(world, folder / "copy.db")
        await world.run_for(600, step_s=60)
        topped_up = await world.pay(old, "POST", "/v1/balance/deposit", {"amount": "3.25"})
        assert topped_up.status_code == 200, topped_up.text
        rented = await world.rent(old, name="rented", type="large", deposit="1.00")
        bought = await world.pay(new, "POST", "/v1/servers", ORDER | {"fund": "2.60", "deposit": "1.50"})
        assert bought.status_code == 201, bought.text
        change = await world.sign(old, "POST", f"/v1/servers/{resized['id']}/resize", {"type": "medium"})
        assert change.status_code == 200, change.text
        await destroy(world, old, destroyed["id"])
        brief = await world.rent(new, name="brief", deposit="0.15")
        await destroy(world, new, brief["id"])
        await send(world, new, "2.50")
        await world.run_for(2 * HOUR, step_s=60)
        (newest,) = await world.rows("SELECT MAX(seq) AS seq FROM event")
        life = Life(
            old=old,
            new=new,
            kept=kept["id"],
            resized=resized["id"],
            destroyed=destroyed["id"],
            rented=rented["id"],
            bought=bought.json()["server"]["id"],
            machines=await machines(world),
            paid=await paid_by_calls(world),
            last_event=newest["seq"],
            copied_at=copied_at,
        )
        await world.check_books()
    assert len(life.machines) == 4
    lose(folder)
    return life


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Life, int]:
    """The folder of a world after its loss, what the world looked like, and when that was."""
    folder, clock = tmp_path_factory.mktemp("lost"), VirtualClock()
    return folder, asyncio.run(live(folder, clock)), clock.now_s()


@pytest.fixture
def life(lost: tuple[Path, Life, int], tmp_path: Path) -> Life:
    shutil.copytree(lost[0], tmp_path, dirs_exist_ok=True)
    return lost[1]


@pytest.fixture
def clock(lost: tuple[Path, Life, int]) -> VirtualClock:
    return VirtualClock(lost[2])


async def test_what_was_paid_and_rented_since_is_in_the_books_again(
    tmp_path: Path, life: Life, clock: VirtualClock
) -> None:
    clock.advance(HOUR)
    now = clock.now_s()
    report = await restore(tmp_path, tmp_path / "copy.db", clock)
    assert report.undecided == []
    assert report.credited_usdc == parse_usdc("3.25") + parse_usdc("2.61")
    assert report.suspended_usdc == parse_usdc("2.50")
    assert {(one.server, one.wallet) for one in report.adopted} == {
        (life.rented, life.old.address),
        (life.bought, life.new.address),
    }
    assert (report.resized, report.gone, report.strays) == ([life.resized], [life.destroyed], [])
    async with open_world(tmp_path, clock=clock) as world:
        await world.check_books()
        for wallet, paid in life.paid.items():
            (row,) = await world.rows(
                "SELECT SUM(amount) AS n FROM transfer WHERE code = 'topup' AND credit = :account",
                account=f"wallet:{wallet}",
            )
            assert row["n"] == paid
        assert await world.account("suspense") == parse_usdc("2.50")
        await world.run_for(30 * 60, step_s=30)
        assert await machines(world) == life.machines, "a machine was destroyed, or another made"
        for key, owner in life.machines.values():
            server = await world.server(str(key))
            assert (server.wallet, server.status) == (owner, Status.RUNNING)
        # No machine of this process's has gone: the token may be of another project, and a day is left to see that.
        await world.run_for(UNSEEN_GRACE_S, step_s=600)
        gone = await world.server(life.destroyed)
        assert (gone.status, gone.reason) == (Status.DESTROYED, Reason.VANISHED)
        assert await world.account("ext:usdc") == await world.chain.balance_of(world.settings.pay_to)
        await world.check_books()
        (first,) = await world.rows("SELECT MIN(seq) AS seq FROM event WHERE at >= :now", now=now)
        assert first["seq"] > life.last_event, "a number that was given out comes again"


async def test_a_server_that_is_adopted_costs_what_it_cost_since_its_order(
    tmp_path: Path, life: Life, clock: VirtualClock
) -> None:
    report = await restore(tmp_path, tmp_path / "copy.db", clock)
    since = {one.server: one.since for one in report.adopted}
    async with open_world(tmp_path, clock=clock) as world:
        bought, rented = await world.server(life.bought), await world.server(life.rented)
        assert bought.charged_usdc == burnt(SMALL, clock.now_s() - since[bought.id])
        assert rented.charged_usdc == burnt(LARGE, clock.now_s() - since[rented.id])
        assert (bought.name, rented.name) == ("web", "rented")
        # What was paid for it and was not burnt is the wallet's: fee and deposit of the lost books are not.
        assert await world.available(life.new.address) == parse_usdc("2.61") - bought.charged_usdc
        events = await world.rows("SELECT type FROM event WHERE resource = :id", id=life.bought)
        assert [event["type"] for event in events] == ["server.created"]


async def test_a_resize_since_is_billed_from_the_restore_on(
    tmp_path: Path, life: Life, clock: VirtualClock
) -> None:
    await restore(tmp_path, tmp_path / "copy.db", clock)
    async with open_world(tmp_path, clock=clock) as world:
        before = await world.server(life.resized)
        assert (before.type, before.provider_type, before.daily_usdc) == ("medium", "cx33", MEDIUM)
        assert before.charged_until == clock.now_s()
        clock.advance(HOUR)
        await world.sign(life.old, "POST", f"/v1/servers/{life.resized}/deposit", {"amount": "0.10"})
        after = await world.server(life.resized)
        assert abs(after.charged_usdc - before.charged_usdc - burnt(MEDIUM, HOUR)) <= 1


async def test_a_server_that_is_gone_is_billed_up_to_the_backup(
    tmp_path: Path, life: Life, clock: VirtualClock
) -> None:
    await restore(tmp_path, tmp_path / "copy.db", clock)
    async with open_world(tmp_path, clock=clock) as world:
        await world.run_for(UNSEEN_GRACE_S + 10 * 60, step_s=600)
        gone = await world.server(life.destroyed)
        assert gone.status is Status.DESTROYED
        assert gone.metered_from is not None
        assert gone.charged_usdc == burnt(SMALL, life.copied_at - gone.metered_from) > gone.minimum_usdc
        assert await world.account(f"srv:{life.destroyed}") == 0
        await world.check_books()


# --- again --------------------------------------------------------------------------------------------------------


async def test_a_restore_that_dies_anywhere_changes_nothing_and_is_repeated(
    tmp_path: Path, life: Life, clock: VirtualClock
) -> None:
    copy = tmp_path / "copy.db"
    before = copy.read_bytes()
    report, deaths = None, 0
    while report is None:
        try:
            report = await restore(tmp_path, copy, clock, around_db=dying(deaths + 1))
        except DatabaseFailed:
            deaths += 1
            assert left_in(tmp_path) == ["spawn.db.lock"]
            assert deaths < 50
    assert deaths > 8
    assert copy.read_bytes() == before
    assert len(report.adopted) == 2
    async with open_world(tmp_path, clock=clock) as world:
        await world.run_for(10 * 60, step_s=30)
        assert await machines(world) == life.machines
        assert await paid_by_calls(world) == life.paid
        await world.check_books()


def dying(at: int) -> Callable[[Database], Database]:
    """A process that ends at its write of this number, every other time when that is on the disk."""
    return lambda db: Dying(db, at, is_kept=at % 2 == 0)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("spawn.db*"))


@pytest.mark.usefixtures("life")
async def test_what_a_killed_attempt_left_is_cleared_away(tmp_path: Path, clock: VirtualClock) -> None:
    for suffix in ("", "-wal", "-shm", ".lock"):
        (tmp_path / f"spawn.db.restoring{suffix}").write_bytes(b"half of something")
    assert (await restore(tmp_path, tmp_path / "copy.db", clock)).undecided == []
    assert left_in(tmp_path) == ["spawn.db", "spawn.db.lock"]


# --- what cannot be decided ---------------------------------------------------------------------------------------


def relabelled(**labels: Any) -> Any:
    class Changed:
        def __init__(self, inner: Provider) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        async def list_owned(self) -> AsyncIterator[Instance]:
            async for machine in self._inner.list_owned():
                yield replace(machine, **labels)

    return Changed


class Unreadable:
    """A chain that shows nothing."""

    def __init__(self, chain: DevChain) -> None:
        self.name = chain.name

    async def page(self, _cursor: str) -> tuple[tuple[Arrived, ...], str]:
        raise NodeUnavailable("no route to the node")


async def undecided(folder: Path, clock: VirtualClock, **around: Any) -> Report:
    """A restore that must not be opened; and the next one, when its cause is gone, may."""
    report = await restore(folder, folder / "copy.db", clock, **around)
    assert report.undecided != []
    assert left_in(folder) == ["spawn.db.lock"]
    again = await restore(folder, folder / "copy.db", clock)
    assert again.undecided == []
    assert len(again.adopted) == 2
    return report


@pytest.mark.usefixtures("life")
async def test_a_machine_that_does_not_say_whose_it_is_is_not_decided(
    tmp_path: Path, clock: VirtualClock
) -> None:
    report = await undecided(tmp_path, clock, around_cloud=relabelled(owner=None))
    assert len(report.undecided) == 2
    assert "does not say whose it is: put its owner's label back, or delete it there" in report.undecided[0]


@pytest.mark.parametrize(("size", "type"), [("small", "small"), (None, "cx999")])
async def test_a_machine_that_is_not_sold_any_more_costs_what_is_nearest_to_it(
    tmp_path: Path, life: Life, clock: VirtualClock, size: str | None, type: str
) -> None:
    changed = relabelled(provider_type="cx999", type=size)
    report = await restore(tmp_path, tmp_path / "copy.db", clock, around_cloud=changed)
    assert report.undecided == []
    assert {adopted.type for adopted in report.adopted} == {type}
    told = [note for note in report.notes if "is a cx999 in nbg1, which is not sold: it costs" in note]
    assert len(told) == len(report.adopted) == 2
    assert {note.split()[0] for note in report.notes} - {one.server for one in report.adopted} == {
        life.kept,
        life.resized,
    }


@pytest.mark.usefixtures("life")
async def test_a_cloud_that_does_not_answer_is_not_decided(tmp_path: Path, clock: VirtualClock) -> None:
    faults = Faults()
    faults.plan("list_owned", Outage())
    report = await undecided(tmp_path, clock, cloud_faults=faults)
    assert "simulated does not say which machines there are" in report.undecided[0]


@pytest.mark.usefixtures("life")
async def test_a_chain_that_cannot_be_read_is_not_decided(tmp_path: Path, clock: VirtualClock) -> None:
    report = await undecided(tmp_path, clock, around_chain=Unreadable)
    assert "what was paid since the backup cannot be read (no route to the node)" in report.undecided[0]


# --- what is no customer's ----------------------------------------------------------------------------------------


async def test_a_machine_from_before_the_backup_that_nobody_knew_stays_a_stray(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with open_world(tmp_path, clock=clock) as world:
        seen = await world.cloud.plant_orphan(ServerId("srv_seen"))
        unseen = await world.cloud.plant_orphan(ServerId("srv_unseen"))
        clock.advance(25 * HOUR)
        await world.customer("1.00")
        backup(world, tmp_path / "copy.db")
        later = await world.cloud.plant_orphan(ServerId("srv_later"))
        assert len({seen, unseen, later}) == 3
    lose(tmp_path)
    report = await restore(tmp_path, tmp_path / "copy.db", clock)
    assert report.strays == [seen, unseen]
    assert [one.server for one in report.adopted] == ["srv_later"]
    async with open_world(tmp_path, clock=clock) as world:
        await world.run_for(10 * 60, step_s=30)
        assert list(await machines(world)) == [later]


async def test_a_customer_s_machine_is_no_stray_because_our_clock_was_ahead(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with open_world(tmp_path, clock=clock) as world:
        clock.step(3 * HOUR)
        await world.customer("1.00")
        backup(world, tmp_path / "copy.db")
        clock.step(-3 * HOUR)
        rented = await world.rent(await world.customer("9.00"))
    lose(tmp_path)
    report = await restore(tmp_path, tmp_path / "copy.db", clock)
    assert ([one.server for one in report.adopted], report.strays) == ([rented["id"]], [])


async def test_whoever_owns_an_adopted_machine_and_has_no_money_is_warned_before_it_ends(
    tmp_path: Path,
) -> None:
    clock = VirtualClock()
    async with open_world(tmp_path, clock=clock) as world:
        backup(world, tmp_path / "copy.db")
        ref = await world.cloud.plant_orphan(ServerId("srv_broke"))
        clock.advance(HOUR)
    lose(tmp_path)
    await restore(tmp_path, tmp_path / "copy.db", clock)
    async with open_world(tmp_path, clock=clock) as world:
        told = await world.rows("SELECT type FROM event WHERE resource = 'srv_broke' ORDER BY seq")
        assert "deposit.low" in [event["type"] for event in told]
        await world.run_for(6 * HOUR - 60, step_s=60)
        assert list(await machines(world)) == [ref]
        await world.run_for(HOUR, step_s=60)
        assert await machines(world) == {}
        await world.check_books()


async def test_a_name_that_another_server_has_is_not_taken_twice(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with open_world(tmp_path, clock=clock) as world:
        wallet = await world.customer("20.00")
        first = await world.rent(wallet, name="web")
        backup(world, tmp_path / "copy.db")
        await destroy(world, wallet, first["id"])
        second = await world.rent(wallet, name="web")
    lose(tmp_path)
    (adopted,) = (await restore(tmp_path, tmp_path / "copy.db", clock)).adopted
    assert (adopted.server, adopted.name) == (second["id"], f"restored-{second['id'][4:]}")


# --- payments that come late --------------------------------------------------------------------------------------


async def test_a_payment_of_a_lost_call_that_settles_after_the_restore_is_its_payers(tmp_path: Path) -> None:
    """A call was reserved and lost with the books; its authorization reaches the chain only now."""
    clock = VirtualClock()
    async with open_world(tmp_path, clock=clock) as world:
        wallet, stranger = await world.wallet("20.00"), await world.wallet("20.00")
        backup(world, tmp_path / "copy.db")
        payment = await world.payment(wallet, *DEPOSIT)
    lose(tmp_path)
    await restore(tmp_path, tmp_path / "copy.db", clock)
    async with open_world(tmp_path, clock=clock) as world:
        clock.advance(200)
        await front_run(world, payment)
        await world.tick("suspense")
        assert (await world.available(wallet.address), await world.account("suspense")) == (FIVE, 0)
        clock.advance(200)
        await front_run(world, await world.payment(stranger, *DEPOSIT))
        await world.tick("suspense")
        assert (await world.available(stranger.address), await world.account("suspense")) == (0, FIVE)


async def test_a_call_that_is_sent_again_after_the_restore_is_not_credited_again(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with open_world(tmp_path, clock=clock) as world:
        wallet = await world.wallet("20.00")
        backup(world, tmp_path / "copy.db")
        payment = await world.payment(wallet, *DEPOSIT)
        assert (await world.send_payment(payment, *DEPOSIT)).status_code == 200
    lose(tmp_path)
    report = await restore(tmp_path, tmp_path / "copy.db", clock)
    assert report.credited_usdc == FIVE
    async with open_world(tmp_path, clock=clock) as world:
        assert (await world.send_payment(payment, *DEPOSIT)).status_code == 200
        assert await world.available(wallet.address) == FIVE
        assert await world.account("ext:usdc") == Usdc(FIVE)
        await world.check_books()
