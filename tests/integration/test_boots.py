"""What is planted into a machine, what it reports, and what its owner is shown of both."""

import re
from pathlib import Path
from typing import Any

import pytest
from spawn_providers.base import RefusedCode
from spawn_providers.simulated_faults import Breakdown, Fault, LostAnswer, LostRequest, Outage, Refusal

from spawn.domain.host_keys import public_of
from tests.harness import START_S, VirtualClock, World, open_world
from tests.integration.server_steps import Recorder, drive, order, recording, rent, show, stored_bytes
from tests.wallets import Wallet

SCRIPT = "#!/bin/sh\necho the-quick-brown-fox\n"
DONE = {"cloud_init": "done", "log": "finished\n"}
SAID = {"ssh": None, "cloud_init": "pending", "reported_at": None, "log": None}
NOWHERE = f"/v1/boots/{'0' * 64}"


def public_in(user_data: str) -> str:
    """The public half of the private key that this data plants."""
    (private,) = re.findall(r"-----BEGIN OPENSSH[^\"]*", user_data)
    return public_of(private.replace("\\n", "\n"))


def callback_in(user_data: str) -> str:
    (path,) = re.findall(r"http://spawn\.test(/v1/boots/[0-9a-f]{64})", user_data)
    return str(path)


def ordered(recorder: Recorder) -> str:
    """What the last machine that was ordered is told."""
    told = recorder.specs[-1].user_data
    assert told is not None
    return told


def rebuilt(recorder: Recorder) -> str:
    """What the machine that was rebuilt last is told."""
    told = recorder.rebuilds[-1].user_data
    assert told is not None
    return told


async def tell(world: World, path: str, body: object) -> int:
    answer = await world.ask("POST", path, body)
    assert answer.status_code != 200 or answer.json() == {"status": "recorded"}
    return answer.status_code


async def heard(world: World, wallet: Wallet) -> list[dict[str, Any]]:
    """What the owner was told of machines that are ready."""
    answer = await world.sign(wallet, "GET", "/v1/events?type=server.ready")
    return [event["data"] for event in answer.json()["events"]]


async def rebuild(world: World, wallet: Wallet, server_id: str) -> None:
    answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/rebuild", {"image": "debian-12"})
    assert answer.status_code == 200, answer.text


async def test_the_owner_is_shown_the_key_that_the_machine_has(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet, user_data=SCRIPT)
        told = ordered(recorders[0])
        shown = await show(world, wallet, server_id)
        assert SCRIPT in told
        assert shown["ssh_host_keys"] == [public_in(told)]
        assert shown["known_hosts"] == ",".join(shown["public_net"].values()) + f" {public_in(told)}"
        assert shown["ready"] == SAID
        for secret in ("OPENSSH PRIVATE KEY", "the-quick-brown-fox", callback_in(told)[-64:]):
            assert secret.encode() not in stored_bytes(tmp_path)


