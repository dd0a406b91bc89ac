"""What the provider `hetzner` makes of an order, also when the answer to it is lost: read from the emulator's log."""

import asyncio
from collections.abc import AsyncIterator

import hcloud
import pytest
from msgspec.structs import replace
from spawn_providers.base import Change, Op, OpStatus, OutcomeUnknown, Refused, RefusedCode, Unavailable, Verb
from spawn_providers.conformance_steps import (
    OWNER,
    PUBLIC_KEY,
    ordinary_spec,
    reach_gone,
    running_machine,
    succeed,
)
from spawn_providers.hetzner.orders import Surroundings
from spawn_schemas.ids import Address, ServerId

from tests.contract.hetzner_subject import HetznerSubject, emulated
from tests.emulators.hetzner.app import TOKEN
from tests.emulators.hetzner.faults import Gateway, LostAnswer, LostRequest, Refuse, StaleList, Truncated

POST = "POST /servers"
KEY = ServerId("srv_wanted")
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBeV0SiDWEjCXl0FFOzPDUSMCtETFxxb22nNnRk0hwRg other"


@pytest.fixture
async def hetzner() -> AsyncIterator[HetznerSubject]:
    async with emulated() as subject:
        yield subject


async def ordered_in_the_end(hetzner: HetznerSubject, *, keys: tuple[str, ...]) -> Op:
    spec = replace(await ordinary_spec(hetzner), public_keys=keys)
    for _ in range(20):
        try:
            return await hetzner.provider.create(KEY, spec)
        except OutcomeUnknown:
            await hetzner.pass_time(5)
    raise AssertionError("the order never came to an end")


UNCLEAR = [
    LostAnswer(),
    LostRequest(),
    Truncated(),
    Gateway(status=502, after_effect=True),
    Gateway(status=504),
    Refuse(code="server_error", after_effect=True),
    Refuse(code="unavailable"),
    Refuse(code="timeout", after_effect=True),
]


@pytest.mark.parametrize("fault", UNCLEAR, ids=repr)
async def test_an_unclear_answer_is_looked_after_and_never_repeated_by_itself(
    hetzner: HetznerSubject, fault: LostAnswer
) -> None:
    spec = await ordinary_spec(hetzner)
    hetzner.emulator.faults.plan(POST, fault)
    try:
        await hetzner.provider.create(KEY, spec)
    except OutcomeUnknown:
        assert hetzner.emulator.world.servers == {}
    else:
        assert len(hetzner.emulator.world.servers) == 1
    assert len(hetzner.emulator.calls(POST)) == 1
    op = await hetzner.provider.create(KEY, spec)
    await succeed(hetzner, op)
    assert [s.name for s in hetzner.emulator.world.servers.values()] == ["sp-wanted"]


async def test_a_lost_root_password_is_reset(hetzner: HetznerSubject) -> None:
    hetzner.emulator.faults.plan(POST, LostAnswer())
    op = await ordered_in_the_end(hetzner, keys=())
    await succeed(hetzner, op)
    [server] = hetzner.emulator.world.servers.values()
    assert op.root_password == server.root_password
    assert len(hetzner.emulator.calls("POST /servers/{id}/actions/reset_password")) == 1
    again = await ordered_in_the_end(hetzner, keys=())
    assert (again.ref, again.root_password) == (op.ref, op.root_password)


async def test_who_was_told_and_could_not_write_it_down_is_told_again(hetzner: HetznerSubject) -> None:
    first, again = [await ordered_in_the_end(hetzner, keys=()) for _ in range(2)]
    [server] = hetzner.emulator.world.servers.values()
    assert again.root_password == first.root_password == server.root_password
    assert hetzner.emulator.calls("POST /servers/{id}/actions/reset_password") == []


async def test_a_password_that_died_with_the_process_is_reset(hetzner: HetznerSubject) -> None:
    told = await ordered_in_the_end(hetzner, keys=())
    await succeed(hetzner, told)
    later = await hetzner.reopen()
    op = await later.create(KEY, replace(await ordinary_spec(hetzner), public_keys=()))
    assert op.ref == told.ref
    assert op.root_password not in {None, told.root_password}


async def test_with_a_key_no_password_is_reset(hetzner: HetznerSubject) -> None:
    hetzner.emulator.faults.plan(POST, LostAnswer())
    op = await ordered_in_the_end(hetzner, keys=(PUBLIC_KEY,))
    assert op.root_password is None
    assert hetzner.emulator.calls("POST /servers/{id}/actions/reset_password") == []


