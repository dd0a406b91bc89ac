"""How the provider `hetzner` acts on machines and follows them, and how few calls that takes: read from the log."""

import asyncio
import json
from collections.abc import AsyncIterator
from email import message_from_string

import pytest
from spawn_providers.base import (
    Change,
    InstanceStatus,
    OpStatus,
    OutcomeUnknown,
    Refused,
    RefusedCode,
    Unavailable,
    Verb,
)
from spawn_providers.conformance_steps import (
    OWNER,
    PUBLIC_KEY,
    ordinary_spec,
    reach,
    reach_gone,
    running_machine,
    succeed,
)

from tests.contract.hetzner_subject import HetznerSubject, emulated
from tests.contract.test_hetzner_orders import OTHER_KEY
from tests.emulators.hetzner.faults import LostAnswer, LostRequest, Refuse, Slow

REBUILD = "POST /servers/{id}/actions/rebuild"
POLL = "GET /actions"
READ = "GET /servers/{id}"
SCRIPT = "#!/bin/sh\ntrue\n"


@pytest.fixture
async def hetzner() -> AsyncIterator[HetznerSubject]:
    async with emulated() as subject:
        yield subject


async def test_deleting_clears_the_protection_of_a_machine_of_ours(hetzner: HetznerSubject) -> None:
    machine = await running_machine(hetzner)
    hetzner.emulator.world.servers[int(machine.ref)].protected = True
    await succeed(hetzner, await hetzner.provider.delete(machine.ref))
    await reach_gone(hetzner, machine.ref)


async def test_the_protection_of_others_stays(hetzner: HetznerSubject) -> None:
    machine = await running_machine(hetzner)
    server = hetzner.emulator.world.servers[int(machine.ref)]
    server.protected, server.labels = True, {}
    with pytest.raises(Refused) as refused:
        await hetzner.provider.delete(machine.ref)
    assert refused.value.code is RefusedCode.CONFLICT
    assert server.protected


@pytest.mark.parametrize("ref", ["no-such", "1/actions/poweroff", "²", ""])
async def test_a_reference_that_hetzner_never_gave_reaches_nobody(hetzner: HetznerSubject, ref: str) -> None:
    before = len(hetzner.emulator.log)
    assert await hetzner.provider.get(ref) is None
    with pytest.raises(Refused) as refused:
        await hetzner.provider.act(ref, Verb.START, Change())
    assert refused.value.code is RefusedCode.NOT_FOUND
    assert len(hetzner.emulator.log) == before


@pytest.mark.parametrize(
    ("verb", "change"),
    [(Verb.REBOOT, Change()), (Verb.POWEROFF, Change()), (Verb.REBUILD, Change(image="debian-12"))],
)
async def test_a_verb_whose_answer_was_lost_is_found_while_it_runs(
    hetzner: HetznerSubject, verb: Verb, change: Change
) -> None:
    machine = await running_machine(hetzner)
    operation = REBUILD if verb is Verb.REBUILD else f"POST /servers/{{id}}/actions/{verb.value}"
    hetzner.emulator.faults.plan(operation, LostAnswer())
    op = await hetzner.provider.act(machine.ref, verb, change)
    [state] = await hetzner.provider.poll([op.handle])
    assert (state.status, len(hetzner.emulator.calls(operation))) == (OpStatus.RUNNING, 1)
    assert (op.root_password is not None) == (verb is Verb.REBUILD)
    await succeed(hetzner, op)


async def test_a_verb_that_never_arrived_stays_unknown(hetzner: HetznerSubject) -> None:
    machine = await running_machine(hetzner)
    hetzner.emulator.faults.plan(REBUILD, LostRequest())
    with pytest.raises(OutcomeUnknown):
        await hetzner.provider.act(machine.ref, Verb.REBUILD, Change(image="debian-12"))
    assert len(hetzner.emulator.calls(REBUILD)) == 1


async def test_a_refused_verb_whose_aim_is_reached_has_succeeded(hetzner: HetznerSubject) -> None:
    machine = await running_machine(hetzner)
    hetzner.emulator.faults.plan("POST /servers/{id}/actions/poweron", Refuse(code="locked"))
    await succeed(hetzner, await hetzner.provider.act(machine.ref, Verb.START, Change()))
    hetzner.emulator.faults.plan("POST /servers/{id}/actions/poweroff", Refuse(code="locked"))
    with pytest.raises(Refused) as refused:
        await hetzner.provider.act(machine.ref, Verb.POWEROFF, Change())
    assert refused.value.code is RefusedCode.CONFLICT


def parts_of(user_data: str) -> list[str]:
    return [
        str(part.get_payload()) for part in message_from_string(user_data).walk() if not part.is_multipart()
    ]


async def test_a_rebuild_tells_cloud_init_who_may_log_in(hetzner: HetznerSubject) -> None:
    machine = await running_machine(hetzner)
    passwords = []
    for keys in ((PUBLIC_KEY,), (OTHER_KEY,), ()):
        op = await hetzner.provider.act(
            machine.ref, Verb.REBUILD, Change(image="debian-12", public_keys=keys, user_data=SCRIPT)
        )
        await succeed(hetzner, op)
        await reach(hetzner, machine.ref, InstanceStatus.RUNNING)
        passwords.append(op.root_password)
    assert passwords[:2] == [None, None]
    same, *told = (call.body["user_data"] for call in hetzner.emulator.calls(REBUILD))
    assert same == SCRIPT
    scripts, configs = zip(*((first, rest) for first, *rest in map(parts_of, told)), strict=True)
    assert set(scripts) == {SCRIPT}
    other, gone, none = (json.loads(t.removeprefix("#cloud-config\n")) for texts in configs for t in texts)
    assert (other["allow_public_ssh_keys"], other["ssh_authorized_keys"]) == (False, [OTHER_KEY])
    assert (gone["allow_public_ssh_keys"], gone["ssh_authorized_keys"]) == (False, [])
    root = {"name": "root", "password": passwords[2], "type": "text"}
    assert none["chpasswd"] == {"expire": True, "users": [root]}


