"""The service on the emulated Hetzner: a server's life through the API, and what the start says of a bad token."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from spawn_providers.base import Provider
from spawn_providers.catalog import TB

from spawn.domain.operations import Operation
from spawn.parts import open_parts
from spawn.services.outcomes import Outcomes
from spawn.store.database import StoreError
from tests import databases
from tests.contract.hetzner_subject import HetznerSubject, emulated
from tests.emulators.hetzner.app import READ_ONLY_TOKEN, TOKEN
from tests.emulators.hetzner.faults import ActionFails, LostAnswer, Refuse
from tests.harness import VirtualClock, World, open_world, settings_in
from tests.integration.sending import moved
from tests.integration.server_steps import action, drive, order, show
from tests.wallets import Wallet

RESET = "POST /servers/{id}/actions/reset_password"


@asynccontextmanager
async def service(folder: Path) -> AsyncIterator[tuple[HetznerSubject, World]]:
    clock = VirtualClock()

    async with emulated(clock=clock) as hetzner:

        def instead(_: Provider) -> Provider:
            return hetzner.provider

        async with open_world(folder, clock=clock, around=instead, first_answer_s=0.05) as world:
            yield hetzner, world


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
