"""Money bugs that others had in public, each asked of this service: payments, refunds, and many callers at once.

A docstring names where it happened. The bugs of time and of repeated jobs are in `test_bugs_of_others_in_time`.
"""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import psycopg
import pytest
from spawn_ledger.accounts import REV_OPFEE, wallet_account
from spawn_ledger.transfers import Code, InsufficientFunds, Transfer, TransferId, balance_of, post
from spawn_ledger.tx import Tx
from spawn_providers.simulated_faults import Breakdown
from spawn_schemas.money import Usdc

from spawn.services.billing import Billing
from tests.harness import World, open_world
from tests.integration.paid_calls import paid_in, signed
from tests.integration.server_steps import (
    SMALL,
    accepted_at,
    balance,
    burnt,
    drive,
    hour,
    micro,
    order,
    rent,
)
from tests.wallets import Wallet

CREATE, DESTROY = 10_000, 5_000
DEPOSIT_PATH = "/v1/balance/deposit"
LIVED_S = 7_201
"""Longer than the least that is charged, and no whole number of micro-dollars."""


async def moved(world: World, code: str) -> list[int]:
    """The amounts of all transfers of this code, oldest first."""
    rows = await world.rows("SELECT amount FROM transfer WHERE code = :code ORDER BY seq", code=code)
    return [row["amount"] for row in rows]


async def lived(world: World, wallet: Wallet) -> tuple[str, int]:
    """A server that has run for two hours: its id, and what it has burnt."""
    server_id = await rent(world, wallet, deposit="2.00")
    since = await accepted_at(world, server_id)
    world.clock.advance(since + LIVED_S - world.clock.now_s())
    return server_id, burnt(SMALL, LIVED_S)


async def test_a_refund_is_not_repeatable(tmp_path: Path) -> None:
    """Blnk #152 gave a payment back as often as it was asked; Blnk #374 said no the second time, and undid the first.

    The end of a server is the refund here: what a repeat answers, the money moved once, and moves no other way later.
    """
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id, cost = await lived(world, wallet)
        answers = [await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}") for _ in range(2)]
        await drive(world)
        answers += [await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 409, 404, 404]
        assert await moved(world, "deposit_refund") == [2_000_000 - cost]
        assert await world.available(wallet.address) == 20_000_000 - CREATE - cost - DESTROY
        assert await world.account(f"srv:{server_id}") == 0
        await world.check_books()


async def test_refunds_at_once_give_back_what_was_paid_and_no_more(tmp_path: Path) -> None:
    """eventyay #1405: two refunds at once both saw the whole payment unrefunded, and together gave more than it."""
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id, cost = await lived(world, wallet)
        path = f"/v1/servers/{server_id}"
        answers = await asyncio.gather(*(world.sign(wallet, "DELETE", path) for _ in range(20)))
        assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 19}
        await drive(world)
        assert await moved(world, "deposit_refund") == [2_000_000 - cost]
        assert sum(await moved(world, "deposit")) == sum(await moved(world, "deposit_refund")) + cost
        await world.check_books()


async def test_a_reversal_by_many_at_once_is_one(tmp_path: Path) -> None:
    """open-bank-oss #528: two reversals of one transfer passed the same check together, and both were booked.

    A machine that was promised and never came is our reversal; five workers find out about it in the same moment.
    """
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", Breakdown())
        created = await order(world, wallet)
        assert created.status_code == 201
        for _ in range(300):
            world.clock.advance(2)
            await asyncio.gather(*(world.tick("operations", "burn") for _ in range(5)))
            if not await world.rows("SELECT id FROM operation WHERE status = 'running'"):
                break
        assert (await world.server(created.json()["server"]["id"])).status == "failed"
        assert await moved(world, "fee_refund") == [CREATE]
        assert len(await moved(world, "deposit_refund")) == 1
        assert len(await moved(world, "burn_refund")) <= 1
        assert await world.available(wallet.address) == 20_000_000
        await world.check_books()


async def test_what_is_undone_is_undone_on_every_side(tmp_path: Path) -> None:
    """elizaOS #10846: a failed call gave the buyer the money back, and left the share that the seller had of it.

    After a create that broke down nobody has earned: not from the fee, not from the seconds it was metered for.
    """
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", Breakdown())
        created = await order(world, wallet)
        world.clock.advance(1)
        billing, now = Billing(world.parts.entropy, world.settings.warning_policy), world.clock.now_s()
        await world.parts.db.write(lambda tx: billing.settle(tx, wallet.address, now))
        await drive(world)
        assert (await world.server(created.json()["server"]["id"])).status == "failed"
        assert await moved(world, "burn") != [], "there was something to undo"
        for account in ("rev:opfee", "rev:compute", f"srv:{created.json()['server']['id']}"):
            assert await world.account(account) == 0, account
        assert (
            await world.account(f"wallet:{wallet.address}") == await world.account("ext:usdc") == 20_000_000
        )
        await world.check_books()


