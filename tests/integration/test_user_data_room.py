"""How much user data fits beside what we plant, and what becomes of machines that take none."""

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from spawn_providers import cloud_init
from spawn_providers.base import Capabilities, Provider
from spawn_providers.hetzner import rebuilding

from spawn.domain.host_keys import SEED_BYTES, host_key
from spawn.services.boots import LOGIN_BYTES
from tests.harness import BASE_URL, ORDER, VirtualClock, World, open_world
from tests.integration.server_steps import Recorder, drive, order, recording, rent, show
from tests.wallets import Wallet

ROOM = 32 * 1024


def script(length: int) -> str:
    return "#!/bin/sh\n".ljust(length, "#")


@pytest.mark.parametrize("more", [{}, {"host_key": False}], ids=["key", "no key"])
async def test_what_does_not_fit_is_refused_before_it_is_paid_and_says_what_would(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        refused = await world.ask("POST", "/v1/servers", ORDER | more | {"user_data": script(ROOM)})
        assert refused.status_code == 400, refused.text
        error = refused.json()["error"]
        left = error["details"]["bytes_left"]
        assert error["details"]["bytes"] == ROOM
        assert f"{left} bytes" in error["message"]
        one_more = await world.ask("POST", "/v1/servers", ORDER | more | {"user_data": script(left + 1)})
        assert one_more.json()["error"]["details"] == {"bytes": left + 1, "bytes_left": left}
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet, user_data=script(left), **more)
        told = recorders[0].specs[0].user_data
        assert told is not None
        assert ROOM - 1024 - 512 < len(told.encode()) <= ROOM
        # A rebuild may have to say that no key is left, and a password as well.
        again = cloud_init.joined(told, rebuilding.only_keys(()), rebuilding.with_password("x" * 24))
        assert again is not None
        assert len(again.encode()) <= min(ROOM, len(told.encode()) + LOGIN_BYTES)
        rebuilt = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/rebuild", {"image": "debian-12"})
        assert rebuilt.status_code == 200, rebuilt.text


async def register(world: World, wallet: Wallet, number: int) -> str:
    body = {"name": f"key-{number}", "public_key": host_key(bytes([number]) * SEED_BYTES).public}
    answer = await world.sign(wallet, "POST", "/v1/ssh-keys", body)
    assert answer.status_code == 201, answer.text
    key: str = answer.json()["ssh_key"]["id"]
    return key


async def full(world: World, wallet: Wallet, **more: Any) -> str:
    """A server that runs, with as much user data as there is room for."""
    error = (await order(world, wallet, user_data=script(ROOM), **more)).json()["error"]
    return await rent(world, wallet, user_data=script(error["details"]["bytes_left"]), **more)


async def refused_rebuild(world: World, wallet: Wallet, server_id: str) -> None:
    """What is said of a rebuild for which there is no room. It costs nothing."""
    before = await world.available(wallet.address)
    answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/rebuild", {"image": "debian-12"})
    assert answer.status_code == 409, answer.text
    error = answer.json()["error"]
    assert await world.available(wallet.address) == before
    assert error["details"]["bytes"] > error["details"]["bytes_max"] == ROOM
    assert "Order a new server" in error["next"]


async def test_a_longer_address_of_ours_is_noticed_before_a_rebuild_is_paid(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with open_world(tmp_path, clock=clock) as world:
        wallet = await world.customer("20.00")
        server_id = await full(world, wallet)
    for length, fits in ((100, True), (2_000, False)):
        url = BASE_URL + "/" + "x" * length
        async with open_world(tmp_path, clock=clock, public_url=url) as world:
            if not fits:
                await refused_rebuild(world, wallet, server_id)
                continue
            path = f"/v1/servers/{server_id}/rebuild"
            done = await world.sign(wallet, "POST", path, {"image": "debian-12"})
            assert done.status_code == 200, done.text
            await drive(world)


async def test_the_keys_that_are_left_take_room_at_a_rebuild(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("40.00")
        keys = [await register(world, wallet, number) for number in range(8)]
        server_id = await full(world, wallet, ssh_keys=keys)
        path = f"/v1/servers/{server_id}/rebuild"
        done = await world.sign(wallet, "POST", path, {"image": "debian-12"})
        assert done.status_code == 200, done.text
        await drive(world)
        assert (await world.sign(wallet, "DELETE", f"/v1/ssh-keys/{keys[0]}")).status_code == 200
        await refused_rebuild(world, wallet, server_id)
        for key in keys[1:5]:
            assert (await world.sign(wallet, "DELETE", f"/v1/ssh-keys/{key}")).status_code == 200
        fewer = await world.sign(wallet, "POST", path, {"image": "debian-12"})
        assert fewer.status_code == 200, fewer.text


async def test_a_key_of_ours_takes_room(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        left = []
        for host_key in (True, False):
            body = ORDER | {"user_data": script(ROOM), "host_key": host_key}
            error = (await world.ask("POST", "/v1/servers", body)).json()["error"]
            left.append(error["details"]["bytes_left"])
        assert left[0] < left[1] < ROOM


async def test_text_that_must_be_encoded_is_measured_as_it_is_sent(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        for count in (9_000, 10_000, 10_500, 11_000, 12_000):
            await order(world, wallet, name=f"of-{count}", user_data="#!/bin/sh\n" + "é" * count)
        sizes = [len((spec.user_data or "").encode()) for spec in recorders[0].specs]
        assert 0 < len(sizes) < 5
        assert max(sizes) <= ROOM


class Plain(Recorder):
    """A cloud whose machines take no user data."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(self.inner.capabilities, user_data_bytes=0)

    @capabilities.setter
    def capabilities(self, value: Capabilities) -> None:
        raise AttributeError("the capabilities are this one's")


async def test_where_machines_take_no_user_data_nothing_is_planted(tmp_path: Path) -> None:
    clouds: list[Plain] = []

    def around(inner: Provider) -> Provider:
        clouds.append(Plain(inner))
        return clouds[0]

    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        refused = await order(world, wallet, user_data="#!/bin/sh\n")
        assert refused.status_code == 400
        assert "user_data" in refused.json()["error"]["message"]
        server_id = await rent(world, wallet)
        rebuilt = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/rebuild", {"image": "debian-12"})
        assert rebuilt.status_code == 200
        await drive(world)
        assert [spec.user_data for spec in clouds[0].specs] == [None]
        assert [change.user_data for change in clouds[0].rebuilds] == [None]
        shown = await show(world, wallet, server_id)
        assert (shown["ssh_host_keys"], shown["known_hosts"], shown["ready"]) == ([], None, None)


async def test_an_order_without_user_data_is_told_only_what_we_plant(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        for given in ({}, {"user_data": ""}, {"user_data": " \n"}):
            await order(world, wallet, name=f"of-{len(recorders[0].specs)}", **given)
        first, *others = (spec.user_data or "" for spec in recorders[0].specs)
        assert [len(told) for told in others] == [len(first)] * 2
