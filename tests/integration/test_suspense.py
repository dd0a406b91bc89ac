"""USDC that reaches us outside a call is kept for its sender, and enters the books once, whoever is first."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spawn_ledger.tx import Params, Row, Tx
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc, parse_usdc

from spawn.app import build
from spawn.evm.node import NodeUnavailable
from spawn.jobs.suspense import PER_WRITE, Suspense
from spawn.payments import exact
from spawn.payments.arrivals import Arrived
from spawn.payments.devnet import NOBODY, DevChain
from spawn.services import funds
from spawn.services.suspense import AT_ONCE
from spawn.store.database import NO_PARAMS, Database, DatabaseFailed
from tests.harness import BASE_URL, CHAIN_ID, World, open_world
from tests.integration.paid_calls import challenge, everything, nothing_changes, refusal, signed
from tests.wallets import Wallet, encode

T = TypeVar("T")

DEPOSIT = ("POST", "/v1/balance/deposit", {"amount": "5.00"})
FIVE = parse_usdc("5.00")
LIST = ("GET", "/v1/suspense")
CLAIM = ("POST", "/v1/suspense/claim")


class Dying:
    """A database whose process dies at one write: before it, or when it is committed and not answered."""

    def __init__(self, inner: Database, at: int, *, is_kept: bool) -> None:
        self._inner = inner
        self._left = at
        self._is_kept = is_kept

    @property
    def exclusive(self) -> bool:
        return self._inner.exclusive

    @property
    def is_dead(self) -> bool:
        return self._left <= 0

    async def read(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        self._refuse_if_dead()
        return await self._inner.read(sql, params)

    async def write(self, fn: Callable[[Tx], T]) -> T:
        self._refuse_if_dead()
        self._left -= 1
        if self._left > 0:
            return await self._inner.write(fn)
        if self._is_kept:
            await self._inner.write(fn)
        raise DatabaseFailed("the process is dead")

    async def close(self) -> None:
        await self._inner.close()

    def _refuse_if_dead(self) -> None:
        if self.is_dead:
            raise DatabaseFailed("the process is dead")


class Listed:
    """A log of arrivals that a test writes, in pages of its own."""

    name = "a log of the test's"

    def __init__(self, *pages: tuple[Arrived, ...]) -> None:
        self.pages = pages

    async def page(self, cursor: str) -> tuple[tuple[Arrived, ...], str]:
        read = int(cursor or 0)
        return (self.pages[read], str(read + 1)) if read < len(self.pages) else ((), cursor)


async def watch(world: World, db: Database | None = None) -> None:
    """The watcher of the chain, in a process of its own as far as it can tell."""
    await Suspense(db or world.parts.db, world.chain).tick(world.clock.now_s())


async def send(world: World, wallet: Wallet, amount: str) -> None:
    """An ordinary transfer to us."""
    await world.chain.send(wallet.address, world.settings.pay_to, parse_usdc(amount))


async def front_run(world: World, payment: str) -> None:
    """A stranger carries this authorization to the chain."""
    authorization = exact.identify(exact.decode_payment(payment), world.service.services.terms)
    await world.chain.settle(authorization)


async def waiting(world: World) -> Usdc:
    return await world.account("suspense")


async def balances(world: World, wallet: Wallet) -> tuple[Usdc, Usdc, Usdc]:
    """What the wallet has, what waits in suspense, what the chain shows that we hold."""
    return (
        await world.available(wallet.address),
        await waiting(world),
        await world.chain.balance_of(world.settings.pay_to),
    )


async def claim(world: World, wallet: Wallet) -> dict[str, Any]:
    answer = await world.sign(wallet, *CLAIM)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


# --- an ordinary transfer ---------------------------------------------------------------------------------------


async def test_what_arrives_outside_a_call_waits_for_its_sender(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        sender, other = await world.wallet("10.00"), await world.customer("1.00")
        await send(world, sender, "2.50")
        world.clock.advance(1)
        await send(world, sender, "0.000001")
        await watch(world)
        shown = await world.sign(sender, *LIST)
        assert shown.status_code == 200, shown.text
        transfers = [line for line in await world.chain.transfers() if line.sender == sender.address]
        assert shown.json() == {
            "arrivals": [
                {"transaction": transfers[0].tx_hash, "amount": "2.50", "at": "2026-09-21T14:13:20Z"},
                {"transaction": transfers[1].tx_hash, "amount": "0.000001", "at": "2026-09-21T14:13:21Z"},
            ],
            "total": "2.500001",
        }
        assert (await world.sign(other, *LIST)).json() == {"arrivals": [], "total": "0.00"}
        assert await claim(world, other) == {
            "claimed": "0.00",
            "left": "0.00",
            "balance": "1.00",
            "reserved": "0.00",
            "available": "1.00",
        }
        assert await claim(world, sender) == {
            "claimed": "2.500001",
            "left": "0.00",
            "balance": "2.500001",
            "reserved": "0.00",
            "available": "2.500001",
        }
        assert (await claim(world, sender))["claimed"] == "0.00"
        assert await balances(world, sender) == (2_500_001, 0, 3_500_001)
        statement = await world.sign(sender, "GET", "/v1/balance/transactions")
        assert [(t["kind"], t["amount"]) for t in statement.json()["transactions"]] == [
            ("claim", "0.000001"),
            ("claim", "2.50"),
        ]
        await world.check_books()


async def test_a_claim_sent_again_is_answered_from_the_first(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        sender = await world.wallet("10.00")
        await send(world, sender, "1.00")
        await watch(world)
        request = signed(world, sender, *CLAIM)
        first = await world.http.send(request)
        await send(world, sender, "2.00")
        await watch(world)
        async with nothing_changes(world):
            again = await world.http.send(request)
        assert again.headers["Idempotent-Replayed"] == "true"
        assert again.json() == first.json()
        assert await balances(world, sender) == (1_000_000, 2_000_000, 3_000_000)


async def test_only_what_binds_the_request_claims(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        sender = await world.wallet("10.00")
        await send(world, sender, "1.00")
        await watch(world)
        opened = await world.sign(sender, "POST", "/v1/sessions")
        bearer = {"Authorization": f"Bearer {opened.json()['session']['token']}"}
        assert (await world.http.get(LIST[1], headers=bearer)).json()["total"] == "1.00"
        async with nothing_changes(world):
            challenge(await world.http.post(CLAIM[1], headers=bearer))
            challenge(await world.ask(*CLAIM))
        # A payment says who calls as well as a signature does, and is credited besides.
        paid = await world.pay(sender, *CLAIM)
        assert (paid.json()["claimed"], paid.json()["balance"]) == ("1.00", "1.001")
        await world.check_books()


async def test_thousands_of_arrivals_are_claimed_in_parts(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        sender = await world.wallet("10.00")
        for _ in range(AT_ONCE + 1):
            await send(world, sender, "0.01")
        await watch(world)
        shown = (await world.sign(sender, *LIST)).json()
        assert (len(shown["arrivals"]), shown["total"]) == (AT_ONCE, "1.01")
        assert [
            (body["claimed"], body["left"]) for body in [await claim(world, sender) for _ in range(3)]
        ] == [
            ("1.00", "0.01"),
            ("0.01", "0.00"),
            ("0.00", "0.00"),
        ]
        await world.check_books()


async def test_what_brings_us_nothing_is_no_arrival(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        sender, pay_to = await world.wallet("1.00"), world.settings.pay_to
        await world.chain.send(sender.address, pay_to, Usdc(0))
        await send(world, sender, "1.00")
        await world.chain.send(pay_to, pay_to, Usdc(400_000))
        await world.chain.mint(Address("0x" + "ee" * 20), Usdc(7))
        await watch(world)
        assert await waiting(world) == 1_000_000
        await world.check_books()


async def test_play_money_given_to_us_is_nobodys(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await world.chain.mint(world.settings.pay_to, Usdc(5))
        await watch(world)
        (arrival,) = await world.rows("SELECT sender, amount FROM arrival")
        assert (arrival["sender"], arrival["amount"]) == (NOBODY, 5)
        await world.check_books()


# --- the payment of a call --------------------------------------------------------------------------------------


async def test_a_settled_call_is_no_arrival(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("5.00")
        before = await everything(world)
        await watch(world)
        after = await everything(world)
        assert after | {"watch": before["watch"]} == before
        assert [row["cursor"] for row in after["watch"]] == ["2"]
        assert await balances(world, wallet) == (FIVE, 0, FIVE)


async def test_a_stranger_before_the_call_and_the_watcher_between_them(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        payment = await world.payment(wallet, *DEPOSIT)
        await front_run(world, payment)
        await watch(world)
        assert await balances(world, wallet) == (0, FIVE, FIVE)
        paid = await world.send_payment(payment, *DEPOSIT)
        assert paid.json()["deposited"] == "5.00"
        assert await balances(world, wallet) == (FIVE, 0, FIVE)
        (arrival,) = await world.rows("SELECT state, claimed_at FROM arrival")
        assert (arrival["state"], arrival["claimed_at"]) == ("claimed", world.clock.now_s())
        assert (await claim(world, wallet))["claimed"] == "0.00"
        await world.check_books()


async def test_a_stranger_before_the_call_and_the_claim_as_well(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        payment = await world.payment(wallet, *DEPOSIT)
        await front_run(world, payment)
        await watch(world)
        assert (await claim(world, wallet))["claimed"] == "5.00"
        paid = await world.send_payment(payment, *DEPOSIT)
        assert (paid.status_code, paid.json()["balance"]) == (200, "5.00")
        await watch(world)
        assert await balances(world, wallet) == (FIVE, 0, FIVE)
        await world.check_books()


async def test_a_payment_that_we_refused_and_a_stranger_carried_is_its_payers(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        payment = await world.payment(wallet, *DEPOSIT)
        world.chain_faults.refuse = 1
        refusal(await world.send_payment(payment, *DEPOSIT), 402, "settlement_failed")
        await front_run(world, payment)
        await watch(world)
        assert await balances(world, wallet) == (FIVE, 0, FIVE)
        await watch(world)
        assert await balances(world, wallet) == (FIVE, 0, FIVE)
        await world.check_books()


@pytest.mark.parametrize("watcher_first", [True, False])
async def test_a_payment_whose_answer_was_lost_is_credited_by_whoever_sees_it(
    tmp_path: Path, watcher_first: bool
) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        payment = await world.payment(wallet, *DEPOSIT)
        world.chain_faults.lose_answer = 1
        refusal(await world.send_payment(payment, *DEPOSIT), 503, "settlement_pending")
        if watcher_first:
            await watch(world)
            assert await balances(world, wallet) == (FIVE, 0, FIVE)
            await world.tick("settlements")
        else:
            await world.tick("settlements")
            await watch(world)
        assert await balances(world, wallet) == (FIVE, 0, FIVE)
        paid = await world.send_payment(payment, *DEPOSIT)
        assert (paid.status_code, paid.json()["balance"]) == (200, "5.00")
        await world.check_books()


async def test_the_nonce_of_a_refused_payment_spent_for_another_amount_brings_what_came(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        asked = challenge(await world.ask(*DEPOSIT))["accepts"][0]
        now = world.clock.now_s()
        for_us = encode(wallet.payload(asked, now=now, nonce=7))
        less = encode(wallet.payload(asked, now=now, nonce=7, value="1000"))
        world.chain_faults.refuse = 1
        refusal(await world.send_payment(for_us, *DEPOSIT), 402, "settlement_failed")
        await front_run(world, less)
        await watch(world)
        assert await balances(world, wallet) == (1_000, 0, 1_000)
        await world.check_books()


async def test_an_authorization_that_settled_twice_as_far_as_we_saw_is_credited_once(tmp_path: Path) -> None:
    """The chain was reorganised: the same nonce in another transaction than the one that we booked."""
    async with open_world(tmp_path) as world:
        wallet = await world.customer("5.00")
        (arrived,), _ = await world.chain.page("1")
        moved = Arrived(
            id="0x99|3",
            transaction="0x99",
            sender=arrived.sender,
            amount=arrived.amount,
            nonce_key=arrived.nonce_key,
            at=arrived.at,
        )
        await Suspense(world.parts.db, Listed((moved,), (arrived, moved))).tick(world.clock.now_s())
        assert await balances(world, wallet) == (FIVE, 0, FIVE)
        assert await world.rows("SELECT * FROM arrival") == []


async def test_a_settlement_reported_with_another_transaction_is_no_second_credit(tmp_path: Path) -> None:
    """The watcher booked the transaction that the chain shows; the facilitator names one that was replaced."""
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        payment = await world.payment(wallet, *DEPOSIT)
        world.chain_faults.lose_answer = 1
        refusal(await world.send_payment(payment, *DEPOSIT), 503, "settlement_pending")
        await watch(world)
        key = exact.identify(exact.decode_payment(payment), world.service.services.terms).nonce_key(
            CHAIN_ID, world.service.services.terms.asset
        )
        for amount, reference in ((FIVE, "0xother"), (FIVE, "0xanother")):
            credited = await world.parts.db.write(
                partial(
                    funds.credit_payment,
                    wallet=wallet.address,
                    amount=amount,
                    nonce_key=key,
                    reference=reference,
                    at=world.clock.now_s(),
                )
            )
            assert credited is False
        assert await balances(world, wallet) == (FIVE, 0, FIVE)


# --- every order, and every crash -------------------------------------------------------------------------------

STEPS = ("stranger", "call", "refused call", "lost call", "watch", "claim", "plain", "minute", "settlements")


async def step(world: World, name: str, wallet: Wallet, payment: str) -> None:
    match name:
        case "stranger":
            await front_run(world, payment)
        case "call":
            await world.send_payment(payment, *DEPOSIT)
        case "refused call":
            world.chain_faults.refuse = 1
            await world.send_payment(payment, *DEPOSIT)
            world.chain_faults.refuse = 0
        case "lost call":
            world.chain_faults.lose_answer = 1
            await world.send_payment(payment, *DEPOSIT)
            world.chain_faults.lose_answer = 0
        case "watch":
            await watch(world)
        case "claim":
            await claim(world, wallet)
        case "plain":
            await send(world, wallet, "0.25")
        case "minute":
            world.clock.advance(60)
        case _:
            await world.tick(name)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(STEPS), max_size=12))
async def test_in_every_order_the_books_have_what_the_chain_has(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    async with open_world(tmp_path_factory.mktemp("order"), rate_address_per_minute=0) as world:
        wallet = await world.wallet("100.00")
        payment = await world.payment(wallet, *DEPOSIT)
        for name in steps:
            await step(world, name, wallet, payment)
            await world.check_books()
        await watch(world)
        credited, suspended, held = await balances(world, wallet)
        assert credited + suspended == held
        await claim(world, wallet)
        assert await balances(world, wallet) == (held, 0, held)
        await world.check_books()


@pytest.mark.parametrize("is_kept", [False, True])
async def test_a_watcher_that_dies_at_any_write_loses_and_doubles_nothing(
    tmp_path: Path, is_kept: bool
) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("5.00")
        for _ in range(PER_WRITE + 1):
            await send(world, wallet, "0.01")
        payment = await world.payment(wallet, *DEPOSIT)
        await front_run(world, payment)
        for at in count(1):
            dying = Dying(world.parts.db, at, is_kept=is_kept)
            try:
                await watch(world, dying)
            except DatabaseFailed:
                await world.check_books()
                continue
            assert not dying.is_dead
            break
        assert at > 2
        assert await balances(world, wallet) == (FIVE, 6_010_000, 11_010_000)
        await world.check_books()


@pytest.mark.parametrize("watcher_first", [True, False])
@pytest.mark.parametrize("is_kept", [False, True])
async def test_a_call_that_dies_at_any_write_with_a_stranger_at_work_is_credited_once(
    tmp_path: Path, is_kept: bool, watcher_first: bool
) -> None:
    for at in count(1):
        folder = tmp_path / str(at)
        folder.mkdir()
        async with open_world(folder) as world:
            wallet = await world.wallet()
            payment = await world.payment(wallet, *DEPOSIT)
            await front_run(world, payment)
            if watcher_first:
                await watch(world)
            dying = await call_and_die(world, payment, at, is_kept=is_kept)
        async with open_world(folder, clock=world.clock) as world:
            await watch(world)
            await world.check_books()
            answer = await world.send_payment(payment, *DEPOSIT)
            assert (answer.status_code, answer.json()["balance"]) == (200, "5.00")
            await watch(world)
            assert await balances(world, wallet) == (FIVE, 0, FIVE)
            await world.check_books()
        if not dying.is_dead:
            break
    assert at > 2


async def call_and_die(world: World, payment: str, at: int, *, is_kept: bool) -> Dying:
    """The call, in a service that dies at this write."""
    dying = Dying(world.parts.db, at + 1, is_kept=is_kept)  # the first write is the start's
    service = await build(world.settings, replace(world.parts, db=dying), ticking=False)
    transport = httpx.ASGITransport(app=cast("Any", service.app), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=BASE_URL) as http:
        await http.post(DEPOSIT[1], json=DEPOSIT[2], headers={"PAYMENT-SIGNATURE": payment})
    await service.operator.stop()
    return dying


# --- the watcher ------------------------------------------------------------------------------------------------


class Unreachable(DevChain):
    async def page(self, cursor: str) -> tuple[tuple[Arrived, ...], str]:
        raise NodeUnavailable("no route to the node")


async def test_a_node_that_is_away_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_world(tmp_path) as world:
        sender = await world.wallet()
        await send(world, sender, "1.00")
        away = Unreachable(
            Path(world.settings.devnet_path), world.service.services.terms, now=world.clock.now_s
        )
        await Suspense(world.parts.db, away).tick(world.clock.now_s())
        away.close()
        assert "cannot be read yet: no route to the node" in caplog.text
        await watch(world)
        assert await waiting(world) == 1_000_000


async def test_a_page_that_is_read_again_changes_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        sender = await world.wallet()
        await send(world, sender, "1.00")
        await watch(world)
        await claim(world, sender)
        await world.parts.db.write(lambda tx: tx.execute("DELETE FROM watch", {}))
        await watch(world)
        assert await balances(world, sender) == (1_000_000, 0, 1_000_000)
        await world.check_books()
