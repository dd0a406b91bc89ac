"""The database is gone, without a backup: no machine dies of it, and each is its wallet's again by its labels."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from spawn_providers.base import Provider
from spawn_providers.hetzner.orders import Surroundings
from spawn_schemas.ids import ServerId
from spawn_schemas.money import parse_usdc

from spawn.services.admin import Credit, Unfreeze
from spawn.services.price_list import PriceList
from spawn.services.rebuilding import Rebuilding, Report
from tests.contract.hetzner_subject import emulated
from tests.harness import VirtualClock, World, open_world
from tests.integration.restoring import lose
from tests.integration.server_steps import DAY, burnt, code, rent, show
from tests.integration.test_restore import relabelled
from tests.wallets import Wallet

pytestmark = pytest.mark.embedded

HOUR = 3_600
TYPES = {"first": "small", "second": "medium", "other": "small"}
Opener = Callable[[], AbstractAsyncContextManager[World]]


@dataclass
class Town:
    """A service that can be opened again and again over one cloud, whatever becomes of its database."""

    folder: Path
    clock: VirtualClock
    open: Opener
    one: Wallet = field(default_factory=lambda: Wallet.numbered(1))
    two: Wallet = field(default_factory=lambda: Wallet.numbered(2))


@pytest.fixture(params=["simulated", "hetzner"])
async def town(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Town]:
    clock = VirtualClock()
    if request.param == "simulated":
        yield Town(tmp_path, clock, lambda: open_world(tmp_path, clock=clock))
        return
    async with emulated(clock=clock) as hetzner:

        @asynccontextmanager
        async def opened() -> AsyncIterator[World]:
            """As after a restart: a provider that remembers nothing."""
            provider = await hetzner.reopen()
            async with open_world(
                tmp_path, clock=clock, around=lambda _: provider, first_answer_s=0.05
            ) as world:
                yield world

        yield Town(tmp_path, clock, opened)


def cloud(world: World) -> Provider:
    (provider,) = world.parts.providers.values()
    return provider


async def machines(world: World) -> dict[str, str]:
    """What is there, by our id, with its state."""
    return {str(machine.key): machine.status.value async for machine in cloud(world).list_owned()}


async def lost(town: Town) -> dict[str, str]:
    """Two wallets rent three servers, one of which is resized; the database is gone. Answers names by id."""
    async with town.open() as world:
        for wallet in (town.one, town.two):
            await pay_in(world, wallet, "40.00")
        ids = {
            await rent(world, wallet, name=name): name
            for wallet, name in ((town.one, "first"), (town.one, "second"), (town.two, "other"))
        }
        (second,) = (server for server, name in ids.items() if name == "second")
        await order_and_wait(world, town.one, f"/v1/servers/{second}/resize", {"type": "medium"})
        assert set((await machines(world)).values()) == {"running"}
    lose(town.folder)
    town.clock.advance(60)
    return ids


async def pay_in(world: World, wallet: Wallet, amount: str) -> None:
    await world.chain.mint(wallet.address, parse_usdc(amount))
    paid = await world.pay(wallet, "POST", "/v1/balance/deposit", {"amount": amount})
    assert paid.status_code == 200, paid.text


async def order_and_wait(world: World, wallet: Wallet, path: str, body: object = None) -> None:
    answer = await world.sign(wallet, "POST", path, body)
    assert answer.status_code == 200, answer.text
    for _ in range(400):
        if not await world.rows("SELECT id FROM operation WHERE status = 'running'"):
            return
        world.clock.advance(2)
        await world.tick("operations")
    raise AssertionError("the operation did not end")


async def rebuild(world: World) -> Report:
    return await Rebuilding(world.parts.db, world.parts.providers, world.settings).run(world.clock.now_s())


async def pass_hours(world: World, hours: int) -> None:
    for _ in range(hours * 6):
        world.clock.advance(600)
        await world.tick("burn", "reconcile", "sweep", "operations")


async def give(world: World, wallet: Wallet, usdc: int) -> None:
    order = Credit(
        id=wallet.address, wallet=wallet.address, usdc=usdc, reason="as our backup of the ledger says"
    )
    await world.service.workers.clerk.carry_out(order)


async def test_a_service_that_starts_without_its_database_destroys_nobody(town: Town) -> None:
    ids = await lost(town)
    async with town.open() as world:
        before = await machines(world)
        assert before.keys() == ids.keys()
        await pass_hours(world, 3)
        assert await machines(world) == before
        report = await world.service.workers.reconciler.run()
        assert (report.unknown, report.strays_destroyed) == (3, 0)
        # Life goes on beside them, and what nobody has is still found.
        newcomer = Wallet.numbered(3)
        await pay_in(world, newcomer, "40.00")
        new = await rent(world, newcomer, name="new")
        assert await machines(world) == before | {new: "running"}


async def test_every_server_is_its_wallets_again(town: Town) -> None:
    ids = await lost(town)
    async with town.open() as world:
        report = await rebuild(world)
        assert report.undecided == []
        owners = {one.server: one.wallet for one in report.rebuilt}
        names = {one.server: one.name for one in report.rebuilt}
        assert names == ids
        assert {ids[server]: owner for server, owner in owners.items()} == {
            "first": town.one.address,
            "second": town.one.address,
            "other": town.two.address,
        }
        assert {one.name: one.type for one in report.rebuilt} == TYPES
        again = await rebuild(world)
        assert (again.rebuilt, again.known, again.undecided) == ([], 3, [])
        assert (await world.service.workers.reconciler.run()).frozen == 3
        await world.check_books()


async def test_a_rebuilt_server_costs_nothing_and_does_not_end(town: Town) -> None:
    ids = await lost(town)
    async with town.open() as world:
        await rebuild(world)
        before = await machines(world)
        for _ in range(3):
            world.clock.advance(20 * DAY)
            await pass_hours(world, 1)
        assert await machines(world) == before
        for server in ids:
            assert (await world.server(server)).charged_usdc == 0
            assert (await world.server(server)).status == "running"
        warned = await world.rows("SELECT type FROM event WHERE type LIKE 'deposit.%'")
        assert warned == []
        await world.check_books()


async def test_its_owner_uses_it_before_the_operator_has_decided(town: Town) -> None:
    ids = await lost(town)
    server = next(iter(ids))
    async with town.open() as world:
        await rebuild(world)
        for wallet in (town.one, town.two):
            await pay_in(world, wallet, "1.00")
        shown = await show(world, town.one, server)
        # What we had planted is lost with the books, so nothing is claimed of it.
        assert (shown["name"], shown["ssh_host_keys"], shown["known_hosts"]) == ("first", [], None)
        assert shown["ready"] is None
        assert code(await world.sign(town.two, "GET", f"/v1/servers/{server}")) == (403, "forbidden")
        await order_and_wait(world, town.one, f"/v1/servers/{server}/reboot")
        await order_and_wait(world, town.one, f"/v1/servers/{server}/rebuild", {"image": "debian-12"})
        assert (await show(world, town.one, server))["ready"] is None
        added = await world.sign(town.one, "POST", f"/v1/servers/{server}/deposit", {"amount": "0.50"})
        assert added.status_code == 200, added.text
        resize = await world.sign(town.one, "POST", f"/v1/servers/{server}/resize", {"type": "medium"})
        assert code(resize) == (409, "conflict")
        gone = await world.sign(town.one, "DELETE", f"/v1/servers/{server}")
        # All of it, but for the fee of this call.
        assert gone.json()["deposit_refunded"] == "0.495"
        await pass_hours(world, 1)
        assert server not in await machines(world)
        assert (await world.server(server)).charged_usdc == 0
        await world.check_books()


async def test_the_operator_sets_the_balances_and_the_meters_start(town: Town) -> None:
    ids = await lost(town)
    async with town.open() as world:
        await rebuild(world)
        await pass_hours(world, 24)
        await give(world, town.one, 9_000_000)
        (said, _) = await world.service.workers.clerk.carry_out(Unfreeze(server=None))
        assert said == "Metered from now on: 3 servers of 2 wallets."
        started = world.clock.now_s()
        await world.tick("burn")
        await pass_hours(world, 48)
        by_name = {name: await world.server(server) for server, name in ids.items()}
        paid = by_name["first"]
        assert paid.charged_until is not None
        assert paid.charged_usdc == burnt(paid.daily_usdc, paid.charged_until - started) > 0
        # Who has nothing was warned, and then it ended as it always does.
        told = await world.rows("SELECT type FROM event WHERE resource = :id", id=by_name["other"].id)
        assert {"deposit.low", "deposit.exhausted"} <= {event["type"] for event in told}
        assert by_name["other"].status == "destroyed"
        assert by_name["second"].status == "running"
        await world.check_books()


async def test_one_server_is_unfrozen_alone_and_only_once(town: Town) -> None:
    ids = await lost(town)
    first, second = (server for server, name in ids.items() if name in {"first", "second"})
    async with town.open() as world:
        await rebuild(world)
        await give(world, town.one, 9_000_000)
        await world.service.workers.clerk.carry_out(Unfreeze(server=first))
        with pytest.raises(Exception, match="is not frozen"):
            await world.service.workers.clerk.carry_out(Unfreeze(server=first))
        world.clock.advance(DAY)
        await world.tick("burn")
        assert not (await world.server(first)).frozen
        assert (await world.server(second)).frozen
        assert (await world.server(second)).charged_usdc == 0
        await world.check_books()


async def test_numbers_of_events_do_not_come_again(town: Town) -> None:
    async with town.open() as world:
        wallet = await world.customer("40.00")
        server = await rent(world, wallet)
        (newest,) = await world.rows("SELECT MAX(seq) AS seq FROM event")
    lose(town.folder)
    async with town.open() as world:
        await rebuild(world)
        (first,) = await world.rows("SELECT MIN(seq) AS seq FROM event WHERE resource = :id", id=server)
        assert first["seq"] > newest["seq"]


# --- what is not decided, and what is not spared ------------------------------------------------------------------


async def test_a_machine_without_an_owner_is_told_of_and_lives(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with open_world(tmp_path, clock=clock) as world:
        await rent(world, await world.customer("20.00"))
    lose(tmp_path)
    clock.advance(60)
    changed: Any = relabelled(owner=None)
    async with open_world(tmp_path, clock=clock, around=changed) as world:
        report = await rebuild(world)
        (sentence,) = report.undecided
        assert "does not say whose it is" in sentence
        await pass_hours(world, 3)
        assert len(await machines(world)) == 1


async def test_a_stray_that_these_books_would_know_is_destroyed_beside_one_that_they_would_not(
    tmp_path: Path,
) -> None:
    clock = VirtualClock()
    async with open_world(tmp_path, clock=clock) as world:
        old = await rent(world, await world.customer("20.00"))
    lose(tmp_path)
    clock.advance(60)
    async with open_world(tmp_path, clock=clock) as world:
        clock.advance(60)
        await world.cloud.plant_orphan(ServerId("srv_younger"))
        await pass_hours(world, 1)
        assert await machines(world) == {old: "running"}


async def test_what_hetzner_or_we_sell_no_more_is_its_wallets_again_at_the_nearest_price(
    tmp_path: Path,
) -> None:
    clock = VirtualClock()
    async with emulated(clock=clock) as hetzner:
        here = partial(open_world, tmp_path, clock=clock, first_answer_s=0.05)
        async with here(around=lambda _: hetzner.provider) as world:
            wallet = await world.customer("40.00")
            changed, unknown = [await rent(world, wallet, name=name) for name in ("changed", "unknown")]
            far = await rent(world, wallet, name="far", location="hel1")
        lose(tmp_path)
        clock.advance(60)
        with hetzner.emulator.lock:
            for machine in hetzner.emulator.world.servers.values():
                became = {changed: "cpx31", unknown: "cpx51"}.get(machine.labels["spawn-id"])
                if became is not None:
                    machine.server_type = hetzner.emulator.world.server_type(became)
        provider = hetzner.open(Surroundings(locations=("nbg1",)))
        async with here(around=lambda _: provider) as world:
            report = await rebuild(world)
            assert report.undecided == []
            prices = await PriceList.read(await provider.catalog(), world.settings, world.parts.db)
            asked = {offer.type: offer.daily_usdc for offer in prices.catalog.offers}
            like = {changed: "medium", far: "small", unknown: "large"}
            types = {changed: "medium", far: "small", unknown: "cpx51"}
            assert {one.server: one.type for one in report.rebuilt} == types
            assert {note.split()[0] for note in report.notes} == like.keys()
            for server_id, size in like.items():
                server = await world.server(server_id)
                assert (server.wallet, server.frozen) == (wallet.address, True)
                assert server.daily_usdc == asked[size]
                (note,) = [note for note in report.notes if note.startswith(server_id)]
                assert f"is a {server.provider_type} in {server.location}, which is not sold" in note
            await give(world, wallet, 9_000_000)
            await world.service.workers.clerk.carry_out(Unfreeze(server=None))
            await pass_hours(world, 2)
            assert (await world.server(unknown)).charged_usdc > 0
            await world.check_books()
