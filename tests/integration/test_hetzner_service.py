"""The service on the emulated Hetzner: a server's life through the API, and what the start says of a bad token."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from spawn_providers.base import Provider, Unavailable
from spawn_providers.catalog import TB

from spawn.app import build
from spawn.domain.operations import Operation
from spawn.parts import open_parts
from spawn.services.admin import RefreshPrices
from spawn.services.outcomes import Outcomes
from spawn.services.price_list import PriceList
from spawn.store.database import StoreError
from tests import databases
from tests.contract.hetzner_subject import HetznerSubject, emulated
from tests.emulators.hetzner.app import READ_ONLY_TOKEN, TOKEN
from tests.emulators.hetzner.faults import ActionFails, LostAnswer, Refuse, Slow
from tests.harness import VirtualClock, World, open_world, settings_in
from tests.integration.sending import moved
from tests.integration.server_steps import action, drive, order, show
from tests.wallets import Wallet

RESET = "POST /servers/{id}/actions/reset_password"
DESTROY = "DELETE /servers/{id}"


@asynccontextmanager
async def service(
    folder: Path, *, first_answer_s: float = 0.05
) -> AsyncIterator[tuple[HetznerSubject, World]]:
    async with (
        emulated(clock=VirtualClock()) as hetzner,
        opened(folder, hetzner, hetzner.provider, first_answer_s=first_answer_s) as world,
    ):
        yield hetzner, world


def opened(
    folder: Path, hetzner: HetznerSubject, provider: Provider, *, first_answer_s: float
) -> AbstractAsyncContextManager[World]:
    return open_world(folder, clock=hetzner.clock, around=lambda _: provider, first_answer_s=first_answer_s)


async def ask(world: World, wallet: Wallet, method: str, path: str, body: dict[str, str]) -> None:
    answer = await world.sign(wallet, method, path, body)
    assert answer.status_code in {200, 201, 202}, answer.text
    await drive(world)
    running = await world.rows("SELECT * FROM operation WHERE status = 'error'")
    assert running == []


async def test_a_life_at_hetzner(tmp_path: Path) -> None:
    async with service(tmp_path) as (hetzner, world):
        wallet = await world.customer("20.00")
        ordered = (await order(world, wallet)).json()
        await drive(world)
        path = f"/v1/servers/{ordered['server']['id']}"
        for verb, body in (
            ("stop", {}),
            ("start", {}),
            ("resize", {"type": "medium"}),
            ("rebuild", {"image": "debian-12"}),
        ):
            await ask(world, wallet, "POST", f"{path}/{verb}", body)
        [machine] = hetzner.emulator.world.servers.values()
        assert (machine.status, machine.server_type.name) == ("running", "cx33")
        assert machine.image is not None
        assert machine.image.name == "debian-12"
        before = len(hetzner.emulator.log)
        shown = await show(world, wallet, ordered["server"]["id"])
        assert (shown["status"], shown["hetzner_id"]) == ("running", machine.id)
        assert len(hetzner.emulator.log) == before
        await ask(world, wallet, "DELETE", path, {})
        assert hetzner.emulator.world.servers == {}
        assert hetzner.emulator.world.primary_ips == {}
        await world.check_books()


async def test_traffic_is_counted_with_the_inventory_and_priced_as_hetzner_lists_it(tmp_path: Path) -> None:
    async with service(tmp_path) as (hetzner, world):
        wallet = await world.customer("40.00")
        ordered = (await order(world, wallet)).json()
        await drive(world)
        [machine] = hetzner.emulator.world.servers.values()
        with hetzner.emulator.lock:
            machine.ingoing_traffic, machine.outgoing_traffic = None, None
        world.clock.advance(600)
        await world.service.workers.reconciler.run()
        with hetzner.emulator.lock:
            machine.ingoing_traffic, machine.outgoing_traffic = 7 * TB, 22 * TB
        calls = len(hetzner.emulator.log)
        world.clock.advance(600)
        await world.service.workers.reconciler.run()
        asked = {entry.path for entry in list(hetzner.emulator.log)[calls:]}
        assert asked <= {"/servers", "/ssh_keys"}
        shown = (await show(world, wallet, ordered["server"]["id"]))["traffic"]
        assert shown == {
            "ingoing_bytes": 7 * TB,
            "outgoing_bytes": 22 * TB,
            "included_bytes": 20 * TB,
            "overage_usdc_per_tb": "1.20",
            "charged": "2.40",
        }
        # Hetzner's own price is 1.00 EUR.
        assert await moved(world, "cost:provider", "owed:provider") == 2 * 1_080_000
        await world.check_books()


async def test_a_server_without_keys_has_a_password_although_the_answer_was_lost(tmp_path: Path) -> None:
    async with service(tmp_path) as (hetzner, world):
        wallet = await world.customer("20.00")
        hetzner.emulator.faults.plan("POST /servers", LostAnswer())
        ordered = (await order(world, wallet)).json()
        assert ordered["root_password"] is None
        await drive(world)
        assert (await action(world, ordered["action"]["id"]))["status"] == "success"
        assert len(hetzner.emulator.world.servers) == 1
        assert len(hetzner.emulator.calls(RESET)) == 1
        kept = "SELECT kind FROM secret WHERE owner = :owner AND kind LIKE '%password'"
        assert [r["kind"] for r in await world.rows(kept, owner=ordered["server"]["id"])] == ["root_password"]
        await world.check_books()


async def test_a_server_without_keys_has_a_password_although_its_record_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, failures = Outcomes.record, ["the database is out of reach"]

    def failing(outcomes: Outcomes, *told: Any) -> Operation | None:
        if failures:
            raise ConnectionError(failures.pop())
        return record(outcomes, *told)

    monkeypatch.setattr(Outcomes, "record", failing)
    async with service(tmp_path) as (hetzner, world):
        wallet = await world.customer("20.00")
        server_id = (await order(world, wallet)).json()["server"]["id"]
        await drive(world)
        [machine] = hetzner.emulator.world.servers.values()
        assert (await show(world, wallet, server_id))["root_password"] == machine.root_password is not None
        assert failures == []
        await world.check_books()


async def rebuilt(
    hetzner: HetznerSubject, world: World, wallet: Wallet, *faults: ActionFails | LostAnswer
) -> tuple[str, str]:
    """A server without keys whose rebuild's answer is lost, when all has ended: its id and its action's."""
    server_id = (await order(world, wallet)).json()["server"]["id"]
    await drive(world)
    hetzner.emulator.faults.plan("POST /servers/{id}/actions/rebuild", LostAnswer())
    hetzner.emulator.faults.plan(RESET, *faults)
    answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/rebuild", {"image": "debian-12"})
    assert (answer.status_code, answer.json()["root_password"]) == (200, None)
    await drive(world, limit_s=3_600)
    return server_id, answer.json()["action"]["id"]


@pytest.mark.parametrize(
    "faults",
    [(), (ActionFails(), ActionFails()), (LostAnswer(),)],
    ids=["at once", "the guest did not listen yet", "lost again"],
)
async def test_a_rebuilt_server_without_keys_has_a_password_although_the_answer_was_lost(
    tmp_path: Path, faults: tuple[ActionFails | LostAnswer, ...]
) -> None:
    async with service(tmp_path) as (hetzner, world):
        wallet = await world.customer("20.00")
        server_id, rebuild = await rebuilt(hetzner, world, wallet, *faults)
        assert (await action(world, rebuild))["status"] == "success"
        [machine] = hetzner.emulator.world.servers.values()
        shown = await show(world, wallet, server_id)
        assert (shown["image"], shown["root_password"]) == ("debian-12", machine.root_password)
        assert len(hetzner.emulator.calls("POST /servers/{id}/actions/rebuild")) == 1
        assert len(hetzner.emulator.calls(RESET)) == 1 + len(faults)
        await world.check_books()


async def test_a_rebuilt_server_whose_password_cannot_be_reset_says_so_and_costs_no_fee(
    tmp_path: Path,
) -> None:
    async with service(tmp_path) as (hetzner, world):
        wallet = await world.customer("20.00")
        server_id, rebuild = await rebuilt(hetzner, world, wallet, *[ActionFails()] * 1_000)
        ended = await action(world, rebuild)
        assert (ended["status"], ended["error"]["code"]) == ("error", "provider_failed")
        assert "rebuild it again" in ended["error"]["message"]
        shown = await show(world, wallet, server_id)
        assert (shown["image"], shown["status"], shown["root_password"]) == ("debian-12", "running", None)
        kinds = [row["code"] for row in await world.rows("SELECT code FROM transfer WHERE code LIKE '%fee%'")]
        assert "fee_refund" in kinds, kinds
        await world.check_books()


async def test_where_there_is_no_room_the_next_place_is_ordered(tmp_path: Path) -> None:
    async with service(tmp_path) as (hetzner, world):
        wallet = await world.customer("20.00")
        full = (Refuse(code="resource_unavailable"), Refuse(code="placement_error"))
        hetzner.emulator.faults.plan("POST /servers", *full)
        ordered = (await order(world, wallet, fallback=[{"location": "hel1"}, {"location": "ash"}])).json()
        await drive(world)
        [machine] = hetzner.emulator.world.servers.values()
        assert (machine.location.name, machine.server_type.name, machine.status) == (
            "ash",
            "cpx21",
            "running",
        )
        server = await world.server(ordered["server"]["id"])
        assert (server.location, server.provider_type, server.provider_ref) == (
            "ash",
            "cpx21",
            str(machine.id),
        )
        await world.check_books()


async def test_after_a_restart_a_destroy_takes_the_last_calls(tmp_path: Path) -> None:
    async with emulated(clock=VirtualClock()) as hetzner:
        async with opened(tmp_path, hetzner, hetzner.provider, first_answer_s=0.05) as world:
            wallet = await world.customer("20.00")
            ordered = (await order(world, wallet)).json()
            await drive(world)
        provider = await hetzner.reopen()
        await provider.catalog()
        async with opened(tmp_path, hetzner, provider, first_answer_s=5.0) as world:
            hetzner.emulator.bucket.drain(left=20)
            assert await provider.find(hetzner.new_key()) is None  # its answer says how little is left
            with pytest.raises(Unavailable):
                await provider.find(hetzner.new_key())
            asked = len(hetzner.emulator.log)
            gone = await world.sign(wallet, "DELETE", f"/v1/servers/{ordered['server']['id']}")
            assert gone.status_code == 200
            assert hetzner.emulator.log[asked].operation == DESTROY
            await drive(world)
            assert hetzner.emulator.world.servers == {}
            await world.check_books()


async def test_a_destroy_does_not_wait_behind_slow_polls(tmp_path: Path) -> None:
    async with service(tmp_path, first_answer_s=10.0) as (hetzner, world):
        wallet = await world.customer("60.00")
        *others, doomed = [(await order(world, wallet, name=f"s-{n}")).json() for n in range(6)]
        await drive(world)
        for other in others:
            reboot = await world.sign(wallet, "POST", f"/v1/servers/{other['server']['id']}/reboot")
            assert reboot.status_code == 200, reboot.text
        for operation in ("GET /actions", "GET /servers/{id}", "GET /servers"):
            hetzner.emulator.faults.plan(operation, *([Slow(seconds=2.0)] * 4))
        world.clock.advance(5)
        log = hetzner.emulator.log
        before = len(log)
        await world.service.jobs["operations"].tick(world.clock.now_s())
        while len(log) == before:  # noqa: ASYNC110 - the emulator is in another thread, which tells nobody
            await asyncio.sleep(0)
        gone = await world.sign(wallet, "DELETE", f"/v1/servers/{doomed['server']['id']}")
        assert gone.status_code == 200
        [destroy] = hetzner.emulator.calls(DESTROY)
        # Nothing was asked of this machine first, and what the others asked has no answer yet.
        machine = (await world.server(doomed["server"]["id"])).provider_ref
        assert next(e.operation for e in list(log)[before:] if e.path == f"/servers/{machine}") == DESTROY
        asked = list(log)[before : list(log).index(destroy)]
        assert asked
        assert all(entry.status is None for entry in asked)
        await drive(world)
        await world.check_books()


@pytest.mark.parametrize(
    ("token", "location", "said"),
    [
        ("wrong", "", "SPAWN_HETZNER_TOKEN"),
        (TOKEN, "atlantis", "SPAWN_HETZNER_LOCATION"),
        (TOKEN, "nbg1", None),
        (READ_ONLY_TOKEN, "nbg1", None),
    ],
    ids=["wrong token", "no such location", "fine", "a token that only reads"],
)
async def test_what_the_start_says(tmp_path: Path, token: str, location: str, said: str | None) -> None:
    async with emulated() as hetzner:
        settings = settings_in(
            tmp_path,
            providers="hetzner",
            hetzner_token=token,
            hetzner_endpoint=hetzner.endpoint,
            hetzner_location=location,
        )
        databases.make(settings.database_url)
        if said is not None:
            with pytest.raises(StoreError, match=said):
                await open_parts(settings)
            return
        parts = await open_parts(settings)
        try:
            assert list(parts.providers) == ["hetzner"]
            assert {o.location for o in (await parts.providers["hetzner"].catalog()).offers} == {"nbg1"}
        finally:
            await parts.close()


@pytest.mark.parametrize("token", [TOKEN, "wrong"], ids=["an outage", "a token that is refused"])
async def test_a_restart_without_hetzner_sells_what_was_last_read(tmp_path: Path, token: str) -> None:
    async with emulated() as hetzner:
        settings = settings_in(
            tmp_path, providers="hetzner", hetzner_token=TOKEN, hetzner_endpoint=hetzner.endpoint
        )
        databases.make(settings.database_url)
        out_of_reach = replace(settings, hetzner_token=token)
        if token == TOKEN:
            out_of_reach = replace(settings, hetzner_endpoint="http://127.0.0.1:9/v1")
            with pytest.raises(
                StoreError, match="lists cannot be read: Hetzner cannot be reached"
            ) as refused:
                await open_parts(out_of_reach)
            assert "TOKEN" not in str(refused.value)
        parts = await open_parts(settings)
        try:
            service = await build(settings, parts, ticking=False)
            await service.workers.clerk.carry_out(RefreshPrices())
            before = await PriceList.open(parts.providers["hetzner"], settings, parts.db)
        finally:
            await parts.close()
        parts = await open_parts(out_of_reach)
        try:
            await build(out_of_reach, parts, ticking=False)
            after = await PriceList.open(parts.providers["hetzner"], out_of_reach, parts.db)
            assert after.catalog == before.catalog
            assert after.catalog.offers
        finally:
            await parts.close()