async def test_two_payments_of_one_amount_are_two_and_one_sent_twice_is_one(tmp_path: Path) -> None:
    """Lago #5870: the same top-up sent twice was credited twice, since nothing told a repeat from another payment."""
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        body = {"amount": "1.00"}
        payments = [await world.payment(wallet, "POST", DEPOSIT_PATH, body) for _ in range(2)]
        for payment in (*payments, *payments, payments[0]):
            answer = await world.send_payment(payment, "POST", DEPOSIT_PATH, body)
            assert answer.status_code == 200, answer.text
        assert await moved(world, "topup") == [1_000_000, 1_000_000]
        assert [transfer.amount for transfer in await paid_in(world, wallet)] == [1_000_000, 1_000_000]
        assert (await balance(world, wallet))["balance"] == 2_000_000
        await world.check_books()


async def test_a_payment_that_comes_twice_within_milliseconds_settles_once(tmp_path: Path) -> None:
    """Lago #3618: two workers settled one wallet transaction within milliseconds, and its credit counted twice."""
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        body = {"amount": "1.00"}
        payment = await world.payment(wallet, "POST", DEPOSIT_PATH, body)
        first, second, _ = await asyncio.gather(
            world.send_payment(payment, "POST", DEPOSIT_PATH, body),
            world.send_payment(payment, "POST", DEPOSIT_PATH, body),
            world.tick("settlements", "suspense"),
        )
        assert (first.status_code, second.status_code) == (200, 200)
        assert await moved(world, "topup") == [1_000_000]
        assert len(await paid_in(world, wallet)) == 1
        await world.check_books()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE account SET balance = -1 WHERE id = :id",
        "UPDATE account SET held = balance + 1 WHERE id = :id",
        "UPDATE account SET held = -1 WHERE id = :id",
    ],
)
async def test_the_database_itself_refuses_what_is_below_zero(tmp_path: Path, sql: str) -> None:
    """Lago #4985: only code kept a balance from going below zero, and some code did not."""
    async with open_world(tmp_path) as world:
        wallet = await world.customer("1.00")
        with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError), match="account_never_negative"):
            await world.parts.db.write(lambda tx: tx.execute(sql, {"id": wallet_account(wallet.address)}))
        assert await world.available(wallet.address) == 1_000_000


async def test_spending_at_once_never_goes_below_zero(tmp_path: Path) -> None:
    """double_entry #114 and Flexcoin (2014, 896 BTC): many transfers at once, each of which saw the whole balance.

    Forty raises of two reserves by 0.50, from a balance that covers ten of them.
    """
    async with open_world(tmp_path) as world:
        wallet = await world.customer("9.30")
        server_ids = [await rent(world, wallet, name=name, deposit="2.00") for name in ("web", "db")]
        before = await world.available(wallet.address)
        raises = [
            world.sign(wallet, "POST", f"/v1/servers/{server_ids[number % 2]}/deposit", {"amount": "0.50"})
            for number in range(40)
        ]
        answers = await asyncio.gather(*raises)
        counted = Counter(answer.status_code for answer in answers)
        assert counted[200] == before // 500_000 == 10
        assert set(counted) <= {200, 402, 422}
        left = await world.available(wallet.address)
        assert 0 <= left == before - 10 * 500_000 - await world.account("rev:opfee") + 2 * CREATE
        reserved = sum([await world.account(f"srv:{server_id}") for server_id in server_ids])
        burn = await world.account("rev:compute")
        assert reserved == 2 * 2_000_000 + 10 * 500_000 - burn
        await world.check_books()


async def test_a_wallet_without_a_row_is_neither_robbed_nor_lends(tmp_path: Path) -> None:
    """Formance, and Blnk before its locks: a lock on a row that is not there yet holds nobody up.

    Of a wallet that nobody has seen, no spending passes; of ten first payments at once, every one is kept.
    """
    async with open_world(tmp_path) as world:
        wallet = await world.wallet("10.00")
        orders = [signed(world, wallet, "POST", "/v1/servers", {"name": f"n{n}"}) for n in range(5)]
        refused = await asyncio.gather(*(world.http.send(request) for request in orders))
        assert all(answer.status_code >= 400 for answer in refused)
        with pytest.raises(InsufficientFunds):
            await world.parts.db.write(lambda tx: post(tx, _fee(wallet)))
        assert await world.rows("SELECT id FROM account WHERE balance <> 0 OR held <> 0") == []
        body = {"amount": "1.00"}
        payments = [await world.payment(wallet, "POST", DEPOSIT_PATH, body) for _ in range(10)]
        await asyncio.gather(*(world.send_payment(p, "POST", DEPOSIT_PATH, body) for p in payments))
        assert await world.available(wallet.address) == 10_000_000
        await world.check_books()


