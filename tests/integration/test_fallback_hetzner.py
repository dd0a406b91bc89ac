"""Each of Hetzner's ways to say "not here, not now" sends an order to the next place that its buyer named."""

from pathlib import Path

import pytest
from spawn_providers.base import Provider
from spawn_providers.catalog import Catalog
from spawn_providers.hetzner.orders import Surroundings

from tests.contract.hetzner_subject import emulated
from tests.emulators.hetzner.faults import ActionFails, LostRequest, Refuse
from tests.emulators.hetzner.world import World as Project
from tests.harness import VirtualClock
from tests.integration.paid_calls import refusal
from tests.integration.server_steps import Recorder, accepted_at, action, burnt, compute_usdc, drive, order
from tests.integration.test_hetzner_service import opened, service

CREATE = "POST /servers"
WHOLE_S = 10.0
"""Real seconds: long enough for whatever a refusal takes here."""
ELSEWHERE = [{"location": "fsn1"}, {"location": "ash"}]
PLACE = ("cx23", "nbg1")


def depleted(project: Project) -> None:
    project.depleted.add(PLACE)


def withdrawn(project: Project) -> None:
    project.withdrawn.add(PLACE)


@pytest.mark.parametrize("full", [depleted, withdrawn, "placement_error", "resource_unavailable"])
async def test_a_refusal_that_means_not_here_goes_on_elsewhere(tmp_path: Path, full: object) -> None:
    async with service(tmp_path) as (hetzner, world):
        if isinstance(full, str):
            hetzner.emulator.faults.plan(CREATE, Refuse(code=full))
        elif callable(full):
            full(hetzner.emulator.world)
        wallet = await world.customer("20.00")
        created = (await order(world, wallet, fallback=ELSEWHERE)).json()["server"]
        await drive(world)
        assert (await world.server(created["id"])).location == "fsn1"
        [machine] = hetzner.emulator.world.servers.values()
        assert (machine.location.name, machine.status) == ("fsn1", "running")
        assert (await world.server(created["id"])).status == "running"
        await world.check_books()


class Lagging(Recorder):
    """A provider whose lists were read before a location was withdrawn."""

    before: Provider

    async def catalog(self) -> Catalog:
        return await self.before.catalog()


async def test_what_our_own_look_at_the_lists_refuses_is_tried_elsewhere_too(tmp_path: Path) -> None:
    async with emulated(clock=VirtualClock()) as hetzner:
        provider = Lagging(hetzner.open(Surroundings(locations=("fsn1", "hel1"))))
        provider.before = hetzner.provider
        async with opened(tmp_path, hetzner, provider, first_answer_s=0.05) as world:
            wallet = await world.customer("20.00")
            created = (await order(world, wallet, fallback=ELSEWHERE)).json()["server"]
            await drive(world)
            assert (await world.server(created["id"])).location == "fsn1"
            assert len(hetzner.emulator.calls(CREATE)) == 1
            await world.check_books()


@pytest.mark.parametrize("code", ["resource_unavailable", "placement_error"])
async def test_an_action_that_ends_for_want_of_room_is_cleared_away_and_goes_on_elsewhere(
    tmp_path: Path, code: str
) -> None:
    async with service(tmp_path) as (hetzner, world):
        wallet = await world.customer("20.00")
        hetzner.emulator.faults.plan(CREATE, ActionFails(code=code))
        created = (await order(world, wallet, fallback=[{"location": "ash"}])).json()
        server_id = created["server"]["id"]
        await drive(world)
        [machine] = hetzner.emulator.world.servers.values()
        assert (machine.location.name, machine.server_type.name) == ("ash", "cpx21")
        assert len(hetzner.emulator.world.primary_ips) == 2
        assert len(hetzner.emulator.calls("DELETE /servers/{id}")) == 1
        server = await world.server(server_id)
        assert (server.status, server.provider_ref) == ("running", str(machine.id))
        told = await world.sign(wallet, "GET", f"/v1/servers/{server_id}")
        assert told.json()["server"]["root_password"] == machine.root_password != created["root_password"]
        world.clock.advance(7_200)
        billing = world.service.services.billing
        await world.parts.db.write(lambda tx: billing.settle(tx, wallet.address, world.clock.now_s()))
        seconds = world.clock.now_s() - await accepted_at(world, server_id)
        assert await compute_usdc(world, server_id) == burnt(server.daily_usdc, seconds)
        await world.check_books()


async def test_an_action_that_fails_otherwise_is_the_orders_end(tmp_path: Path) -> None:
    async with service(tmp_path) as (hetzner, world):
        wallet = await world.customer("20.00")
        hetzner.emulator.faults.plan(CREATE, ActionFails(code="server_error"))
        created = (await order(world, wallet, fallback=ELSEWHERE)).json()
        await drive(world)
        assert (await action(world, created["action"]["id"]))["error"]["code"] == "provider_failed"
        assert hetzner.emulator.world.servers == {}
        assert await world.available(wallet.address) == 20_000_000
        await world.check_books()


async def test_a_lost_order_that_had_no_effect_goes_on_elsewhere(tmp_path: Path) -> None:
    async with service(tmp_path) as (hetzner, world):
        wallet = await world.customer("20.00")
        depleted(hetzner.emulator.world)
        hetzner.emulator.faults.plan(CREATE, LostRequest())
        created = (await order(world, wallet, fallback=ELSEWHERE)).json()["server"]
        assert created["location"] == "nbg1"
        await drive(world)
        [machine] = hetzner.emulator.world.servers.values()
        server = await world.server(created["id"])
        assert (server.status, server.location, machine.location.name) == ("running", "fsn1", "fsn1")
        await world.check_books()


async def test_a_full_project_is_full_everywhere(tmp_path: Path) -> None:
    async with service(tmp_path, first_answer_s=WHOLE_S) as (hetzner, world):
        wallet = await world.customer("20.00")
        hetzner.emulator.world.server_limit = 0
        error = refusal(await order(world, wallet, fallback=ELSEWHERE), 503, "out_of_capacity")
        assert "server limit reached" in error["message"]
        assert "in every location" in error["message"]
        assert "Sold too" not in error["message"]
        assert len(hetzner.emulator.calls(CREATE)) == 1
        await world.check_books()


async def test_what_the_list_calls_not_available_is_not_named_and_is_sold_all_the_same(
    tmp_path: Path,
) -> None:
    async with emulated(clock=VirtualClock()) as hetzner:
        project = hetzner.emulator.world
        project.said_full |= {("cx23", "hel1"), ("cx33", "nbg1")}
        offers = (await hetzner.provider.catalog()).offers
        assert {(o.type, o.location) for o in offers if not o.available} == {
            ("small", "hel1"),
            ("medium", "nbg1"),
        }
        async with opened(tmp_path, hetzner, hetzner.provider, first_answer_s=WHOLE_S) as world:
            wallet = await world.customer("20.00")
            depleted(project)
            message = refusal(await order(world, wallet), 503, "out_of_capacity")["message"]
            assert "small in fsn1" in message
            assert "large, arm-small in nbg1" in message
            assert "hel1" not in message
            assert "medium" not in message
            assert (await order(world, wallet, location="hel1")).status_code == 201
            await drive(world)
            await world.check_books()
