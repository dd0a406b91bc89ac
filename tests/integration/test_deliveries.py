"""Events reach webhooks: every one, in order per resource, signed, whatever receivers and crashes do."""

import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pytest
from spawn_ledger.tx import Tx
from spawn_schemas.events import EventType, ServerData
from standardwebhooks import WebhookVerificationError

from spawn.domain.retries import ATTEMPTS_MIN
from spawn.outbound.outbound import TIMEOUT_S
from spawn.services import deliveries
from spawn.services.events import emit
from tests.harness import World, open_world
from tests.integration.receivers import Message, receiving, saying
from tests.wallets import Wallet

HOUR: Final = 3600
DAY: Final = 86_400


async def hook(world: World, wallet: Wallet, url: str, **changes: Any) -> tuple[str, str]:
    """Register a webhook; its path and its secret."""
    made = await world.sign(wallet, "POST", "/v1/webhooks", {"url": url} | changes)
    assert made.status_code == 201, made.text
    return f"/v1/webhooks/{made.json()['webhook']['id']}", made.json()["secret"]


def running(server: str) -> ServerData:
    return ServerData(
        server=server,
        name="web",
        type="small",
        status="running",
        previous="off",
        reason=None,
        ipv4=None,
        ipv6=None,
    )


async def happen(
    world: World, wallet: Wallet, *servers: str, type: EventType = EventType.SERVER_UPDATED
) -> list[str]:
    """Something happens to each of these servers, in this order; the ids of the events."""
    at = world.clock.now_s()

    def tell(tx: Tx) -> list[str]:
        told = []
        for server in servers:
            assert emit(tx, wallet.address, type, running(server), resource=server, at=at)
            row = tx.one("SELECT MAX(seq) AS seq FROM event")
            told.append("" if row is None else f"evt_{row['seq']}")
        return told

    return await world.parts.db.write(tell)


async def send(world: World) -> None:
    await world.tick("deliveries")


async def log_of(world: World, wallet: Wallet, at: str) -> list[dict[str, Any]]:
    answer = await world.sign(wallet, "GET", f"{at}/deliveries?limit=100")
    found: list[dict[str, Any]] = answer.json()["deliveries"]
    return found


async def shown(world: World, wallet: Wallet, at: str) -> dict[str, Any]:
    view: dict[str, Any] = (await world.sign(wallet, "GET", at)).json()["webhook"]
    return view


async def pending(world: World) -> int:
    return len(await world.rows("SELECT seq FROM delivery WHERE state = 'pending'"))


def in_order(messages: Iterable[Message]) -> bool:
    """Whether each resource's events came in the order of their numbers."""
    by_resource: defaultdict[str, list[int]] = defaultdict(list)
    for message in messages:
        by_resource[message.event["resource"]].append(int(message.id.removeprefix("evt_")))
    return all(seqs == sorted(seqs) for seqs in by_resource.values())