async def test_a_machine_that_no_list_shows_yet_is_not_made_twice(hetzner: HetznerSubject) -> None:
    spec = await ordinary_spec(hetzner)
    hetzner.emulator.faults.plan(POST, LostAnswer())
    hetzner.emulator.faults.plan("GET /servers", StaleList(), StaleList())
    for _ in range(2):
        with pytest.raises(OutcomeUnknown):
            await hetzner.provider.create(KEY, spec)
    op = await hetzner.provider.create(KEY, spec)
    assert [str(id_) for id_ in hetzner.emulator.world.servers] == [op.ref]


@pytest.mark.parametrize("looking", ["GET /servers", "GET /servers/{id}/actions"])
async def test_what_was_ordered_and_cannot_be_looked_for_is_unknown(
    hetzner: HetznerSubject, looking: str
) -> None:
    spec = await ordinary_spec(hetzner)
    hetzner.emulator.faults.plan(POST, LostAnswer())
    hetzner.emulator.faults.plan(looking, Refuse(code="server_error"))
    with pytest.raises(OutcomeUnknown):
        await hetzner.provider.create(KEY, spec)
    assert (await hetzner.provider.create(KEY, spec)).ref in map(str, hetzner.emulator.world.servers)


async def test_a_list_that_lags_brings_nobody_back(hetzner: HetznerSubject) -> None:
    machine = await running_machine(hetzner)
    await hetzner.pass_time(120)
    await succeed(hetzner, await hetzner.provider.delete(machine.ref))
    await reach_gone(hetzner, machine.ref)
    hetzner.emulator.stale_ms = 60_000
    assert machine.key is not None
    assert await hetzner.provider.find(machine.key) is None
    assert [m async for m in hetzner.provider.list_owned()] == []


async def test_no_room_is_believed_only_of_a_machine_that_is_not_there(hetzner: HetznerSubject) -> None:
    spec = await ordinary_spec(hetzner)
    hetzner.emulator.faults.plan(
        POST, Refuse(code="resource_unavailable"), None, Refuse(code="placement_error")
    )
    with pytest.raises(Refused) as refused:
        await hetzner.provider.create(KEY, spec)
    assert refused.value.code is RefusedCode.OUT_OF_CAPACITY
    made = await hetzner.provider.create(KEY, spec)
    assert (await hetzner.provider.create(KEY, spec)).ref == made.ref


async def test_a_name_that_somebody_else_took_is_a_conflict(hetzner: HetznerSubject) -> None:
    spec = await ordinary_spec(hetzner)
    await hetzner.provider.create(KEY, spec)
    [server] = hetzner.emulator.world.servers.values()
    server.labels = {}
    with pytest.raises(Refused, match="not ours") as refused:
        await (await hetzner.reopen()).create(KEY, spec)
    assert refused.value.code is RefusedCode.CONFLICT


async def test_an_order_carries_labels_and_the_operators_surroundings() -> None:
    async with emulated() as probe:
        with probe.emulator.lock:
            world = probe.emulator.world
            network, firewall = world.add_network("inside"), world.add_firewall("front")
        around = Surroundings(
            network_id=network.id, firewall_id=firewall.id, ssh_key_names=("operator",), locations=("nbg1",)
        )
        provider = probe.open(around)
        hcloud.Client(TOKEN, api_endpoint=probe.endpoint).ssh_keys.create("operator", OTHER_KEY)
        spec = replace(await ordinary_spec(probe), location="nbg1")
        await provider.create(KEY, replace(spec, user_data="#!/bin/sh\n", ipv6_only=True))
        [order] = probe.emulator.calls(POST)
        assert (
            order.labels.items()
            >= {
                "spawn-id": KEY,
                "spawn-wallet": OWNER,
                "spawn-hostname": spec.hostname,
                "spawn-type": spec.provider_type,
            }.items()
        )
        assert (order.body["networks"], order.body["firewalls"]) == (
            [network.id],
            [{"firewall": firewall.id}],
        )
        assert order.body["ssh_keys"][1:] == ["operator"]
        assert order.body["user_data"] == "#!/bin/sh\n"
        assert order.body["public_net"] == {"enable_ipv4": False, "enable_ipv6": True}
        assert {offer.location for offer in (await provider.catalog()).offers} == {"nbg1"}


async def test_two_wallets_bring_one_key_and_the_last_machine_takes_it_along(hetzner: HetznerSubject) -> None:
    spec = await ordinary_spec(hetzner)
    ops = [
        await hetzner.provider.create(hetzner.new_key(), replace(spec, owner=Address("0x" + digit * 40)))
        for digit in "12"
    ]
    [key] = hetzner.emulator.world.ssh_keys.values()
    assert key.labels == {"spawn-key": "managed"}
    for op in ops:
        await succeed(hetzner, op)
        await hours_pass(hetzner, 3)
        assert list(hetzner.emulator.world.ssh_keys) == [key.id]
        await succeed(hetzner, await hetzner.provider.delete(op.ref))
        await reach_gone(hetzner, op.ref)
    await hours_pass(hetzner, 3)
    assert hetzner.emulator.world.ssh_keys == {}
    op = await hetzner.provider.create(hetzner.new_key(), spec)
    assert len(hetzner.emulator.world.ssh_keys) == 1


