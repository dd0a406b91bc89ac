"""Where the provider has no room: what the buyer allowed instead is ordered, else all comes back with what is sold."""

from pathlib import Path
from typing import Any

import pytest
from spawn_providers.base import RefusedCode
from spawn_providers.simulated_faults import LostAnswer, LostRequest, Refusal

from tests.harness import World, open_world
from tests.integration.paid_calls import machines, refusal
from tests.integration.server_steps import drive, order, rent, show

FULL = Refusal(code=RefusedCode.OUT_OF_CAPACITY)
NBG1, FSN1, ASH = 150_000, 150_000, 320_000
ELSEWHERE = [{"location": "fsn1"}, {"location": "ash"}, {"type": "medium"}]


async def events(world: World, server: str) -> list[str]:
    rows = await world.rows("SELECT type FROM event WHERE resource = :id ORDER BY seq", id=server)
    return [row["type"] for row in rows]


@pytest.mark.parametrize(
    ("full", "type", "place", "machine", "daily"),
    [
        (0, "small", "nbg1", "cx23", NBG1),
        (1, "small", "fsn1", "cx23", FSN1),
        (2, "small", "ash", "cpx21", ASH),
        (3, "medium", "nbg1", "cx33", 220_000),
    ],
)
async def test_the_next_place_that_the_buyer_allowed(
    tmp_path: Path, full: int, type: str, place: str, machine: str, daily: int
) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", *[FULL] * full)
        created = await order(world, wallet, fallback=ELSEWHERE)
        assert created.status_code == 201, created.text
        answer: dict[str, Any] = created.json()
        assert (answer["server"]["type"], answer["server"]["location"]) == (type, place)
        await drive(world)
        server = await world.server(answer["server"]["id"])
        assert (server.status, server.provider_type, server.daily_usdc) == ("running", machine, daily)
        assert (server.cores, server.memory_gb) == (
            (3, 4) if place == "ash" else (4, 8) if type == "medium" else (2, 4)
        )
        assert (await show(world, wallet, server.id))["location"] == place
        assert await machines(world) == 1
        assert (await events(world, server.id)).count("server.updated") == full
        await world.check_books()


async def test_nothing_else_is_ordered_that_nobody_allowed(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        before = await world.available(wallet.address)
        for allowed in ([], [{"location": "fsn1"}]):
            world.cloud_faults.plan("create", *[FULL] * (1 + len(allowed)))
            error = refusal(await order(world, wallet, fallback=allowed), 503, "out_of_capacity")
            assert "hel1" in error["message"]
            assert ("fsn1" in error["message"]) is (allowed == []), "what is sold, and was not tried"
            assert "medium, large, arm-small in nbg1" in error["message"]
            assert await world.available(wallet.address) == before
        assert await machines(world) == 0
        await world.check_books()


async def test_another_no_than_for_want_of_room_is_final(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", Refusal(code=RefusedCode.INVALID))
        refusal(await order(world, wallet, fallback=ELSEWHERE), 400, "invalid_request")
        assert await machines(world) == 0


@pytest.mark.parametrize("lost", [LostAnswer(), LostRequest()])
async def test_behind_a_lost_answer_nothing_else_is_ordered(
    tmp_path: Path, lost: LostAnswer | LostRequest
) -> None:
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", lost, FULL)
        created = (await order(world, wallet, fallback=ELSEWHERE)).json()
        await drive(world)
        server = await world.server(created["server"]["id"])
        assert server.location == "nbg1"
        assert await machines(world) == (server.status == "running")
        await world.check_books()


async def test_a_restart_in_between_orders_the_next(tmp_path: Path) -> None:
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", FULL, LostRequest())
        created = (await order(world, wallet, fallback=ELSEWHERE)).json()["server"]["id"]
        assert await machines(world) == 0
        clock = world.clock
    async with open_world(tmp_path, clock=clock) as world:
        clock.advance(300)
        await drive(world)
        server = await world.server(created)
        assert (server.status, server.location) == ("running", "fsn1")
        assert await machines(world) == 1
        await world.check_books()


async def test_what_may_be_asked_for(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        for fallback, words in (
            ([{"location": "ash", "type": "arm-small"}], "arm-small is not sold in ash"),
            ([{"location": "atlantis"}], "no location atlantis"),
            ([{"location": "fsn1"}] * 6, "fallback"),
            ([{"place": "fsn1"}], "place"),
        ):
            error = refusal(await order(world, wallet, fallback=fallback), 400, "invalid_request")
            assert words in str(error), error
        low = await order(world, wallet, deposit="0.20", fallback=[{"location": "ash"}])
        assert refusal(low, 400, "invalid_request")["details"] == {"minimum_deposit": "0.32"}
        # The same as ordered is no other place, and is not tried twice.
        world.cloud_faults.plan("create", FULL)
        refusal(await order(world, wallet, fallback=[{}, {"location": "nbg1"}]), 503, "out_of_capacity")
        assert await rent(world, wallet, name="other", fallback=ELSEWHERE)
