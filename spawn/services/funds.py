"""Where servers meet the ledger: burn, holds, refunds, and the end of billing.

Invariant: every function runs inside a transaction it is handed and leaves the meter, the reserve and the posted
burn of each server in agreement. A wallet's debit is preceded by `settle`, so that money already burnt is gone first.
"""

from typing import Final

from msgspec.structs import replace
from spawn_ledger import accrual, runway
from spawn_ledger.accounts import EXT_USDC, REV_COMPUTE, REV_OPFEE, SUSPENSE, server_account, wallet_account
from spawn_ledger.transfers import (
    Code,
    Hold,
    Transfer,
    TransferId,
    TransferIdReused,
    balance_of,
    hold,
    list_pending,
    post,
    post_hold,
    release_hold,
    transfer_id,
)
from spawn_ledger.tx import Tx
from spawn_schemas.ids import ActionId, Address, ServerId
from spawn_schemas.money import Usdc

from spawn.domain.servers import Server
from spawn.store import arrivals
from spawn.store import servers as rows
from spawn.store.arrivals import Arrival
from spawn.store.servers import Billed

SELECT_POSTED: Final = "SELECT amount FROM hold WHERE id = :id AND state = 'posted'"


def available_usdc(tx: Tx, wallet: Address) -> Usdc:
    """What the wallet can spend; exact after `settle`."""
    return balance_of(tx, wallet_account(wallet)).available


def reserve_usdc(tx: Tx, server_id: ServerId) -> Usdc:
    """What is left of the server's deposit; exact after `settle`."""
    return balance_of(tx, server_account(server_id)).available


def credit_payment(tx: Tx, wallet: Address, amount: Usdc, *, nonce_key: str, reference: str, at: int) -> bool:
    """Book a settled payment; False when it is in the books already.

    The id comes from the payment's nonce, so that it is credited exactly once. Where a stranger carried it to the
    chain before the call came to us, it may wait in suspense under that id, and is taken from there.
    """
    try:
        return post(
            tx,
            Transfer(
                id=payment_id(nonce_key),
                debit=EXT_USDC,
                credit=wallet_account(wallet),
                amount=amount,
                code=Code.TOPUP,
                reference=reference,
                at=at,
            ),
        )
    except TransferIdReused as known:
        if known.field == "reference":
            return False  # the same authorization in another transaction: the chain was reorganised
        arrival = arrivals.find_by_nonce(tx, nonce_key)
        if arrival is None:
            raise
        return claim(tx, arrival, at)


def payment_id(nonce_key: str) -> TransferId:
    """The one entry by which the money of an authorization comes into the books, to whomever it goes."""
    return transfer_id("topup", nonce_key)


def claim(tx: Tx, arrival: Arrival, at: int) -> bool:
    """Give what waits in suspense to its sender; False when the sender has it already."""
    return arrivals.mark_claimed(tx, arrival, at) and post(
        tx,
        Transfer(
            id=transfer_id("claim", arrival.id),
            debit=SUSPENSE,
            credit=wallet_account(arrival.sender),
            amount=arrival.amount,
            code=Code.CLAIM,
            reference=arrival.transaction_hash,
            at=at,
        ),
    )


def charge_fee(tx: Tx, wallet: Address, amount: Usdc, call: str, at: int) -> None:
    """Take a call's fee from the available balance, under the call's own reference. Raises InsufficientFunds."""
    if amount > 0:
        post(
            tx,
            Transfer(
                id=transfer_id("fee", call),
                debit=wallet_account(wallet),
                credit=REV_OPFEE,
                amount=amount,
                code=Code.FEE,
                reference=call,
                at=at,
            ),
        )


def hold_fee(tx: Tx, wallet: Address, amount: Usdc, operation: ActionId, at: int) -> None:
    """Set a fee aside until the provider has said yes. Raises InsufficientFunds."""
    hold(
        tx,
        Hold(
            id=transfer_id("fee", operation),
            debit=wallet_account(wallet),
            credit=REV_OPFEE,
            amount=amount,
            code=Code.FEE,
            reference=operation,
            at=at,
        ),
    )


def hold_deposit(tx: Tx, server: Server, amount: Usdc, operation: ActionId, at: int) -> None:
    """Set a deposit aside until the provider has said yes. Raises InsufficientFunds."""
    hold(
        tx,
        Hold(
            id=transfer_id("deposit", operation),
            debit=wallet_account(server.wallet),
            credit=server_account(server.id),
            amount=amount,
            code=Code.DEPOSIT,
            reference=operation,
            at=at,
        ),
    )


