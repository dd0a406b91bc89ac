"""Where wallets and servers meet the ledger: payments, fees, deposits, holds.

Invariant: every function runs inside a transaction it is handed, and names each movement by what it is for.
"""

from typing import Final

from spawn_ledger.accounts import EXT_USDC, REV_OPFEE, SUSPENSE, server_account, wallet_account
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
from spawn_schemas.events import EventType, PaymentData
from spawn_schemas.ids import ActionId, Address, ServerId
from spawn_schemas.money import Usdc, format_usdc

from spawn.domain.servers import Server
from spawn.services.events import emit
from spawn.store import arrivals
from spawn.store.arrivals import Arrival

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
    payment = Transfer(
        id=payment_id(nonce_key),
        debit=EXT_USDC,
        credit=wallet_account(wallet),
        amount=amount,
        code=Code.TOPUP,
        reference=reference,
        at=at,
    )
    try:
        is_new = post(tx, payment)
    except TransferIdReused as known:
        if known.field == "reference":
            return False  # the same authorization in another transaction: the chain was reorganised
        arrival = arrivals.find_by_nonce(tx, nonce_key)
        if arrival is None:
            raise
        is_new = claim(tx, arrival, at)
    if is_new:
        data = PaymentData(amount=format_usdc(amount), transaction=reference, reason=None)
        emit(tx, wallet, EventType.PAYMENT_SETTLED, data, resource=reference, at=at)
    return is_new


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