async def test_an_event_arrives_signed_as_the_feed_shows_it(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, receiving() as receiver:
        owner = await world.customer()
        at, secret = await hook(world, owner, receiver.url, types=["server.updated"])
        await happen(world, owner, "srv_a")
        await happen(world, owner, "srv_a", type=EventType.SERVER_OFF)
        await send(world)
        (message,) = receiver.got
        event = message.verify(secret, world.clock.now_s())
        assert (event["id"], event["type"], event["resource"]) == (message.id, "server.updated", "srv_a")
        assert event["data"]["server"] == "srv_a"
        assert message.headers["Content-Type"] == "application/json"
        assert message.headers["User-Agent"].startswith("spawn/")
        with pytest.raises(WebhookVerificationError):
            message.verify(secret, world.clock.now_s() + HOUR)
        (entry,) = await log_of(world, owner, at)
        assert (entry["event"], entry["state"], entry["attempts"]) == (message.id, "delivered", 1)
        assert (entry["status_code"], entry["error"], entry["next_at"]) == (200, None, None)


async def test_a_test_goes_to_its_webhook_alone(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, receiving() as one, receiving() as other:
        owner = await world.customer()
        at, secret = await hook(world, owner, one.url, types=["deposit.low"])
        await hook(world, owner, other.url)
        tested = await world.sign(owner, "POST", f"{at}/test")
        await send(world)
        (message,) = one.got
        assert message.verify(secret, world.clock.now_s())["type"] == "webhook.test"
        assert (message.id, other.got) == (tested.json()["event"], [])


async def test_a_receiver_that_was_down_for_a_day_gets_everything_in_order_and_signed(tmp_path: Path) -> None:
    servers = [f"srv_{n}" for n in range(5)]
    async with open_world(tmp_path) as world, receiving() as receiver:
        receiver.status = 503
        owner = await world.customer()
        at, secret = await hook(world, owner, receiver.url)
        told: list[str] = []
        for hour in range(24):
            told += await happen(world, owner, *servers, servers[hour % 5])
            for _ in range(12):
                world.clock.advance(HOUR / 12)
                await send(world)
        assert await pending(world) == 144
        tries = len(receiver.got)
        assert tries < 200, "a dead receiver is asked ever more rarely"
        failing = await shown(world, owner, at)
        assert (failing["enabled"], failing["failing_since"] is None) == (True, False)
        receiver.status = 200
        for _ in range(13):
            world.clock.advance(HOUR)
            await send(world)
            if await pending(world) == 0:
                break
        arrived = [message.verify(secret, _sent_at(message))["id"] for message in receiver.accepted]
        assert sorted(arrived) == sorted(told)
        assert len(set(arrived)) == len(arrived) == 144
        assert in_order(receiver.accepted)
        assert (await shown(world, owner, at))["failing_since"] is None


def _sent_at(message: Message) -> int:
    return int(message.headers["webhook-timestamp"])


async def test_a_retry_holds_up_its_resource_and_no_other(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, receiving() as receiver:
        owner = await world.customer()
        at, _ = await hook(world, owner, receiver.url)
        receiver.decide = lambda message: 500 if message.event["resource"] == "srv_a" else 200
        one, _, two, _, three = await happen(world, owner, "srv_a", "srv_b", "srv_a", "srv_b", "srv_a")
        await send(world)
        assert [m.event["resource"] for m in receiver.accepted] == ["srv_b", "srv_b"]
        assert [m.id for m in receiver.got if m.event["resource"] == "srv_a"] == [one]
        waiting = [entry for entry in await log_of(world, owner, at) if entry["resource"] == "srv_a"]
        assert [entry["next_at"] is None for entry in waiting] == [True, True, False]
        receiver.decide = None
        world.clock.advance(6)
        await send(world)
        assert [m.id for m in receiver.accepted[2:]] == [one, two, three]
        assert in_order(receiver.accepted)


async def test_a_crash_between_sending_and_recording_sends_the_same_event_again(tmp_path: Path) -> None:
    async with receiving() as receiver:
        async with open_world(tmp_path) as world:
            owner = await world.customer()
            _, secret = await hook(world, owner, receiver.url)
            one, two = await happen(world, owner, "srv_a", "srv_a")
            # The claim is committed and the event sent, but the process dies before it can write that down.
            service = world.service.workers.deliveries
            (work,) = (await service._claim()).work
            await world.parts.outbound.post(work.url, deliveries.signed(work, world.clock.now_s()), work.body)
            clock = world.clock
        async with open_world(tmp_path, clock=clock) as world:
            await send(world)
            assert len(receiver.got) == 1, "the claim has not run out"
            clock.advance(deliveries.CLAIM_S)
            await send(world)
        assert [message.id for message in receiver.got] == [one, one, two]
        assert receiver.got[0].body == receiver.got[1].body
        receiver.got[1].verify(secret, clock.now_s())


async def test_what_was_lost_to_another_claim_is_not_recorded(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, receiving() as receiver:
        owner = await world.customer()
        at, _ = await hook(world, owner, receiver.url)
        await happen(world, owner, "srv_a")
        service = world.service.workers.deliveries
        (late,) = (await service._claim()).work
        world.clock.advance(deliveries.CLAIM_S)
        (current,) = (await service._claim()).work
        had = await world.rows("SELECT * FROM delivery")
        for error in ("late", None):
            await world.parts.db.write(
                lambda tx, error=error: deliveries.record(tx, late, None, error, world.clock.now_s())  # type: ignore[misc]  # bound in the loop
            )
        assert [dict(row) for row in await world.rows("SELECT * FROM delivery")] == [dict(row) for row in had]
        answer = await world.parts.outbound.post(current.url, {}, b"{}")
        await world.parts.db.write(
            lambda tx: deliveries.record(tx, current, answer, None, world.clock.now_s())
        )
        (entry,) = await log_of(world, owner, at)
        assert (entry["state"], entry["attempts"]) == ("delivered", 2)


async def test_for_a_day_after_a_rotation_both_secrets_verify(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, receiving() as receiver:
        owner = await world.customer()
        at, old = await hook(world, owner, receiver.url)
        new = (await world.sign(owner, "POST", f"{at}/secret")).json()["secret"]
        await happen(world, owner, "srv_a")
        await send(world)
        for secret in (old, new):
            receiver.got[0].verify(secret, world.clock.now_s())
        world.clock.advance(DAY)
        await happen(world, owner, "srv_a")
        await send(world)
        receiver.got[1].verify(new, world.clock.now_s())
        with pytest.raises(WebhookVerificationError):
            receiver.got[1].verify(old, world.clock.now_s())


async def test_after_three_days_of_failure_a_webhook_is_disabled_and_its_owner_told(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, receiving() as dead, receiving() as alive:
        dead.status = 500
        owner = await world.customer()
        at, _ = await hook(world, owner, dead.url)
        await hook(world, owner, alive.url, types=["webhook.*"])
        await happen(world, owner, "srv_a", "srv_a", "srv_b")
        for _ in range(96):
            world.clock.advance(HOUR)
            await send(world)
        view = await shown(world, owner, at)
        assert (view["enabled"], view["disabled_reason"]) == (False, "failing")
        (told,) = alive.got
        assert (told.event["type"], told.event["data"]["reason"]) == ("webhook.disabled", "failing")
        assert told.event["data"]["webhook"] == view["id"]
        assert {entry["state"] for entry in await log_of(world, owner, at)} == {"failed"}
        assert max(entry["attempts"] for entry in await log_of(world, owner, at)) <= ATTEMPTS_MIN + 1
        sent = len(dead.got)
        await happen(world, owner, "srv_c")
        world.clock.advance(DAY)
        await send(world)
        assert len(dead.got) == sent, "nothing is sent to a disabled webhook"
        dead.status = 200
        forgiven = (await world.sign(owner, "PATCH", at, {"enabled": True})).json()["webhook"]
        assert (forgiven["disabled_reason"], forgiven["failing_since"]) == (None, None)
        await happen(world, owner, "srv_d")
        await send(world)
        assert [message.event["resource"] for message in dead.accepted] == ["srv_d"]


async def test_one_event_that_is_never_taken_fails_in_the_end_and_makes_way(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, receiving() as receiver:
        owner = await world.customer()
        at, _ = await hook(world, owner, receiver.url)
        one, two = await happen(world, owner, "srv_a", "srv_a")
        receiver.decide = lambda message: 400 if message.id == one else 200
        for _ in range(100):
            world.clock.advance(HOUR)
            await happen(world, owner, "srv_b")
            await send(world)
        rows = await world.rows("SELECT * FROM delivery WHERE resource = 'srv_a'")
        by_event = {f"evt_{row['seq']}": row for row in rows}
        assert (by_event[one]["state"], by_event[one]["status_code"]) == ("failed", 400)
        assert by_event[one]["error"] == "answered 400"
        assert ATTEMPTS_MIN <= by_event[one]["attempts"] <= 100, "at most once an hour"
        assert (by_event[two]["state"], by_event[two]["attempts"]) == ("delivered", 1)
        assert (await shown(world, owner, at))["enabled"] is True


async def test_a_receiver_that_says_gone_is_disabled_at_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, receiving() as receiver:
        receiver.status = 410
        owner = await world.customer()
        at, _ = await hook(world, owner, receiver.url)
        await happen(world, owner, "srv_a", "srv_a")
        await send(world)
        view = await shown(world, owner, at)
        assert (view["enabled"], view["disabled_reason"], len(receiver.got)) == (False, "gone", 1)
        assert await pending(world) == 0


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 429, 500, 503])
async def test_whatever_is_not_2xx_is_tried_again(tmp_path: Path, status: int) -> None:
    async with open_world(tmp_path) as world, receiving() as receiver:
        receiver.status = status
        receiver.headers["Location"] = receiver.url + "/elsewhere"
        owner = await world.customer()
        at, _ = await hook(world, owner, receiver.url)
        await happen(world, owner, "srv_a")
        await send(world)
        (entry,) = await log_of(world, owner, at)
        assert (entry["state"], entry["status_code"], entry["error"]) == (
            "pending",
            status,
            f"answered {status}",
        )
        receiver.status = 204
        world.clock.advance(6)
        await send(world)
        assert [message.path for message in receiver.got] == ["/hooks", "/hooks"]
        assert await pending(world) == 0


async def test_retry_after_is_kept(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, receiving() as receiver:
        receiver.status = 429
        receiver.headers["Retry-After"] = "600"
        owner = await world.customer()
        await hook(world, owner, receiver.url)
        await happen(world, owner, "srv_a")
        await send(world)
        world.clock.advance(599)
        await send(world)
        assert len(receiver.got) == 1
        world.clock.advance(1)
        await send(world)
        assert len(receiver.got) == 2


async def test_what_is_disabled_or_deleted_gets_nothing_more(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, receiving() as receiver:
        receiver.status = 500
        owner = await world.customer()
        paused, _ = await hook(world, owner, receiver.url)
        deleted, _ = await hook(world, owner, receiver.url)
        await happen(world, owner, "srv_a", "srv_a", "srv_b")
        await send(world)
        assert len(receiver.got) == 4
        await world.sign(owner, "PATCH", paused, {"enabled": False})
        await world.sign(owner, "DELETE", deleted)
        await happen(world, owner, "srv_a")
        world.clock.advance(DAY)
        await send(world)
        assert (len(receiver.got), await pending(world)) == (4, 0)
        assert {entry["error"] for entry in await log_of(world, owner, paused)} == {"disabled"}
        assert len(await world.rows("SELECT * FROM webhook")) == 1


async def test_a_new_url_gets_what_the_old_one_missed_at_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, receiving() as old, receiving() as new:
        old.status = 500
        owner = await world.customer()
        at, secret = await hook(world, owner, old.url)
        told = await happen(world, owner, "srv_a", "srv_b")
        await send(world)
        world.clock.advance(5 * HOUR)
        await send(world)
        await world.sign(owner, "PATCH", at, {"url": new.url})
        await send(world)
        assert {message.verify(secret, world.clock.now_s())["id"] for message in new.got} == set(told)


async def test_more_than_one_look_can_hold_is_ended_and_erased_bit_by_bit(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, receiving() as receiver:
        receiver.status = 500
        owner = await world.customer()
        at, _ = await hook(world, owner, receiver.url)
        for _ in range(25):
            await happen(world, owner, *["srv_a"] * 50)
        await send(world)
        await world.sign(owner, "PATCH", at, {"enabled": False})
        assert await pending(world) == 750
        await send(world)
        assert await pending(world) == 0
        assert len(receiver.got) <= 20
        await world.sign(owner, "DELETE", at)
        await send(world)
        assert await world.rows("SELECT * FROM delivery") == []
        assert await world.rows("SELECT * FROM webhook") == []


DEAD_S = 60.0
"""Far more than sending all the rest takes."""


async def test_dead_hosts_hold_up_nobody(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path, receiver_timeout_s=DEAD_S) as world,
        saying(b"", pause_s=10) as silent,
        receiving() as receiver,
    ):
        owner, others = await world.customer(), await world.customer()
        await hook(world, owner, f"http://127.0.0.1:{silent[0]}/")
        for _ in range(9):
            await hook(world, others, receiver.url)
        more = await world.customer()
        for _ in range(2):
            await hook(world, more, receiver.url)
        # Far more is due for the dead one than may be sent at once, and it is due first.
        await happen(world, owner, *[f"srv_{n}" for n in range(250)])
        await happen(world, others, "srv_a", "srv_a", "srv_b")
        await happen(world, more, "srv_c")
        began = time.monotonic()
        await world.service.jobs["deliveries"].tick(world.clock.now_s())
        while len(receiver.got) < 29 and time.monotonic() - began < DEAD_S / 2:
            await world.service.workers.deliveries.start_due()
        assert len(receiver.got) == 29, "before the dead one's first request had timed out"
        assert len(silent) - 1 <= deliveries.PER_HOST
        assert in_order(receiver.got)
        await world.service.workers.deliveries.stop()


async def test_who_has_failed_for_a_minute_is_asked_one_at_a_time(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path, receiver_timeout_s=0.2) as world,
        saying(b"", pause_s=5) as silent,
    ):
        owner = await world.customer()
        at, _ = await hook(world, owner, f"http://127.0.0.1:{silent[0]}/")
        await happen(world, owner, "srv_a")
        await send(world)
        assert (await log_of(world, owner, at))[0]["error"] == "no answer within 0.2 s"
        world.clock.advance(deliveries.FAILING_S)
        await happen(world, owner, *[f"srv_{n}" for n in range(20)])
        await send(world)
        assert len(silent) - 1 == 2
        world.clock.advance(deliveries.FAILING_TURN_S)
        await send(world)
        assert len(silent) - 1 == 3


async def test_a_target_that_turned_bad_is_refused_at_the_dial(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, receiving() as receiver:
        world.names.known["hooks.example.com"] = "127.0.0.1"
        owner = await world.customer()
        at, _ = await hook(world, owner, receiver.url.replace("127.0.0.1", "hooks.example.com"))
        world.names.known["hooks.example.com"] = "169.254.169.254"
        await happen(world, owner, "srv_a")
        await send(world)
        (entry,) = await log_of(world, owner, at)
        assert (receiver.got, entry["status_code"]) == ([], None)
        assert entry["error"].startswith("refused: Events are sent over https only")
        assert "169.254" not in str(entry)


async def test_nothing_due_writes_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        had = await world.rows("SELECT COUNT(*) AS n FROM delivery")
        for _ in range(3):
            await send(world)
        assert await world.rows("SELECT COUNT(*) AS n FROM delivery") == had


async def test_a_claim_is_lost_with_the_process_and_not_with_a_cancelled_task(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path, receiver_timeout_s=30) as world,
        saying(b"", pause_s=5) as silent,
        receiving() as receiver,
    ):
        owner = await world.customer()
        at, _ = await hook(world, owner, f"http://127.0.0.1:{silent[0]}/")
        await happen(world, owner, "srv_a")
        await world.service.jobs["deliveries"].tick(world.clock.now_s())
        await world.service.workers.deliveries.stop()
        assert await pending(world) == 1
        await world.sign(owner, "PATCH", at, {"url": receiver.url})
        world.clock.advance(deliveries.CLAIM_S)
        await send(world)
        assert len(receiver.accepted) == 1


def test_the_bounds_leave_room() -> None:
    assert deliveries.FAILING_AT_ONCE < deliveries.AT_ONCE
    assert deliveries.PER_HOST <= deliveries.PER_WALLET < deliveries.AT_ONCE
    assert deliveries.CLAIM_S > 2 * TIMEOUT_S
