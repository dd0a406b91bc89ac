"""An authorization's money enters the books once, whoever is first: call, stranger, watcher or claim."""

from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spawn.app import build
from spawn.evm.node import NodeUnavailable
from spawn.jobs.suspense import Suspense
from spawn.payments import exact
from spawn.payments.arrivals import Arrived
from spawn.payments.devnet import DevChain
from spawn.services import funds
from spawn.services.suspense import PER_WRITE
from spawn.store.database import DatabaseFailed
from tests.harness import BASE_URL, CHAIN_ID, World, open_world
from tests.integration.arriving import (
    DEPOSIT,
    FIVE,
    Dying,
    Listed,
    balances,
    claim,
    front_run,
    send,
    waiting,
    watch,
)
from tests.integration.paid_calls import challenge, everything, refusal
from tests.wallets import Wallet, encode

# --- the payment of a call --------------------------------------------------------------------------------------


async def test_a_settled_call_is_no_arrival(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("5.00")
        before = await everything(world)
        await watch(world)
        after = await everything(world)
        assert after | {"watch": before["watch"]} == before
        assert [row["cursor"] for row in after["watch"] if row["name"] == world.chain.name] == ["2"]
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
