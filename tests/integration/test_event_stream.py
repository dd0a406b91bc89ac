"""`GET /v1/events` as server-sent events, from a server that listens."""

import asyncio
from pathlib import Path

import httpx
import pytest
from spawn_schemas.events import EventType

from tests.integration.event_readers import Reader, data, scene
from tests.integration.event_steps import ask, happen, session
from tests.integration.raw_connections import on_uvloop

pytestmark = pytest.mark.gapless

STREAM = {"Accept": "text/event-stream"}


# --- what comes -----------------------------------------------------------------------------------------------


@on_uvloop
async def test_what_happened_comes_first_and_then_what_happens(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        wallet, other = await at.world.wallet("0"), await at.world.wallet("0")
        await happen(at.world, wallet, "one", "two")
        reader = await at.follow(wallet)
        assert "\r\ncontent-type: text/event-stream\r\n" in reader.head
        assert "\r\ncache-control: no-store, private\r\n" in reader.head
        assert "\r\nspawn-fee: 0.00\r\n" in reader.head
        first, second = await reader.messages()
        assert (first.id, first.event, first.name) == ("evt_1", "server.running", "one")
        assert (second.id, second.name) == ("evt_2", "two")
        await happen(at.world, other, "not mine")
        await happen(at.world, wallet, "three")
        third = await reader.message()
        assert (third.id, third.name) == ("evt_4", "three")
        listed = (await ask(at.world, wallet))["events"]
        assert httpx.Response(200, content=third.data).json() == listed[2], "it is the event of the list"


@on_uvloop
async def test_a_stream_that_broke_goes_on_where_its_reader_was(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        wallet = await at.world.wallet("0")
        await happen(at.world, wallet, "one", "two")
        reader = await at.follow(wallet, "?after=evt_1")
        assert await reader.names(1) == ["two"]
        reader.client.close()
        await at.free()
        await happen(at.world, wallet, "three", "four")
        # It asks for the same address again, and says where it was.
        again = await at.follow(wallet, "?after=evt_1", Last_Event_ID="evt_2")
        assert await again.names(2) == ["three", "four"]


@on_uvloop
async def test_a_stream_says_only_what_was_asked_for(tmp_path: Path) -> None:
    async with scene(tmp_path, heartbeat_s=0.3) as at:
        wallet = await at.world.wallet("0")
        await happen(at.world, wallet, "noise")
        reader = await at.follow(wallet, "?type=deposit.*")
        await happen(at.world, wallet, "noise")
        await happen(at.world, wallet, "low", type=EventType.DEPOSIT_LOW)
        assert await reader.names(1) == ["low"]


@on_uvloop
async def test_more_than_a_page_comes_whole(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        wallet = await at.world.wallet("0")
        many = [str(n) for n in range(120)]
        await happen(at.world, wallet, *many)
        assert await (await at.follow(wallet, "?limit=1")).names(120) == many


@on_uvloop
async def test_a_reader_who_missed_something_is_told(tmp_path: Path) -> None:
    async with scene(tmp_path, events_keep_s=86_400) as at:
        wallet = await at.world.wallet("0")
        await happen(at.world, wallet, "one", "two")
        at.world.clock.advance(2 * 86_400)
        await happen(at.world, wallet, "three")
        await at.world.tick("sweep")
        reader = await at.follow(wallet, "?after=evt_1")
        gap, third = await reader.messages()
        assert (gap.event, gap.id, third.name) == ("gap", None, "three")


@on_uvloop
async def test_a_silent_stream_shows_that_it_lives_and_moves_its_reader_on(tmp_path: Path) -> None:
    async with scene(tmp_path, heartbeat_s=0.05) as at:
        wallet, other = await at.world.wallet("0"), await at.world.wallet("0")
        reader = await at.follow(wallet, "?type=deposit.*")
        beat = await reader.message()
        assert (beat.comments, beat.id, beat.data) == (["nothing new"], "evt_0", "")
        await happen(at.world, other, "not mine")
        await happen(at.world, wallet, "not asked for")
        while (beat := await reader.message()).id != "evt_2":
            assert beat.id == "evt_0"
        assert beat.data == ""


@on_uvloop
async def test_a_stock_client_reads_it_whichever_way_it_takes(tmp_path: Path) -> None:
    """With a query or none, from a browser or not, a stream takes other ways through the layers."""
    async with scene(tmp_path) as at:
        wallet = await at.world.wallet("0")
        await happen(at.world, wallet, "one")
        proof = {"Host": "spawn.test", "Authorization": f"Bearer {await session(at.world, wallet)}"}
        async with at.http() as http:
            for path in ("/v1/events", "/v1/events?type=server.*"):
                for origin in ({}, {"Origin": "https://agent.example"}):
                    async with http.stream("GET", path, headers=STREAM | proof | origin) as answer:
                        assert answer.status_code == 200
                        assert answer.headers.get("access-control-allow-origin") == ("*" if origin else None)
                        assert '"id":"evt_1"' in await data(answer)
        await at.free()


# --- who may ---------------------------------------------------------------------------------------------------


@on_uvloop
async def test_every_proof_of_a_wallet_opens_a_stream_once(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        wallet = await at.world.wallet("10.00")
        await happen(at.world, wallet, "one")
        for proof in await at.proofs(wallet):
            async with at.http() as http:
                async with http.stream("GET", "/v1/events?limit=1", headers=STREAM | proof) as answer:
                    assert answer.status_code == 200, await answer.aread()
                    assert '"name":"one"' in await data(answer)
                again = await http.get("/v1/events?limit=1", headers=STREAM | proof)
                assert again.status_code in {401, 409}, again.text
                assert again.json()["error"]["code"] in {"conflict", "invalid_signature"}
        await at.free()
        await at.world.check_books()


@on_uvloop
async def test_a_refusal_is_that_of_any_call(tmp_path: Path) -> None:
    async with scene(tmp_path) as at, at.http() as http:
        unpaid = await http.get("/v1/events", headers=STREAM)
        assert (unpaid.status_code, "payment-required" in unpaid.headers) == (402, True)
        forged = await http.get("/v1/events", headers=STREAM | {"Authorization": "Bearer spawn_session_x"})
        assert (forged.status_code, forged.json()["error"]["code"]) == (401, "invalid_signature")


@on_uvloop
async def test_a_wallet_has_so_many_streams_and_no_more(tmp_path: Path) -> None:
    async with scene(tmp_path, streams_max=3, streams_per_wallet_max=2) as at:
        one, two = await at.world.wallet("1.00"), await at.world.wallet("0")
        first = await at.follow(one)
        await at.follow(one)
        (payment, *_) = await at.proofs(one)
        async with at.http() as http:
            unpaid = await http.get("/v1/events?limit=1", headers=STREAM | payment)
        assert unpaid.status_code == 429
        assert await at.world.chain.balance_of(one.address) == 1_000_000, "nothing was taken for it"
        refused = await at.served.ask(await at.request(one))
        assert (refused.status, refused.error["code"]) == (429, "rate_limited")
        assert refused.headers["retry-after"] == "3"
        await at.follow(two)
        refused = await at.served.ask(await at.request(two))
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        first.client.close()
        await at.served.until(lambda: at.streams.open == 2)
        await at.follow(one)


@on_uvloop
async def test_of_many_at_once_no_more_than_there_is_room_for_are_served(tmp_path: Path) -> None:
    async with scene(tmp_path, streams_per_wallet_max=2) as at:
        wallet = await at.world.wallet("0")
        requests = [await at.request(wallet, Origin="https://agent.example") for _ in range(8)]
        readers = [Reader(await at.served.connect()) for _ in requests]
        await asyncio.gather(*(r.open(wire) for r, wire in zip(readers, requests, strict=True)))
        assert sorted(reader.status for reader in readers) == [200] * 2 + [429] * 6
        assert all("access-control-allow-origin: *" in reader.head for reader in readers)


# --- how it ends ----------------------------------------------------------------------------------------------


@on_uvloop
async def test_a_reader_who_leaves_frees_the_place(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        wallet = await at.world.wallet("0")
        readers = [await at.follow(wallet) for _ in range(3)]
        assert at.streams.open == 3
        readers[0].client.close()
        readers[1].client.writer.transport.abort()
        readers[2].client.writer.write_eof()
        await at.free()
        assert at.streams.watch.waiting == 0


@on_uvloop
async def test_it_ends_with_its_session(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        wallet = await at.world.wallet("0")
        wire = await at.request(wallet)
        at.world.clock.advance(899)
        reader = Reader(await at.served.connect())
        await reader.open(wire)
        await reader.ends()
        # The connection is as good as before.
        await happen(at.world, wallet, "after")
        await reader.open(await at.request(wallet))
        assert (await reader.message()).retry == 3000
        assert await reader.names(1) == ["after"]


@on_uvloop
async def test_it_ends_after_its_time(tmp_path: Path) -> None:
    async with scene(tmp_path, heartbeat_s=0.05) as at:
        at.streams.longest_s = 0.3
        await (await at.follow(await at.world.wallet("0"))).ends()
        await at.free()


@on_uvloop
async def test_it_ends_at_once_when_the_service_stops(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        wallet = await at.world.wallet("0")
        reader = await at.follow(wallet)
        at.streams.watch.stop()
        await reader.ends()
        late = Reader(await at.served.connect())
        await late.open(await at.request(wallet))
        await late.ends()


@on_uvloop
async def test_a_live_stream_outlasts_every_timeout_of_its_connection(tmp_path: Path) -> None:
    bounds = {"head_s": 1.0, "body_s": 1.0, "idle_s": 1.0, "answer_s": 1.0}
    async with scene(tmp_path, heartbeat_s=0.2, bounds=bounds) as at:
        wallet = await at.world.wallet("0")
        reader = await at.follow(wallet)
        # The door looks each second: by the twentieth beat it has looked at this connection several times.
        for _ in range(20):
            await reader.message()
        await happen(at.world, wallet, "alive")
        while (message := await reader.message()).data == "":
            pass
        assert message.name == "alive"


@on_uvloop
async def test_a_reader_who_does_not_read_is_cut_off_and_nothing_piles_up(tmp_path: Path) -> None:
    async with scene(tmp_path, bounds={"answer_s": 1.0}) as at:
        wallet = await at.world.wallet("0")
        reader = await at.follow(wallet)
        reader.client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport reads as well
        (connection,) = at.served.state.connections
        most = 0
        async with asyncio.timeout(20):
            for number in range(200):
                await happen(at.world, wallet, *[f"{number} {'x' * 60_000}"] * 4)
                if not at.streams.open:
                    break
                most = max(most, connection.transport.get_write_buffer_size())
        await at.free()
        assert 0 < most < 50 * 62_000 + 2**17, "at most a page waits to be read"