async def test_a_key_stays_for_an_hour_after_it_was_seen_unused(hetzner: HetznerSubject) -> None:
    machine = await running_machine(hetzner)
    await succeed(hetzner, await hetzner.provider.delete(machine.ref))
    await reach_gone(hetzner, machine.ref)
    for left in (1, 1, 0):
        async for _ in hetzner.provider.list_owned():
            pass
        assert len(hetzner.emulator.world.ssh_keys) == left
        await hetzner.pass_time(1_800)


async def hours_pass(hetzner: HetznerSubject, hours: int) -> None:
    """With an inventory each hour."""
    for _ in range(hours):
        async for _ in hetzner.provider.list_owned():
            pass
        await hetzner.pass_time(3_600)


async def test_a_key_that_is_not_ours_is_used_and_stays(hetzner: HetznerSubject) -> None:
    op = await hetzner.provider.create(KEY, await ordinary_spec(hetzner))
    [key] = hetzner.emulator.world.ssh_keys.values()
    key.labels = {}
    await succeed(hetzner, op)
    await succeed(hetzner, await hetzner.provider.delete(op.ref))
    await hours_pass(hetzner, 4)
    assert list(hetzner.emulator.world.ssh_keys) == [key.id]


async def test_keys_that_vanished_or_came_from_elsewhere_meanwhile(hetzner: HetznerSubject) -> None:
    spec = await ordinary_spec(hetzner)
    other = await hetzner.reopen()
    await asyncio.gather(
        *(provider.create(hetzner.new_key(), spec) for provider in (hetzner.provider, other, other))
    )
    assert len(hetzner.emulator.world.ssh_keys) == 1
    hetzner.emulator.world.ssh_keys.clear()
    await hetzner.provider.create(hetzner.new_key(), spec)
    assert len(hetzner.emulator.world.ssh_keys) == 1


async def test_addresses_die_with_their_machines_even_if_hetzner_forgot(hetzner: HetznerSubject) -> None:
    hetzner.emulator.world.auto_deletes = False
    machine = await running_machine(hetzner)
    assert [m async for m in hetzner.provider.list_owned()] == [machine]
    assert all(ip.auto_delete for ip in hetzner.emulator.world.primary_ips.values())
    await succeed(hetzner, await hetzner.provider.delete(machine.ref))
    await reach_gone(hetzner, machine.ref)
    assert hetzner.emulator.world.primary_ips == {}


async def test_the_token_is_in_no_error_and_no_log(
    hetzner: HetznerSubject, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    spec = await ordinary_spec(hetzner)
    hetzner.emulator.bucket.drain()
    with pytest.raises(Unavailable) as limited:
        await hetzner.provider.create(KEY, spec)
    hetzner.emulator.may_write[TOKEN] = False
    await hetzner.pass_time(3_600)
    with pytest.raises(Unavailable, match="token_readonly"):
        await hetzner.provider.create(KEY, spec)
    assert limited.value.retry_after_s > 1
    for text in (str(limited.value), caplog.text):
        assert TOKEN[:8] not in text


async def test_an_error_that_repeats_the_token_is_not_passed_on(
    hetzner: HetznerSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await running_machine(hetzner)

    def says_too_much(*_: object, **__: object) -> None:
        raise hcloud.APIException("locked", f"not with {TOKEN[:12]}…", None)

    monkeypatch.setattr(hcloud.Client, "request", says_too_much)
    with pytest.raises(Refused, match=r"not with \[token\]…") as refused:
        await hetzner.provider.act(machine.ref, Verb.REBOOT, Change())
    assert TOKEN[:4] not in refused.value.message


async def test_a_vanished_machine_is_gone_in_every_respect(hetzner: HetznerSubject) -> None:
    machine = await running_machine(hetzner)
    hetzner.emulator.vanish(int(machine.ref))
    await hetzner.pass_time(60)
    assert machine.key is not None
    assert await hetzner.provider.get(machine.ref) is None
    assert await hetzner.provider.find(machine.key) is None
    for verb, change in ((Verb.START, Change()), (Verb.REBUILD, Change(image="debian-12"))):
        with pytest.raises(Refused) as refused:
            await hetzner.provider.act(machine.ref, verb, change)
        assert refused.value.code is RefusedCode.NOT_FOUND
    op = await hetzner.provider.delete(machine.ref)
    [state] = await hetzner.provider.poll([op.handle])
    assert state.status is OpStatus.SUCCESS
