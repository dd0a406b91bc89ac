"""What one replica remembers never stands in the way of another, and what another did is seen soon enough."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from spawn_providers.simulated_faults import Outage

from spawn import cli_orders
from spawn.domain.barring import Verb
from spawn.services import claims
from spawn.services.admin import AnnouncePrice, Bar, Credit
from spawn.services.claims import CLAIM_S
from spawn.store.database import StoreError
from tests.harness import ORDER, VirtualClock, World
from tests.integration.paid_calls import Barrier
from tests.integration.receivers import receiving
from tests.integration.replicas import beside, two_replicas
from tests.integration.test_gate_findings import sign_in
from tests.integration.test_price_changes import announce, price_now
from tests.wallets import Wallet

pytestmark = pytest.mark.usefixtures("postgres_server")

Two = tuple[World, World]
DEPOSIT = "/v1/balance/deposit"
PATIENCE_S = 20.0


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    async with two_replicas(tmp_path) as replicas:
        yield replicas


async def eventually(true: Callable[[], Awaitable[bool]]) -> None:
    """Real time passes until it is; the bound is for a machine that is busy."""
    end = time.monotonic() + PATIENCE_S
    while not await true():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


def found(answer: httpx.Response, status: int = 200) -> httpx.Response:
    assert answer.status_code == status, answer.text
    return answer


# --- who somebody is ----------------------------------------------------------------------------------------------


async def test_a_session_of_one_is_a_session_of_all(two: Two) -> None:
    first, second = two
    wallet = await first.customer("5.00")
    token = found(await first.sign(wallet, "POST", "/v1/sessions"), 201).json()["session"]["token"]
    shown = found(await second.ask("GET", "/v1/balance", Authorization=f"Bearer {token}"))
    assert shown.json()["balance"] == "5.00"


async def test_a_sign_in_is_spent_everywhere(two: Two) -> None:
    first, second = two
    wallet = await first.customer("5.00")
    header = sign_in(first, wallet, "a" * 17)
    found(await first.http.get("/v1/balance", headers=header))
    again = found(await second.http.get("/v1/balance", headers=header), 401)
    assert again.json()["error"]["details"]["reason"] == "nonce_used"


async def test_a_replica_with_another_key_does_not_start(two: Two) -> None:
    """It could read no secret and no session of the others."""
    with pytest.raises(StoreError, match="SPAWN_SECRET_KEY"):
        async with beside(two[0], "stranger", secret_key="a5" * 32):
            pass


async def test_replicas_start_at_the_same_moment_on_a_new_database(two: Two) -> None:
    names = [f"twin {number}" for number in range(4)]

    async def start(name: str) -> None:
        async with beside(two[0], name) as replica:
            found(await replica.ask("GET", "/health"))

    await two[0].parts.db.write(lambda tx: tx.execute("DELETE FROM secret"))
    await asyncio.gather(*map(start, names))


# --- one call, wherever it is sent --------------------------------------------------------------------------------


async def test_a_payment_that_reaches_two_at_once_buys_once(two: Two) -> None:
    first, second = two
    wallet = await first.wallet()
    payment = await first.payment(wallet, "POST", DEPOSIT, {"amount": "3.00"})
    answers = await asyncio.gather(
        *(one.send_payment(payment, "POST", DEPOSIT, {"amount": "3.00"}) for one in (first, second, first))
    )
    assert [found(answer).json()["balance"] for answer in answers] == ["3.00"] * 3
    replayed = [answer.headers.get("Idempotent-Replayed") == "true" for answer in answers]
    assert sorted(replayed) == [False, True, True]
    assert await second.available(wallet.address) == 3_000_000
    await second.check_books()


async def test_a_key_that_reaches_two_at_once_rents_once(two: Two) -> None:
    wallet = await two[0].customer("20.00")
    answers = await asyncio.gather(
        *(one.sign(wallet, "POST", "/v1/servers", ORDER, key="once") for one in (*two, *two))
    )
    assert len({found(answer, 201).json()["server"]["id"] for answer in answers}) == 1
    assert len(await two[1].rows("SELECT id FROM server")) == 1
    await two[1].run_for(60)
    await two[1].check_books()


async def test_the_first_answer_comes_from_whoever_carries_the_order_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No wake-up crosses processes: who waits looks once a second."""
    async with two_replicas(tmp_path, first_answer_s=PATIENCE_S) as (first, second):
        wallet = await first.customer("20.00")
        monkeypatch.setattr(second.service.operator, "kick", lambda _action: None)
        ordered = asyncio.create_task(second.sign(wallet, "POST", "/v1/servers", ORDER))

        async def is_ordered() -> bool:
            return bool(await first.rows("SELECT id FROM operation WHERE status = 'running'"))

        await eventually(is_ordered)
        await first.tick("operations")
        body = found(await ordered, 201).json()
        assert body["server"]["status"] == "initializing"
        assert body["root_password"]


