"""`GET /v1/events`: what happened to the wallet's things, once, in order, and to nobody else."""

import asyncio
from pathlib import Path

import pytest
from spawn_ledger.tx import Tx
from spawn_schemas.events import EventType

from spawn.domain.events import WINDOW
from spawn.jobs.sweep import BATCH
from tests.harness import World, open_world
from tests.integration.event_steps import OTHER, SERVER, ask, happen, happens, names, reached, session
from tests.integration.server_steps import code
from tests.wallets import Wallet

pytestmark = pytest.mark.gapless

DAY = 86_400


# --- told in the transaction of what they tell of --------------------------------------------------------------


async def test_an_event_says_what_happened_to_what_and_when(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet("0")
        await happen(world, wallet, "one")
        assert await ask(world, wallet) == {
            "events": [
                {
                    "id": "evt_1",
                    "type": "server.running",
                    "resource": SERVER,
                    "at": "2026-09-21T14:13:20Z",
                    "data": {
                        "server": SERVER,
                        "name": "one",
                        "type": "small",
                        "status": "running",
                        "previous": "off",
                        "reason": None,
                        "ipv4": None,
                        "ipv6": None,
                        "stopped_by": None,
                    },
                }
            ],
            "next_cursor": "evt_1",
            "has_more": False,
            "gap": False,
        }


async def test_a_transaction_that_fails_leaves_no_event_and_no_delivery(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet("0")
        await hook(world, wallet, "wh_all", "*")

        def fail(tx: Tx) -> None:
            happens(tx, wallet.address, "never")
            raise RuntimeError("the effect failed")

        with pytest.raises(RuntimeError):
            await world.parts.db.write(fail)
        assert (await ask(world, wallet))["events"] == []
        assert await world.rows("SELECT * FROM delivery") == []


async def test_what_has_one_cause_is_told_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet("0")
        await hook(world, wallet, "wh_all", "*")

        def twice(tx: Tx) -> tuple[bool, bool, bool]:
            first = happens(tx, wallet.address, "one", cause="deposit.low|srv|1|86400")
            again = happens(tx, wallet.address, "one again", cause="deposit.low|srv|1|86400")
            return first, again, happens(tx, wallet.address, "two", cause="deposit.low|srv|2|86400")

        assert await world.parts.db.write(twice) == (True, False, True)
        assert names(await ask(world, wallet)) == ["one", "two"]
        assert len(await world.rows("SELECT * FROM delivery")) == 2


async def hook(world: World, wallet: Wallet, name: str, types: str, *, enabled: int = 1) -> None:
    sql = (
        "INSERT INTO webhook (id, wallet, url, types, description, enabled, created_at)"
        " VALUES (:id, :wallet, 'https://agent.example', :types, '', :enabled, 0)"
    )
    params = {"id": name, "wallet": wallet.address, "types": types, "enabled": enabled}
    await world.parts.db.write(lambda tx: tx.execute(sql, params))


async def test_each_webhook_that_wants_it_gets_a_delivery(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet, other = await world.wallet("0"), await world.wallet("0")
        await hook(world, wallet, "wh_all", "*")
        await hook(world, wallet, "wh_family", "deposit.low,server.*")
        await hook(world, wallet, "wh_exact", "server.running,deposit.low")
        await hook(world, wallet, "wh_part", "server.runnin,server.running2,erver.running,rver.*")
        await hook(world, wallet, "wh_else", "server.off,deposit.*")
        await hook(world, wallet, "wh_disabled", "*", enabled=0)
        await hook(world, other, "wh_other", "*")
        world.clock.advance(5)
        await happen(world, wallet, "one", resource=OTHER)
        deliveries = await world.rows("SELECT * FROM delivery ORDER BY webhook_id")
        assert [row["webhook_id"] for row in deliveries] == ["wh_all", "wh_exact", "wh_family"]
        now = world.clock.now_s()
        for row in deliveries:
            assert (row["seq"], row["resource"], row["state"], row["attempts"]) == (1, OTHER, "pending", 0)
            assert (row["next_at"], row["created_at"], row["claim"], row["claim_until"]) == (
                now,
                now,
                None,
                0,
            )


# --- listed ---------------------------------------------------------------------------------------------------


async def test_paging_shows_everything_once_while_others_write(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet, other = await world.wallet("0"), await world.wallet("0")
        mine, theirs = [f"mine {n}" for n in range(60)], [f"theirs {n}" for n in range(60)]

        async def write() -> None:
            for one, two in zip(mine, theirs, strict=True):
                await happen(world, other, two)
                await happen(world, wallet, one)

        async def read() -> list[str]:
            found: list[str] = []
            after = ""
            for _ in range(300):
                body = await ask(world, wallet, f"?limit=7{after}")
                found += names(body)
                after = f"&after={body['next_cursor']}"
                assert not body["gap"]
                if len(found) == len(mine):
                    return found
            return found

        _, found = await asyncio.gather(write(), read())
        assert found == mine
        assert names(await ask(world, other, "?limit=100")) == theirs


async def test_nobody_sees_what_happens_to_another(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        owner, thief = await world.wallet("0"), await world.wallet("0")
        await happen(world, owner, "one", "two")
        for query in ("", "?after=evt_0", "?after=evt_1", f"?resource={SERVER}", "?type=server.*"):
            assert (await ask(world, thief, query))["events"] == []


async def test_only_what_is_asked_for_is_shown(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet("0")
        await happen(world, wallet, "runs")
        await happen(world, wallet, "stops", type=EventType.SERVER_OFF)
        await happen(world, wallet, "low", type=EventType.DEPOSIT_LOW)
        await happen(world, wallet, "other", resource=OTHER)
        wanted = {
            "": ["runs", "stops", "low", "other"],
            "?type=*": ["runs", "stops", "low", "other"],
            "?type=server.*": ["runs", "stops", "other"],
            "?type=server.running": ["runs", "other"],
            f"?resource={SERVER}": ["runs", "stops", "low"],
            f"?type=server.running&resource={SERVER}": ["runs"],
            "?type=server.*&after=evt_1&limit=1": ["stops"],
            "?resource=srv_else": [],
        }
        assert {query: names(await ask(world, wallet, query)) for query in wanted} == wanted


async def test_what_is_rare_is_found_behind_much_that_is_not_asked_for(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet("0")

        def much(tx: Tx) -> None:
            for _ in range(WINDOW):
                happens(tx, wallet.address, "noise")

        await world.parts.db.write(much)
        await happen(world, wallet, "low", type=EventType.DEPOSIT_LOW)
        first = await ask(world, wallet, "?type=deposit.*&limit=1")
        assert (first["events"], first["has_more"]) == ([], True)
        second = await ask(world, wallet, f"?type=deposit.*&limit=1&after={first['next_cursor']}")
        assert (names(second), second["has_more"]) == (["low"], False)
        # Who waits is spared the empty page.
        assert names(await ask(world, wallet, "?type=deposit.*&limit=1&wait=5")) == ["low"]


@pytest.mark.parametrize(
    "query",
    [
        "after=evt_x",
        "after=5",
        "after=",
        "limit=0",
        "limit=101",
        "limit=many",
        "type=nothing.ever",
        "type=",
        "resource=",
        f"resource={'x' * 129}",
        "wait=-1",
        "wait=61",
    ],
)
async def test_bad_input_is_told(tmp_path: Path, query: str) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet("0")
        for accept in ("application/json", "text/event-stream"):
            token = await session(world, wallet)
            answer = await world.ask(
                "GET", f"/v1/events?{query}", authorization=f"Bearer {token}", accept=accept
            )
            assert code(answer) == (400, "invalid_request"), answer.text
            assert answer.json()["error"]["next"]


async def test_whoever_proves_a_wallet_may_ask_for_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet("10.00")
        await happen(world, wallet, "one")
        for accept in ("application/json", "text/event-stream"):
            assert (await world.ask("GET", "/v1/events", accept=accept)).status_code == 402
        answers = [
            await world.sign(wallet, "GET", "/v1/events"),
            await world.ask("GET", "/v1/events", authorization=f"Bearer {await session(world, wallet)}"),
            await world.pay(wallet, "GET", "/v1/events?limit=1"),
        ]
        for answer in answers:
            assert names(answer.json()) == ["one"], answer.text
            assert answer.headers["spawn-fee"] == "0.00"
        await world.check_books()


# --- waited for -----------------------------------------------------------------------------------------------


async def test_who_waits_hears_of_it_as_it_happens(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet, other = await world.wallet("0"), await world.wallet("0")
        await happen(world, wallet, "before")
        waiting = asyncio.create_task(ask(world, wallet, "?after=evt_1&wait=60&type=deposit.*"))
        await reached(world, lambda watch: watch.waiting == 1)
        await happen(world, other, "not mine")
        await happen(world, wallet, "not asked for")
        await happen(world, wallet, "low", type=EventType.DEPOSIT_LOW)
        body = await waiting
        assert (names(body), body["next_cursor"], body["gap"]) == (["low"], "evt_4", False)


async def test_who_waits_for_what_is_there_does_not_wait(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet("0")
        await happen(world, wallet, "one")
        assert names(await ask(world, wallet, "?wait=60")) == ["one"]
        # A gap is news as well.
        assert (await ask(world, wallet, "?after=evt_99&wait=60"))["gap"]


async def test_who_waits_in_vain_gets_a_cursor_to_go_on_with(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet, other = await world.wallet("0"), await world.wallet("0")
        await happen(world, other, "not mine")
        assert await ask(world, wallet, "?wait=1") == {
            "events": [],
            "next_cursor": "evt_0",
            "has_more": False,
            "gap": False,
        }


async def test_who_waits_is_let_go_when_the_service_stops(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet("0")
        waiting = asyncio.create_task(ask(world, wallet, "?wait=60"))
        await reached(world, lambda watch: watch.waiting == 1)
        world.service.services.streams.watch.stop()
        assert (await waiting)["events"] == []
        assert (await ask(world, wallet, "?wait=60"))["events"] == []


# --- kept -----------------------------------------------------------------------------------------------------


async def test_old_events_are_forgotten_and_whoever_missed_them_is_told(tmp_path: Path) -> None:
    async with open_world(tmp_path, events_keep_s=DAY) as world:
        wallet = await world.wallet("0")
        await happen(world, wallet, "one", "two", "three")
        world.clock.advance(DAY)
        await happen(world, wallet, "four")
        await world.tick("sweep")
        assert names(await ask(world, wallet)) == ["one", "two", "three", "four"], "a day is not over"
        world.clock.advance(1)
        await world.tick("sweep")
        assert (names(await ask(world, wallet)), (await ask(world, wallet))["gap"]) == (["four"], False)
        late = await ask(world, wallet, "?after=evt_2")
        assert (names(late), late["gap"], late["next_cursor"]) == (["four"], True, "evt_4")
        assert not (await ask(world, wallet, "?after=evt_3"))["gap"], "it had seen all that was forgotten"
        assert not (await ask(world, wallet, f"?after={late['next_cursor']}"))["gap"]


async def test_the_last_event_stays_so_that_numbers_and_gaps_are_known(tmp_path: Path) -> None:
    async with open_world(tmp_path, events_keep_s=DAY) as world:
        wallet = await world.wallet("0")
        await happen(world, wallet, "one", "two")
        world.clock.advance(2 * DAY)
        await world.tick("sweep")
        assert names(await ask(world, wallet, "?after=evt_0")) == ["two"]
        assert (await ask(world, wallet, "?after=evt_0"))["gap"]
        await happen(world, wallet, "three")
        assert (await ask(world, wallet))["next_cursor"] == "evt_3"


async def test_what_has_still_to_be_delivered_stays_and_all_after_it(tmp_path: Path) -> None:
    async with open_world(tmp_path, events_keep_s=DAY) as world:
        wallet, other = await world.wallet("0"), await world.wallet("0")
        await happen(world, other, "one")
        await hook(world, wallet, "wh_all", "*")
        await happen(world, wallet, "two")
        await happen(world, other, "three", "four")
        world.clock.advance(2 * DAY)
        await world.tick("sweep")
        assert [row["seq"] for row in await world.rows("SELECT seq FROM event ORDER BY seq")] == [2, 3, 4]
        sql = "UPDATE delivery SET state = 'delivered'"
        await world.parts.db.write(lambda tx: tx.execute(sql, {}))
        await world.tick("sweep")
        assert [row["seq"] for row in await world.rows("SELECT seq FROM event")] == [4]
        assert await world.rows("SELECT * FROM delivery") == [], "its log goes with it"


async def test_many_old_events_are_forgotten_in_one_tick(tmp_path: Path) -> None:
    async with open_world(tmp_path, events_keep_s=DAY) as world:
        wallet = await world.wallet("0")

        def much(tx: Tx) -> None:
            for _ in range(2 * BATCH + 7):
                happens(tx, wallet.address, "old")

        await world.parts.db.write(much)
        world.clock.advance(2 * DAY)
        await happen(world, wallet, "new")
        await world.tick("sweep")
        assert names(await ask(world, wallet)) == ["new"]