def _fee(wallet: Wallet) -> Transfer:
    return Transfer(
        id=TransferId("fee|first"),
        debit=wallet_account(wallet.address),
        credit=REV_OPFEE,
        amount=Usdc(1),
        code=Code.FEE,
        reference="first",
        at=0,
    )


async def given_up_once(
    world: World, call: Awaitable[httpx.Response], happened: Callable[[Tx], bool]
) -> None:
    """Send a call, and hang up once it has had its effect and before it is answered."""
    calling = asyncio.ensure_future(call)
    for _ in range(10_000):
        if await world.parts.db.write(happened):
            break
        await asyncio.sleep(0)
    else:
        raise AssertionError("the call had no effect")
    calling.cancel()
    await asyncio.wait((calling,))


async def test_a_payment_whose_answer_was_lost_is_credited_once(tmp_path: Path) -> None:
    """elizaOS #10930: the commit happened, its acknowledgement did not arrive, and the retry booked it again."""
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        body = {"amount": "1.00"}
        payment = await world.payment(wallet, "POST", DEPOSIT_PATH, body)
        account = wallet_account(wallet.address)
        call = world.send_payment(payment, "POST", DEPOSIT_PATH, body)
        await given_up_once(world, call, lambda tx: balance_of(tx, account).balance > 0)
        again = await world.send_payment(payment, "POST", DEPOSIT_PATH, body)
        assert again.status_code == 200, again.text
        assert await moved(world, "topup") == [1_000_000]
        assert await world.available(wallet.address) == 1_000_000
        await world.check_books()


async def test_a_refund_whose_answer_was_lost_is_given_once(tmp_path: Path) -> None:
    """elizaOS #11539: a settlement that failed after its commit was tried again, and the refund came twice."""
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id, cost = await lived(world, wallet)
        path, account = f"/v1/servers/{server_id}", f"srv:{server_id}"
        call = world.sign(wallet, "DELETE", path)
        await given_up_once(
            world,
            call,
            lambda tx: (
                tx.one("SELECT id FROM account WHERE id = :id AND balance = 0", {"id": account}) is not None
            ),
        )
        again = await world.sign(wallet, "DELETE", path)
        assert again.status_code == 409
        await drive(world)
        assert await moved(world, "deposit_refund") == [2_000_000 - cost]
        assert await world.available(wallet.address) == 20_000_000 - CREATE - cost - DESTROY
        await world.check_books()


async def test_whoever_was_answered_sees_it_at_once(tmp_path: Path) -> None:
    """elizaOS #11331: right after a top-up a replica showed the old balance, and the caller acted on that."""
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        for count in range(1, 16):
            paid = await world.pay(wallet, "POST", DEPOSIT_PATH, {"amount": "1.00"})
            assert paid.status_code == 200, paid.text
            seen = await asyncio.gather(*(balance(world, wallet) for _ in range(4)))
            assert [one["balance"] for one in seen] == [count * 1_000_000] * 4


async def test_no_rounding_is_anybodys(tmp_path: Path) -> None:
    """Lago #4642: an invoice and its wallet rounded apart by a cent, and totals came out below zero.

    Whatever is shown, at any second, adds up to what was paid in less fees and the burn rounded down once.
    """
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet, deposit="2.00")
        since = await accepted_at(world, server_id)
        for waited_s in (1, 7, 59, 3_601, 86_399, 100_003):
            world.clock.advance(waited_s)
            cost = burnt(SMALL, world.clock.now_s() - since)
            shown = await balance(world, wallet)
            assert shown["balance"] == shown["available"] + shown["reserved"]
            assert shown["reserved"] == 2_000_000 - cost
            assert shown["balance"] == 20_000_000 - CREATE - cost
            await world.tick("burn")
        cost = max(burnt(SMALL, world.clock.now_s() - since), hour(SMALL))
        gone = await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        assert micro(gone.json()["deposit_refunded"]) == 2_000_000 - cost - DESTROY
        assert await balance(world, wallet) == {
            "balance": 20_000_000 - CREATE - cost - DESTROY,
            "reserved": 0,
            "available": 20_000_000 - CREATE - cost - DESTROY,
        }
        await world.check_books()