async def test_a_refusal_of_the_provider_that_another_heard_is_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_replicas(tmp_path, first_answer_s=PATIENCE_S) as (first, second):
        wallet = await first.customer("20.00")
        monkeypatch.setattr(second.service.operator, "kick", lambda _action: None)
        first.cloud_faults.plan("create", Outage(retry_after_s=1))
        ordered = asyncio.create_task(second.sign(wallet, "POST", "/v1/servers", ORDER))

        async def goes_on() -> bool:
            await first.run_for(1)
            return ordered.done()

        await eventually(goes_on)
        assert found(await ordered, 201).json()["server"]["id"]


async def test_an_action_is_followed_on_another_replica(two: Two) -> None:
    first, second = two
    wallet = await first.customer("20.00")
    created = found(await first.sign(wallet, "POST", "/v1/servers", ORDER), 201)
    path = f"/v1/actions/{created.json()['action']['id']}?wait=20"
    waiting = asyncio.create_task(second.ask("GET", path))
    await first.run_for(60)
    assert found(await waiting).json()["action"]["status"] == "success"


# --- who is at it, and who died -----------------------------------------------------------------------------------


async def begun(world: World, wallet: Wallet) -> tuple[str, "asyncio.Task[httpx.Response]"]:
    """A payment that waits for the chain."""
    payment = await world.payment(wallet, "POST", DEPOSIT, {"amount": "3.00"})
    barrier = world.chain_faults.gate = Barrier()
    call = asyncio.create_task(world.send_payment(payment, "POST", DEPOSIT, {"amount": "3.00"}))
    await barrier.reached.wait()
    return payment, call


async def test_a_call_that_lasts_keeps_its_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "RENEW_S", 0.02)
    async with two_replicas(tmp_path, in_flight_wait_s=0.1) as (first, second):
        payment, call = await begun(first, await first.wallet())

        async def is_renewed() -> bool:
            (row,) = await second.rows("SELECT claim_until FROM reservation WHERE state = 'reserved'")
            return bool(row["claim_until"] == first.clock.now_s() + CLAIM_S)

        for _ in range(4):
            first.clock.advance(CLAIM_S - 1)
            await eventually(is_renewed)
        copy = await second.send_payment(payment, "POST", DEPOSIT, {"amount": "3.00"})
        assert found(copy, 503).json()["error"]["code"] == "in_progress"
        assert first.chain_faults.gate is not None
        first.chain_faults.gate.set()
        assert found(await call).json()["balance"] == "3.00"
        assert found(await second.send_payment(payment, "POST", DEPOSIT, {"amount": "3.00"})).headers[
            "Idempotent-Replayed"
        ]


async def test_a_call_whose_replica_died_is_taken_over_when_its_claim_ran_out(tmp_path: Path) -> None:
    async with two_replicas(tmp_path, in_flight_wait_s=0.1) as (first, second):
        wallet = await first.wallet()
        payment, call = await begun(first, wallet)
        call.cancel()  # as little as a killed process leaves it does now
        await asyncio.wait([call])
        first.chain_faults.gate = None
        first.clock.advance(CLAIM_S - 1)
        copy = await second.send_payment(payment, "POST", DEPOSIT, {"amount": "3.00"})
        assert found(copy, 503).json()["error"]["code"] == "in_progress"
        first.clock.advance(1)
        found(await second.send_payment(payment, "POST", DEPOSIT, {"amount": "3.00"}))
        assert await second.available(wallet.address) == 3_000_000
        await second.check_books()


async def test_jobs_are_taken_over_as_soon_as_the_setting_says(tmp_path: Path) -> None:
    async with two_replicas(tmp_path, lease_s=10) as (first, second):
        leads, follows = (one.service.workers.leader for one in (first, second))
        assert await leads.token() == 1
        assert await follows.token() is None
        for _ in range(10):
            first.clock.advance(6)
            assert await leads.token() == 1, "renewed after six tenths of it"
            assert await follows.token() is None
        first.clock.advance(9)
        assert await follows.token() is None
        first.clock.advance(1)
        assert await follows.token() == 2
        assert await leads.token() is None


# --- what the operator ordered ------------------------------------------------------------------------------------