async def test_without_a_host_key_of_ours_the_machine_reports_all_the_same(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        own = "#cloud-config\nssh_keys: {ed25519_private: mine}\n"
        refused = await order(world, wallet, user_data=own)
        assert refused.status_code == 400
        assert "ssh_keys" in refused.json()["error"]["message"]
        server_id = await rent(world, wallet, user_data=own, host_key=False)
        told = ordered(recorders[0])
        assert "OPENSSH" not in told
        assert await tell(world, callback_in(told), DONE) == 200
        shown = await show(world, wallet, server_id)
        assert (shown["ssh_host_keys"], shown["known_hosts"]) == ([], None)
        assert shown["ready"]["cloud_init"] == "done"


@pytest.mark.parametrize(
    "fault", [LostRequest(), LostAnswer(), Outage()], ids=lambda fault: type(fault).__name__
)
async def test_an_order_made_again_plants_the_same(tmp_path: Path, fault: Fault) -> None:
    """Also by the process after the one that died, whose random numbers are others."""
    clock = VirtualClock(START_S)
    recorders, around = recording()
    async with open_world(tmp_path, clock=clock, around=around, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", fault)
        created = await order(world, wallet, user_data=SCRIPT)
    told = [ordered(recorders[0])]
    clock.advance(60)
    recorders, around = recording()
    async with open_world(tmp_path, clock=clock, around=around) as world:
        await drive(world)
        told += [spec.user_data or "" for spec in recorders[0].specs]
        shown = await show(world, wallet, created.json()["server"]["id"])
        assert shown["ssh_host_keys"] == [public_in(told[0])]
        assert await tell(world, callback_in(told[0]), DONE) == 200
    assert len(told) > 1 or isinstance(fault, LostAnswer)
    assert set(told) == {told[0]}


async def test_each_part_is_told_once_and_a_repetition_changes_nothing(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        path, since = callback_in(ordered(recorders[0])), (await world.server(server_id)).created_at
        assert await tell(world, path, {"ssh": True}) == 200
        first = (await show(world, wallet, server_id))["ready"]
        assert first["ssh"] is not None
        assert await heard(world, wallet) == []
        world.clock.advance(9)
        assert [await tell(world, path, body) for body in ({"ssh": True}, DONE)] == [200, 200]
        told = (await show(world, wallet, server_id))["ready"]
        assert told == first | {"cloud_init": "done", "log": "finished\n", "reported_at": told["reported_at"]}
        seconds = world.clock.now_s() - since
        world.clock.advance(9)
        again = [DONE, {"ssh": True}, {"cloud_init": "done"}, {"cloud_init": "failed", "log": "finished\n"}]
        assert [await tell(world, path, body) for body in again] == [200, 200, 404, 404]
        assert (await show(world, wallet, server_id))["ready"] == told
        (ready,) = await heard(world, wallet)
        assert (ready["server"], ready["cloud_init"], ready["seconds"]) == (server_id, "done", seconds)
        assert "log" not in ready


async def test_what_is_told_late_is_told(tmp_path: Path) -> None:
    """Its first report was lost on the way, and comes after the second."""
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        path = callback_in(ordered(recorders[0]))
        assert [await tell(world, path, body) for body in (DONE, {"ssh": True})] == [200, 200]
        ready = (await show(world, wallet, server_id))["ready"]
        assert (ready["ssh"] is not None, ready["cloud_init"]) == (True, "done")


async def test_a_failure_is_shown_with_a_log_that_no_terminal_obeys(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        log = "\x1b]0;title\x07apt\x00:\tno\r\nroot\u202e\x9b2J\n"
        path = callback_in(ordered(recorders[0]))
        assert await tell(world, path, {"cloud_init": "failed", "log": log}) == 200
        shown = (await show(world, wallet, server_id))["ready"]
        assert (shown["cloud_init"], shown["log"]) == (
            "failed",
            "\ufffd]0;title\ufffdapt\ufffd:\tno\nroot\ufffd\ufffd2J\n",
        )
        assert (await heard(world, wallet))[0]["cloud_init"] == "failed"
        renamed = await world.sign(wallet, "PATCH", f"/v1/servers/{server_id}", {"name": "other"})
        assert renamed.json()["server"]["ready"]["log"] is None
        answers = await world.rows("SELECT answer FROM reservation WHERE answer IS NOT NULL")
        assert all(b"title" not in bytes(row["answer"]) for row in answers)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ssh": False},
        {"ssh": "true"},
        {"cloud_init": "pending"},
        {"log": "alone"},
        {"cloud_init": "done", "log": "x" * 16_385},
        {"cloud_init": "done", "server": "srv_other"},
        [],
        b"{",
        b'{"cloud_init": "done", "log": "\xff"}',
        b"",
    ],
    ids=repr,
)
async def test_what_says_nothing_is_refused_and_may_be_said_better(tmp_path: Path, body: object) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        path = callback_in(ordered(recorders[0]))
        assert await tell(world, path, body) == 400
        assert (await show(world, wallet, server_id))["ready"] == SAID
        assert await tell(world, path, {"cloud_init": "done", "log": "x" * 16_384}) == 200


async def test_whoever_guesses_learns_nothing(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        await rent(world, wallet)
        path = callback_in(ordered(recorders[0]))
        await tell(world, path, DONE)
        told = []
        for where in (NOWHERE, path, "/v1/boots/x", path.upper().replace("/V1/BOOTS", "/v1/boots")):
            refused = (await world.ask("POST", where, {"cloud_init": "failed"})).json()["error"]
            told.append(refused | {"request_id": None})
        assert all(refused == told[0] for refused in told)
        assert told[0]["code"] == "not_found"


async def test_a_report_is_of_one_machine(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet, other = await world.customer("20.00"), await world.customer("20.00")
        mine = await rent(world, wallet)
        theirs = await rent(world, other)
        assert await tell(world, callback_in(ordered(recorders[0])), DONE) == 200
        assert (await show(world, wallet, mine))["ready"] == SAID
        assert (await show(world, other, theirs))["ready"]["cloud_init"] == "done"
        assert (len(await heard(world, wallet)), len(await heard(world, other))) == (0, 1)


async def test_reports_count_against_their_address(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_address_per_minute=3) as world:
        assert [await tell(world, NOWHERE, DONE) for _ in range(4)] == [404, 404, 404, 429]


async def test_nobody_reports_for_a_server_that_goes(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet, user_data=SCRIPT)
        path = callback_in(ordered(recorders[0]))
        await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        assert await tell(world, path, DONE) == 404
        await drive(world)
        assert await tell(world, path, DONE) == 404
        shown = await show(world, wallet, server_id)
        assert (shown["status"], shown["ssh_host_keys"], shown["ready"]) == ("destroyed", [], None)
        assert await heard(world, wallet) == []
        assert await world.rows("SELECT owner FROM secret WHERE owner <> 'spawn'") == []
        assert await world.rows("SELECT server_id FROM boot") == []


async def test_nothing_is_kept_of_a_server_that_failed_or_vanished(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", Breakdown())
        await order(world, wallet)
        await drive(world)
        server_id = await rent(world, wallet, name="vanishing")
        ref = (await world.server(server_id)).provider_ref
        assert ref is not None
        await world.tick("reconcile")
        await world.cloud.vanish(ref)
        await world.run_for(600, step_s=60)
        assert (await world.server(server_id)).status == "destroyed"
        assert await world.rows("SELECT owner FROM secret WHERE owner <> 'spawn'") == []
        assert await world.rows("SELECT server_id FROM boot") == []


async def test_a_rebuilt_machine_has_the_same_key_and_tells_anew(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet, user_data=SCRIPT)
        before = ordered(recorders[0])
        await tell(world, callback_in(before), DONE)
        for _ in range(2):
            at = world.clock.now_s()
            await rebuild(world, wallet, server_id)
            told = rebuilt(recorders[0])
            assert (await show(world, wallet, server_id))["ready"] == SAID
            assert SCRIPT in told
            assert public_in(told) == public_in(before)
            assert [await tell(world, callback_in(text), DONE) for text in (before, told)] == [404, 200]
            assert (await heard(world, wallet))[-1]["seconds"] == world.clock.now_s() - at
            await drive(world)
            shown = await show(world, wallet, server_id)
            assert (shown["ready"]["cloud_init"], shown["ssh_host_keys"]) == ("done", [public_in(before)])
            before = told
        assert len(await heard(world, wallet)) == 3


async def test_until_its_rebuild_begins_a_machine_goes_on_reporting(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        before = callback_in(ordered(recorders[0]))
        world.cloud_faults.plan("act", Refusal(code=RefusedCode.CONFLICT))
        refused = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/rebuild", {"image": "debian-12"})
        assert refused.status_code == 409
        assert await tell(world, before, {"ssh": True}) == 200
        world.cloud_faults.plan("act", Outage())
        await rebuild(world, wallet, server_id)
        assert await tell(world, before, DONE) == 200
        await drive(world)
        assert (await show(world, wallet, server_id))["ready"] == SAID
        assert await tell(world, callback_in(rebuilt(recorders[0])), {"ssh": True}) == 200


async def test_a_rebuilt_machine_may_be_faster_than_the_providers_answer(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        await tell(world, callback_in(ordered(recorders[0])), DONE)
        world.cloud_faults.plan("act", LostAnswer())
        await rebuild(world, wallet, server_id)
        world.clock.advance(40)
        path = callback_in(rebuilt(recorders[0]))
        assert await tell(world, path, {"cloud_init": "failed"}) == 200
        assert (await show(world, wallet, server_id))["ready"]["cloud_init"] == "failed"
        assert (await heard(world, wallet))[-1]["seconds"] == 40
        await drive(world)
        assert (await show(world, wallet, server_id))["ready"]["cloud_init"] == "failed"
        assert await tell(world, path, {"ssh": True}) == 200
