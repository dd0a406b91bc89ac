"""The `settlement` and `relay` tables: payments that we bring to the chain, and every transaction that we signed.

Invariant: a transaction is stored before it is sent, together with the payments that it has; `relay` forgets none, so
that whichever version of it is mined is known. States move by compare-and-set only.
"""

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import msgspec
from spawn_ledger.tx import Row, Tx
from spawn_schemas.ids import Address

from spawn.domain.settlements import SettlementState

PAGE: Final = 500
SOME: Final = 10
"""How many rows SELECT_SOME looks up."""


Place: TypeAlias = tuple[int, str]
"""Where a page ends: `created_at` and id of its last row."""
START: Final[Place] = (0, "")


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """One authorization. `id` is the name of its nonce; `amount` is in micro-USDC, `payment` the encoded authorization.

    `relayer` and `relayer_nonce` name the transaction that has it, `transaction_hash` that transaction's newest
    version, or the one that moved the money, which may be a stranger's.
    """

    id: str
    payer: Address
    amount: int
    payment: bytes
    valid_before: int
    state: SettlementState
    relayer: Address | None
    relayer_nonce: int | None
    transaction_hash: str | None
    reason: str | None
    message: str | None
    created_at: int
    finished_at: int | None


class Relay(msgspec.Struct, frozen=True, kw_only=True):
    """One signed transaction: an attempt, counted from 1, at a nonce of ours. Fees in wei per gas, `gas_wei` in wei.

    `sent_at`: when a node last took it.
    """

    hash: str
    relayer: Address
    nonce: int
    attempt: int
    raw: bytes
    gas_limit: int
    max_fee_wei: int
    priority_fee_wei: int
    state: str
    block_number: int | None
    gas_wei: int | None
    created_at: int
    sent_at: int | None


INSERT_SETTLEMENT: Final = """
INSERT INTO settlement (
  id, payer, amount, payment, valid_before, state, relayer, relayer_nonce, transaction_hash, reason, message,
  created_at, finished_at
) VALUES (
  :id, :payer, :amount, :payment, :valid_before, :state, :relayer, :relayer_nonce, :transaction_hash, :reason,
  :message, :created_at, :finished_at
) ON CONFLICT (id) DO NOTHING
"""
REOPEN_SETTLEMENT: Final = """
UPDATE settlement SET
  payer = :payer, amount = :amount, payment = :payment, valid_before = :valid_before, state = 'reserved',
  relayer = NULL, relayer_nonce = NULL, transaction_hash = NULL, reason = NULL, message = NULL,
  created_at = :created_at, finished_at = NULL
WHERE id = :id AND state = 'failed'
"""
SELECT_SETTLEMENT: Final = "SELECT * FROM settlement WHERE id = :id"
# `settlement_open` has what is in flight besides, which a few keys bound; no write pays for an index more.
SELECT_RESERVED: Final = """
SELECT * FROM settlement
WHERE state IN ('reserved', 'signed', 'broadcast') AND state = 'reserved'
  AND (created_at > :created_at OR (created_at = :created_at AND id > :id))
ORDER BY created_at, id LIMIT :limit
"""
SELECT_IN_FLIGHT: Final = """
SELECT * FROM settlement
WHERE state IN ('reserved', 'signed', 'broadcast') AND state <> 'reserved'
  AND (created_at > :created_at OR (created_at = :created_at AND id > :id))
ORDER BY created_at, id LIMIT :limit
"""
SELECT_SOME: Final = """
SELECT * FROM settlement
WHERE id IN (:id0, :id1, :id2, :id3, :id4, :id5, :id6, :id7, :id8, :id9)
"""
SIGN_SETTLEMENT: Final = """
UPDATE settlement SET
  state = 'signed', relayer = :relayer, relayer_nonce = :nonce, transaction_hash = :hash
WHERE id = :id AND state = 'reserved'
"""
RENAME_TRANSACTION: Final = """
UPDATE settlement SET transaction_hash = :hash
WHERE relayer = :relayer AND relayer_nonce = :nonce AND state IN ('signed', 'broadcast')
"""
SETTLEMENTS_SENT: Final = """
UPDATE settlement SET state = 'broadcast'
WHERE relayer = :relayer AND relayer_nonce = :nonce AND state = 'signed'
"""
FINISH_SETTLEMENT: Final = """
UPDATE settlement SET
  state = :state, transaction_hash = COALESCE(:hash, transaction_hash), reason = :reason, message = :message,
  finished_at = :now
WHERE id = :id AND state IN ('reserved', 'signed', 'broadcast')
"""
RETURN_SETTLEMENT: Final = """
UPDATE settlement SET state = 'reserved', relayer = NULL, relayer_nonce = NULL, transaction_hash = NULL
WHERE id = :id AND state IN ('signed', 'broadcast')
"""