def deposit(tx: Tx, server: Server, amount: Usdc, *, id: TransferId, at: int) -> None:
    """Move money from the wallet into the server's reserve. Raises InsufficientFunds."""
    post(
        tx,
        Transfer(
            id=id,
            debit=wallet_account(server.wallet),
            credit=server_account(server.id),
            amount=amount,
            code=Code.DEPOSIT,
            reference=server.id,
            at=at,
        ),
    )


def withdraw(tx: Tx, server: Server, amount: Usdc, *, id: TransferId, at: int) -> None:
    """Move money from the server's reserve back to the wallet."""
    if amount > 0:
        post(
            tx,
            Transfer(
                id=id,
                debit=server_account(server.id),
                credit=wallet_account(server.wallet),
                amount=amount,
                code=Code.DEPOSIT_REFUND,
                reference=server.id,
                at=at,
            ),
        )


def post_holds(tx: Tx, operation: ActionId, code: Code, at: int) -> None:
    """The provider kept its promise: what was set aside is taken."""
    for pending in list_pending(tx, operation):
        if pending.code is code:
            post_hold(tx, pending.id, at)


def release_holds(tx: Tx, operation: ActionId, at: int) -> Usdc:
    """What was set aside and not taken goes back; answers how much of it was deposit."""
    released = list_pending(tx, operation)
    for pending in released:
        release_hold(tx, pending.id, at)
    return Usdc(sum(pending.amount for pending in released if pending.code is Code.DEPOSIT))


def refund_fee(tx: Tx, wallet: Address, operation: ActionId, at: int) -> None:
    """Give back the fee of an operation that was accepted and then failed."""
    taken = tx.one(SELECT_POSTED, {"id": f"fee|{operation}"})
    if taken is None:
        return
    post(
        tx,
        Transfer(
            id=transfer_id("fee-refund", operation),
            debit=REV_OPFEE,
            credit=wallet_account(wallet),
            amount=Usdc(taken["amount"]),
            code=Code.FEE_REFUND,
            reference=operation,
            at=at,
        ),
    )


def _funding(billed: Billed) -> runway.Funding:
    meter = billed.server.meter
    if meter is None:
        raise RuntimeError(f"{billed.server.id} is due but has no meter")
    return runway.Funding(
        server_id=billed.server.id,
        meter=meter,
        reserve_usdc=billed.reserve_usdc,
        auto_renew=billed.server.auto_renew,
    )


def settle(tx: Tx, wallet: Address, now: int) -> list[tuple[Server, int]]:
    """Charge every server of the wallet up to now; return those whose money ended, each with its last paid second.

    The caller ends them. Running it again charges nothing: the watermark has moved in the same transaction.
    """
    billed = rows.list_billed(tx, wallet)
    settlement = runway.settle(tuple(_funding(b) for b in billed), available_usdc(tx, wallet), now)
    servers = {b.server.id: b.server for b in billed}
    exhausted: list[tuple[Server, int]] = []
    for charge in settlement.charges:
        server = _post_burn(tx, servers[charge.server_id], charge)
        if charge.exhausted_at is not None:
            exhausted.append((server, charge.exhausted_at))
    reschedule(tx, wallet, now)
    return exhausted


def _post_burn(tx: Tx, server: Server, charge: runway.Charge) -> Server:
    before, after = server.charged_until or 0, charge.meter.charged_until
    for leg, account, amount in (
        ("reserve", server_account(server.id), charge.from_reserve),
        ("wallet", wallet_account(server.wallet), charge.from_wallet),
    ):
        if amount > 0:
            post(
                tx,
                Transfer(
                    id=transfer_id("burn", server.id, before, after, leg),
                    debit=account,
                    credit=REV_COMPUTE,
                    amount=amount,
                    code=Code.BURN,
                    reference=server.id,
                    at=after,
                ),
            )
    charged = replace(
        server,
        remainder=charge.meter.remainder,
        charged_until=after,
        charged_usdc=Usdc(server.charged_usdc + charge.from_reserve + charge.from_wallet),
    )
    if charged != server:
        rows.update_server(tx, server, charged)
    return charged