async def test_who_is_barred_by_one_is_barred_by_all_at_once(two: Two) -> None:
    first, second = two
    wallet = await first.customer("20.00")
    bar = Bar(verb=Verb.BLOCK, wallet=wallet.address, reason="a test")
    await first.service.workers.clerk.carry_out(bar)
    found(await second.sign(wallet, "POST", "/v1/servers", ORDER), 403)


async def test_a_fall_in_price_is_sold_at_by_replicas_that_have_not_heard(two: Two) -> None:
    """Nobody is told of a fall who orders after it was told."""
    first, second = two
    wallet = await first.customer("30.00")
    await announce(first, 130_000)
    await announce(first, 200_000, type="medium")
    assert await price_now(second) == "0.15", "it shows what it has read"
    server = await second.rent(wallet)
    assert (await second.server(server["id"])).daily_usdc == 130_000
    found(await second.sign(wallet, "POST", f"/v1/servers/{server['id']}/resize", {"type": "medium"}))
    await second.run_for(300)
    assert (await second.server(server["id"])).daily_usdc == 200_000
    await second.tick("listing")
    assert await price_now(second) == "0.13"


async def test_a_rise_is_not_asked_of_who_was_quoted_less(two: Two) -> None:
    first, second = two
    wallet = await first.customer("30.00")
    await announce(first, 200_000)
    server = await second.rent(wallet)
    assert (await second.server(server["id"])).daily_usdc == 150_000


async def test_orders_of_the_command_line_reach_replicas_that_run(tmp_path: Path) -> None:
    """It writes into the database: what is barred or given holds at once, prices from the next look, work goes on."""
    async with two_replicas(tmp_path, clock=VirtualClock(int(time.time()))) as (first, second):
        wallet = await first.customer("20.00")
        server = await first.rent(wallet)
        price = AnnouncePrice(type="small", location="nbg1", daily_usdc=140_000, effective_at=None)
        credit = Credit(id="one", wallet=wallet.address, usdc=1_000_000, reason="a test")
        bar = Bar(verb=Verb.SUSPEND, wallet=wallet.address, reason="a test")
        for order in (price, credit, credit, bar):
            assert not (await cli_orders.give(first.settings, order)).refused
        before = await second.available(wallet.address)
        assert before == await first.available(wallet.address)
        found(await second.sign(wallet, "POST", "/v1/servers", ORDER | {"name": "more"}), 403)
        await second.tick("listing")
        assert await price_now(second) == "0.14"
        await second.run_for(120)
        assert (await first.server(server["id"])).status == "off"


# --- what happened ------------------------------------------------------------------------------------------------


async def test_who_waits_at_one_hears_of_what_another_did(two: Two) -> None:
    first, second = two
    wallet = await first.customer("5.00")
    page = found(await second.sign(wallet, "GET", "/v1/events")).json()
    waiting = asyncio.create_task(
        second.sign(wallet, "GET", f"/v1/events?after={page['next_cursor']}&wait=20")
    )

    async def waits() -> bool:
        return second.service.services.streams.watch.waiting == 1

    await eventually(waits)
    found(await first.pay(wallet, "POST", DEPOSIT, {"amount": "1.00"}))
    assert found(await waiting).json()["events"]


async def test_two_that_send_at_once_send_each_event_once(two: Two) -> None:
    """One leads; another may have begun to send before it lost the lease."""
    first, _ = two
    async with receiving() as receiver:
        wallet = await first.customer("60.00")
        found(await first.sign(wallet, "POST", "/v1/webhooks", {"url": receiver.url}), 201)
        for number in range(6):
            found(await first.sign(wallet, "POST", "/v1/servers", ORDER | {"name": f"s{number}"}), 201)
        for _ in range(40):
            first.clock.advance(1)
            await asyncio.gather(*(one.service.workers.deliveries.start_due() for one in two))
            await asyncio.gather(*(one.service.workers.deliveries.idle() for one in two))
        left = await first.rows("SELECT seq FROM delivery WHERE state <> 'delivered'")
        assert left == []
        (row,) = await first.rows("SELECT COUNT(*) AS n FROM delivery")
        assert len(receiver.got) == row["n"] >= 6
        assert len({message.id for message in receiver.got}) == row["n"]


async def test_each_limit_is_one_replicas_own(tmp_path: Path) -> None:
    """As settings.md says: n replicas grant n times what one does, and never less than what was promised."""
    async with two_replicas(tmp_path, rate_wallet_per_minute=3) as (first, second):
        wallet = await first.customer("5.00")

        async def granted(world: World) -> int:
            answers = [await world.sign(wallet, "GET", "/v1/balance") for _ in range(5)]
            return sum(answer.status_code == 200 for answer in answers)

        assert (await granted(first), await granted(second)) == (3, 3)