INSERT_RELAY: Final = """
INSERT INTO relay (
  hash, relayer, nonce, attempt, raw, gas_limit, max_fee_wei, priority_fee_wei, state, block_number, gas_wei,
  created_at, sent_at
) VALUES (
  :hash, :relayer, :nonce, :attempt, :raw, :gas_limit, :max_fee_wei, :priority_fee_wei, :state, :block_number,
  :gas_wei, :created_at, :sent_at
)
"""
RELAY_SENT: Final = """
UPDATE relay SET state = 'broadcast', sent_at = :now WHERE hash = :hash AND state IN ('signed', 'broadcast')
"""
CONFIRM_RELAY: Final = """
UPDATE relay SET state = 'confirmed', block_number = :block_number, gas_wei = :gas_wei
WHERE hash = :hash AND state IN ('signed', 'broadcast')
"""
REPLACE_RELAYS: Final = """
UPDATE relay SET state = 'replaced'
WHERE relayer = :relayer AND nonce = :nonce AND state IN ('signed', 'broadcast')
"""
# A key has few transactions in flight, and the cap on fees bounds the attempts at each: there are far fewer.
SELECT_OPEN_RELAYS: Final = """
SELECT * FROM relay WHERE state IN ('signed', 'broadcast') ORDER BY relayer, nonce, attempt LIMIT 10000
"""
SELECT_NEXT_NONCE: Final = """
SELECT COALESCE(MAX(nonce) + 1, 0) AS nonce FROM relay WHERE relayer = :relayer
"""
SELECT_NEWEST_RELAY: Final = """
SELECT * FROM relay WHERE relayer = :relayer AND nonce = :nonce
ORDER BY CASE state WHEN 'confirmed' THEN 0 ELSE 1 END, attempt DESC LIMIT 1
"""

_SETTLEMENT: Final = Settlement.__struct_fields__
_RELAY: Final = Relay.__struct_fields__


def settlement_from(row: Row) -> Settlement:
    """Read one row of `SELECT * FROM settlement`."""
    values: dict[str, Any] = {name: row[name] for name in _SETTLEMENT}
    values["state"] = SettlementState(values["state"])
    return Settlement(**values)


def relay_from(row: Row) -> Relay:
    """Read one row of `SELECT * FROM relay`."""
    return Relay(**{name: row[name] for name in _RELAY})


def reserve(tx: Tx, settlement: Settlement) -> Settlement:
    """Take the nonce, anew if it failed before; answers the row as it then is, which may be another's."""
    values = msgspec.structs.asdict(settlement)
    values["state"] = settlement.state.value
    if tx.execute(INSERT_SETTLEMENT, values) == 1 or tx.execute(REOPEN_SETTLEMENT, values) == 1:
        return settlement
    known = tx.one(SELECT_SETTLEMENT, {"id": settlement.id})
    if known is None:
        raise RuntimeError(f"settlement {settlement.id} is taken by nobody")
    return settlement_from(known)