async def test_a_hundred_ops_are_polled_in_a_few_calls(hetzner: HetznerSubject) -> None:
    spec = await ordinary_spec(hetzner)
    ops = [await hetzner.provider.create(hetzner.new_key(), spec) for _ in range(50)]
    later = await hetzner.reopen()  # which knows none of their hundred actions
    asked = await asyncio.gather(*(later.poll([op.handle]) for op in ops))
    assert all(state.status is OpStatus.RUNNING for [state] in asked)
    batches = [[v for k, v in call.query if k == "id"] for call in hetzner.emulator.calls(POLL)]
    assert sorted(map(len, batches)) == [25, 25, 25, 25]
    for _ in range(10):
        await later.poll([op.handle for op in ops])
    assert len(hetzner.emulator.calls(POLL)) == 4
    await hetzner.pass_time(60)
    assert {s.status for s in await later.poll([op.handle for op in ops])} == {OpStatus.SUCCESS}
    assert len(hetzner.emulator.calls(POLL)) == 8
    await later.poll([op.handle for op in ops])
    assert len(hetzner.emulator.calls(POLL)) == 8


async def test_looking_at_many_machines_is_one_sweep(hetzner: HetznerSubject) -> None:
    spec = await ordinary_spec(hetzner)
    ops = [await hetzner.provider.create(hetzner.new_key(), spec) for _ in range(60)]
    await hetzner.pass_time(1_000)
    before = len(hetzner.emulator.log)
    seen = await asyncio.gather(*(hetzner.provider.get(op.ref) for op in ops))
    assert {machine.status for machine in seen if machine is not None} == {InstanceStatus.RUNNING}
    assert len(hetzner.emulator.log) - before <= 6
    before = len(hetzner.emulator.log)
    await asyncio.gather(*(hetzner.provider.get(op.ref) for op in ops))
    assert len(hetzner.emulator.log) == before


async def test_what_we_changed_is_looked_at_anew(hetzner: HetznerSubject) -> None:
    machine = await running_machine(hetzner)
    looks = hetzner.emulator.calls
    assert await hetzner.provider.get(machine.ref) == machine
    seen = len(looks(READ))
    assert await hetzner.provider.get(machine.ref) == machine
    assert len(looks(READ)) == seen
    op = await hetzner.provider.act(machine.ref, Verb.POWEROFF, Change())
    await hetzner.provider.get(machine.ref)
    assert len(looks(READ)) == seen + 1
    await hetzner.pass_time(2)
    [state] = await hetzner.provider.poll([op.handle])
    assert state.status is OpStatus.RUNNING  # as it was two seconds ago
    await succeed(hetzner, op)
    off = await hetzner.provider.get(machine.ref)
    assert off is not None
    assert off.status is InstanceStatus.OFF


async def test_polls_stop_long_before_destroys(hetzner: HetznerSubject) -> None:
    machine = await running_machine(hetzner)
    op = await hetzner.provider.act(machine.ref, Verb.REBOOT, Change())
    with hetzner.emulator.lock:
        hetzner.emulator.bucket.drain(left=30)
    [_ async for _ in hetzner.provider.list_owned()]  # the answer says how little is left
    await hetzner.pass_time(5)
    before = len(hetzner.emulator.log)
    [state] = await hetzner.provider.poll([op.handle])
    assert state.status is OpStatus.RUNNING
    for call in (
        hetzner.provider.create(hetzner.new_key(), await ordinary_spec(hetzner)),
        hetzner.provider.act(machine.ref, Verb.START, Change()),
    ):
        with pytest.raises(Unavailable):
            await call
    with pytest.raises(Unavailable):
        [_ async for _ in hetzner.provider.list_owned()]
    assert machine.key is not None
    with pytest.raises(Unavailable):
        await hetzner.provider.find(machine.key)
    assert len(hetzner.emulator.log) == before
    assert await hetzner.provider.find(machine.key, to_destroy=True) == machine
    op = await hetzner.provider.delete(machine.ref)
    assert (op.ref, op.last_seen) == (machine.ref, machine)
    assert len(hetzner.emulator.log) <= before + 3


async def test_a_destroy_does_not_wait_for_threads_that_slow_reads_have(hetzner: HetznerSubject) -> None:
    machine = await running_machine(hetzner)
    slow = Slow(seconds=1.5)
    hetzner.emulator.faults.plan("GET /servers", *([slow] * 40))
    reading = [asyncio.create_task(hetzner.provider.find(hetzner.new_key())) for _ in range(40)]
    await asyncio.sleep(0)
    await hetzner.provider.delete(machine.ref)
    assert not any(task.done() for task in reading)
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)


async def test_a_wrong_token_is_said_at_once(hetzner: HetznerSubject) -> None:
    hetzner.emulator.may_write.clear()
    with pytest.raises(Unavailable, match="unauthorized"):
        await hetzner.provider.catalog()
    assert len(hetzner.emulator.log) == 1


async def test_an_owner_reads_the_same_from_a_list(hetzner: HetznerSubject) -> None:
    machine = await running_machine(hetzner)
    [listed] = [m async for m in (await hetzner.reopen()).list_owned()]
    assert (listed, listed.owner) == (machine, OWNER)