def reschedule(tx: Tx, wallet: Address, now: int) -> None:
    """Set when each server of the wallet must be looked at next; its money ends sooner or later than before."""
    billed = rows.list_billed(tx, wallet)
    due = runway.next_due(tuple(_funding(b) for b in billed), available_usdc(tx, wallet), now)
    for b in billed:
        if due[b.server.id] != b.server.due_at:
            rows.update_server(tx, b.server, replace(b.server, due_at=due[b.server.id]))


def start_meter(tx: Tx, server: Server, now: int) -> Server:
    """The provider has accepted: from this second the server costs money."""
    started = replace(server, charged_until=now, due_at=now, minimum_usdc=accrual.one_hour(server.daily_usdc))
    rows.update_server(tx, server, started)
    reschedule(tx, server.wallet, now)
    return rows.get_server(tx, server.id)


def change_rate(tx: Tx, server: Server, daily_usdc: Usdc, now: int) -> Server:
    """From this second the server burns at another rate; it is settled up to now.

    The remainder is a fraction of a micro-dollar whatever the rate, so it is carried over.
    """
    changed = replace(
        server,
        daily_usdc=daily_usdc,
        minimum_usdc=Usdc(max(server.minimum_usdc, accrual.one_hour(daily_usdc))),
    )
    rows.update_server(tx, server, changed)
    reschedule(tx, server.wallet, now)
    return rows.get_server(tx, server.id)


def close(tx: Tx, server: Server, now: int) -> tuple[Server, Usdc]:
    """End billing: charge what the minimum hour still asks, return the rest; the server is settled already.

    Answers the server without its meter and what came back to the wallet.
    """
    if server.charged_until is not None:
        server = _charge_minimum(tx, server, now)
    refund = reserve_usdc(tx, server.id)
    withdraw(tx, server, refund, id=transfer_id("refund", server.id), at=now)
    closed = replace(server, charged_until=None, due_at=None)
    rows.update_server(tx, server, closed)
    return closed, refund


def _charge_minimum(tx: Tx, server: Server, now: int) -> Server:
    owed = accrual.minimum_due(server.charged_usdc, server.minimum_usdc)
    amount = Usdc(min(owed, reserve_usdc(tx, server.id)))
    if amount == 0:
        return server
    post(
        tx,
        Transfer(
            id=transfer_id("minimum", server.id),
            debit=server_account(server.id),
            credit=REV_COMPUTE,
            amount=amount,
            code=Code.MINIMUM,
            reference=server.id,
            at=now,
        ),
    )
    charged = replace(server, charged_usdc=Usdc(server.charged_usdc + amount))
    rows.update_server(tx, server, charged)
    return charged


def unburn(tx: Tx, server: Server, since: int, now: int) -> Server:
    """Give back what was charged for the time from `since` on: there was no machine any more.

    One rate holds for all of that time, because what is not there is not resized.
    """
    meter = server.meter
    if meter is None or meter.charged_until <= since:
        return server
    unpaid_s = meter.charged_until - since
    owed_less, remainder = divmod(meter.remainder - meter.daily_usdc * unpaid_s, accrual.DAY)
    amount = Usdc(-owed_less)
    _give_back_burn(tx, server, amount, now)
    restored = replace(
        server,
        remainder=remainder,
        charged_until=since,
        charged_usdc=Usdc(server.charged_usdc - amount),
    )
    rows.update_server(tx, server, restored)
    return restored


def reverse(tx: Tx, server: Server, now: int) -> Server:
    """A machine that was promised and never came costs nothing: all its burn and its deposit go back."""
    _give_back_burn(tx, server, server.charged_usdc, now)
    withdraw(tx, server, reserve_usdc(tx, server.id), id=transfer_id("refund", server.id), at=now)
    closed = replace(server, charged_until=None, due_at=None, charged_usdc=Usdc(0))
    rows.update_server(tx, server, closed)
    return closed


def _give_back_burn(tx: Tx, server: Server, amount: Usdc, now: int) -> None:
    """Once in a server's life at most: both ways to here end it."""
    if amount > 0:
        post(
            tx,
            Transfer(
                id=transfer_id("burn-refund", server.id),
                debit=REV_COMPUTE,
                credit=wallet_account(server.wallet),
                amount=amount,
                code=Code.BURN_REFUND,
                reference=server.id,
                at=now,
            ),
        )