def page_of(tx: Tx, sql: str, after: Place) -> tuple[list[Settlement], Place | None]:
    """A page of SELECT_RESERVED or SELECT_IN_FLIGHT behind `after`, and where the next one begins, if there is one."""
    created_at, id_ = after
    page = [settlement_from(row) for row in tx.all(sql, {"created_at": created_at, "id": id_, "limit": PAGE})]
    return page, (page[-1].created_at, page[-1].id) if len(page) == PAGE else None


def next_nonce(tx: Tx, relayer: Address) -> int:
    """The first nonce of the account that no transaction of ours has."""
    row = tx.one(SELECT_NEXT_NONCE, {"relayer": relayer})
    if row is None:
        raise RuntimeError("an aggregate has a row")
    return int(row["nonce"])


def some_ids(ids: Sequence[str]) -> dict[str, str]:
    """The parameters of SELECT_SOME for as many ids as it looks up, or fewer."""
    return {f"id{number}": id_ for number, id_ in enumerate([*ids, *[""] * (SOME - len(ids))])}


def store_attempt(tx: Tx, relay: Relay) -> None:
    """Write a transaction down before it is sent; payments that have one at this nonce are in this one now."""
    tx.execute(INSERT_RELAY, msgspec.structs.asdict(relay))
    tx.execute(RENAME_TRANSACTION, {"hash": relay.hash, "relayer": relay.relayer, "nonce": relay.nonce})


def sign(tx: Tx, id_: str, relay: Relay) -> None:
    """Put a payment that waits into a transaction that is stored with it."""
    params = {"id": id_, "relayer": relay.relayer, "nonce": relay.nonce, "hash": relay.hash}
    _only(tx.execute(SIGN_SETTLEMENT, params), id_)


def sent(tx: Tx, relay: Relay, now: int) -> None:
    """A node has the transaction. One that was mined meanwhile stays what it is."""
    if tx.execute(RELAY_SENT, {"hash": relay.hash, "now": now}) == 1:
        tx.execute(SETTLEMENTS_SENT, {"relayer": relay.relayer, "nonce": relay.nonce})


def confirm_relay(tx: Tx, relay: Relay, *, block_number: int, gas_wei: int) -> None:
    """This attempt is what happened at its nonce; the others never will."""
    params = {"hash": relay.hash, "block_number": block_number, "gas_wei": gas_wei}
    _only(tx.execute(CONFIRM_RELAY, params), relay.hash)
    replace_relays(tx, relay.relayer, relay.nonce)


def replace_relays(tx: Tx, relayer: Address, nonce: int) -> None:
    """No attempt at this nonce that is still open can be mined any more."""
    tx.execute(REPLACE_RELAYS, {"relayer": relayer, "nonce": nonce})


def confirm(tx: Tx, id_: str, transaction: str, now: int) -> None:
    """The money moved, in this transaction, ours or a stranger's."""
    _finish(tx, id_, SettlementState.CONFIRMED, now, hash_=transaction)


def fail(tx: Tx, id_: str, *, reason: str, message: str, now: int) -> None:
    """The money did not move, and nothing of ours could move it any more."""
    _finish(tx, id_, SettlementState.FAILED, now, reason=reason, message=message)


def give_back(tx: Tx, id_: str) -> None:
    """The transaction that had this payment is over and did not move it: it waits again."""
    _only(tx.execute(RETURN_SETTLEMENT, {"id": id_}), id_)


def _finish(
    tx: Tx,
    id_: str,
    state: SettlementState,
    now: int,
    *,
    hash_: str | None = None,
    reason: str | None = None,
    message: str | None = None,
) -> None:
    params = {
        "id": id_,
        "state": state.value,
        "hash": hash_,
        "reason": reason,
        "message": message,
        "now": now,
    }
    _only(tx.execute(FINISH_SETTLEMENT, params), id_)


def _only(changed: int, name: str) -> None:
    if changed != 1:
        raise RuntimeError(f"{name} was moved on by somebody else")
