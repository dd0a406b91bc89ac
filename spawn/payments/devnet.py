"""The embedded development chain: a token ledger that behaves as USDC would, without a node or the network.

It keeps a SQLite file of its own, never our database, because a real chain outlives our crashes and disagrees
with us when we are wrong. It trusts nobody: signature, time, nonce and balance are checked again here, as the
token contract does (EIP-3009).
Invariant: a nonce is spent in the same transaction that moves its money, and amounts minted equal the sum of
balances.

WAL with `synchronous=NORMAL` survives a crash of the process at any instant; only a power cut may take the
last transfers back, which is fair for play money. Several processes may share the file (`spawn faucet` beside
`spawn dev`), so every write takes the lock first.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec
from spawn_schemas.ids import Address
from spawn_schemas.money import MAX_USDC, Usdc
from spawn_schemas.x402 import Reason

from spawn.payments.arrivals import START, Arrived, raises_balance
from spawn.payments.curve import keccak256
from spawn.payments.exact import ExactPayment, PaymentInvalid, Terms, require_signature
from spawn.payments.facilitator import Rejected, Settled, SettlementUnclear
from spawn.payments.nonces import authorization_key

T = TypeVar("T")

NOBODY: Final = Address("0x" + "0" * 40)
"""Where minted money comes from, as in the transfer log of any ERC-20 token."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS balance (
    address TEXT PRIMARY KEY,
    amount INTEGER NOT NULL CHECK (amount >= 0)
) STRICT;
CREATE TABLE IF NOT EXISTS transfer (
    seq INTEGER PRIMARY KEY,
    tx_hash TEXT NOT NULL UNIQUE,
    sender TEXT NOT NULL,
    recipient TEXT NOT NULL,
    amount INTEGER NOT NULL CHECK (amount >= 0),
    at INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS authorization_state (
    payer TEXT NOT NULL,
    nonce TEXT NOT NULL,
    tx_hash TEXT REFERENCES transfer (tx_hash), -- null: cancelled, it never moved anything
    PRIMARY KEY (payer, nonce)
) STRICT;
"""
_FIND_AUTHORIZATION: Final = """
SELECT a.tx_hash, t.recipient, t.amount FROM authorization_state a
LEFT JOIN transfer t ON t.tx_hash = a.tx_hash WHERE a.payer = :payer AND a.nonce = :nonce
"""
_SPEND_NONCE: Final = (
    "INSERT INTO authorization_state (payer, nonce, tx_hash) VALUES (:payer, :nonce, :tx_hash)"
)
_CANCEL_NONCE: Final = """
INSERT INTO authorization_state (payer, nonce, tx_hash) VALUES (:payer, :nonce, NULL)
ON CONFLICT (payer, nonce) DO NOTHING
"""
_GET_BALANCE: Final = "SELECT amount FROM balance WHERE address = :address"
_ADD_TO_BALANCE: Final = """
INSERT INTO balance (address, amount) VALUES (:address, :amount)
ON CONFLICT (address) DO UPDATE SET amount = balance.amount + excluded.amount
"""
_TAKE_FROM_BALANCE: Final = "UPDATE balance SET amount = amount - :amount WHERE address = :address"
_LOG_TRANSFER: Final = """
INSERT INTO transfer (tx_hash, sender, recipient, amount, at)
VALUES (:tx_hash, :sender, :recipient, :amount, :at)
"""
_LIST_TRANSFERS: Final = "SELECT tx_hash, sender, recipient, amount, at FROM transfer ORDER BY seq"
_LIST_ARRIVALS: Final = """
SELECT t.seq, t.tx_hash, t.sender, t.amount, t.at, a.nonce FROM transfer t
LEFT JOIN authorization_state a ON a.tx_hash = t.tx_hash
WHERE t.recipient = :pay_to AND t.seq > :after ORDER BY t.seq LIMIT :limit
"""
_ARRIVALS_PER_PAGE: Final = 200
_COUNT_TRANSFERS: Final = "SELECT COUNT(*) FROM transfer"


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the token's log. `amount` is in micro-USDC, `at` in unix seconds."""

    tx_hash: str
    sender: Address
    recipient: Address
    amount: Usdc
    at: int


@dataclass(kw_only=True)
class DevnetFaults:
    """What goes wrong next, for tests of whoever calls `settle`. Counts go down to zero by use."""

    refuse: int = 0
    """Nothing is moved, and the caller is told so, unless the money had moved before."""
    refuse_reason: str = "unexpected_settle_error"
    lose_request: int = 0
    """The call fails before anything happened, and the caller cannot tell."""
    lose_answer: int = 0
    """The money moves (or does not), and the caller is not told."""
    gate: asyncio.Event | None = None
    """`settle` waits here before it does anything."""

    def take(self, fault: Literal["refuse", "lose_request", "lose_answer"]) -> bool:
        """Whether this fault is due; using it up."""
        left: int = getattr(self, fault)
        setattr(self, fault, max(0, left - 1))
        return left > 0


class DevChain:
    """A `Facilitator` with a faucet. All its SQL runs on one thread of its own."""

    def __init__(
        self,
        path: Path,
        terms: Terms,
        *,
        now: Callable[[], int],
        faults: DevnetFaults | None = None,
        busy_timeout_s: float = 5.0,
    ) -> None:
        """Open the chain in `path`, making it if it is new. `now` is the chain's time, in unix seconds;
        `busy_timeout_s` is how long to wait for another process to finish writing.
        """
        self._terms = terms
        self._now = now
        self._faults = faults or DevnetFaults()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="devnet")
        self._db = self._thread.submit(_open, path, busy_timeout_s).result()

    def close(self) -> None:
        self._thread.submit(self._db.close).result()
        self._thread.shutdown()

    async def settle(self, payment: ExactPayment) -> Settled | Rejected:
        """See `Facilitator.settle`."""
        if self._faults.gate is not None:
            await self._faults.gate.wait()
        if self._faults.take("lose_request"):
            raise SettlementUnclear("The request may not have reached the chain.")
        if self._faults.take("refuse"):
            refusal = Rejected(reason=self._faults.refuse_reason, message="The development chain refuses.")
            return await self.find(payment) or refusal
        outcome = await self._ask(_atomic(lambda db: _settle(db, payment, self._terms, self._now())))
        if self._faults.take("lose_answer"):
            raise SettlementUnclear("The chain's answer was lost.")
        return outcome

    async def find(self, payment: ExactPayment) -> Settled | None:
        """See `Facilitator.find`."""
        outcome = await self._ask(lambda db: _recorded(db, payment))
        return outcome if isinstance(outcome, Settled) else None

    async def is_over(self, payment: ExactPayment) -> bool:
        """See `Facilitator.is_over`. This chain's clock is ours, and what it has settled is never taken back."""
        return self._now() >= payment.valid_before

    async def mint(self, address: Address, amount: Usdc) -> Usdc:
        """Make money out of nothing; return the new balance. Raises ValueError for an amount out of range."""
        if not 0 < amount <= MAX_USDC:
            raise ValueError(f"the faucet gives 1 to {MAX_USDC} micro-USDC at a time")

        def work(db: sqlite3.Connection) -> Usdc:
            tx_hash = _next_hash(db, b"mint")
            _move(db, tx_hash, sender=NOBODY, recipient=address, amount=amount, at=self._now())
            return _balance(db, address)

        return await self._run(_atomic(work))

    async def send(self, sender: Address, recipient: Address, amount: Usdc) -> str:
        """An ordinary transfer, as any wallet can make; returns its hash. Raises ValueError when it is not covered."""

        def work(db: sqlite3.Connection) -> str:
            if _balance(db, sender) < amount:
                raise ValueError(f"{sender} does not hold {amount} micro-USDC")
            tx_hash = _next_hash(db, b"send")
            _move(db, tx_hash, sender=sender, recipient=recipient, amount=amount, at=self._now())
            return tx_hash

        return await self._run(_atomic(work))

    async def cancel(self, payer: Address, nonce: str) -> None:
        """Burn an unused nonce, as the payer may do on a real chain with `cancelAuthorization`."""
        await self._run(_atomic(lambda db: db.execute(_CANCEL_NONCE, {"payer": payer, "nonce": nonce})))

    async def balance_of(self, address: Address) -> Usdc:
        return await self._run(lambda db: _balance(db, address))

    @property
    def name(self) -> str:
        """See `Arrivals.name`."""
        return f"arrivals|devnet|{self._terms.asset}|{self._terms.pay_to}"

    async def page(self, cursor: str) -> tuple[tuple[Arrived, ...], str]:
        """See `Arrivals.page`. The cursor is a place in the log, from the first transfer on: nothing is taken back."""
        after = 0 if cursor == START else int(cursor)
        rows = await self._run(lambda db: _arrivals(db, self._terms.pay_to, after))
        found = tuple(
            _arrived(row, self._terms)
            for row in rows
            if raises_balance(sender=row["sender"], amount=row["amount"], pay_to=self._terms.pay_to)
        )
        return found, str(rows[-1]["seq"]) if rows else cursor

    async def transfers(self) -> list[Transfer]:
        """The whole log, oldest first, minting included."""

        def work(db: sqlite3.Connection) -> list[Transfer]:
            return [Transfer(**dict(row)) for row in db.execute(_LIST_TRANSFERS)]

        return await self._run(work)

    async def _ask(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` for a caller who must be told when the chain did not answer."""
        try:
            return await self._run(work)
        except sqlite3.OperationalError as error:  # locked for too long, or the disk is full
            raise SettlementUnclear("The development chain does not answer.") from error

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._db)


def _atomic(work: Callable[[sqlite3.Connection], T]) -> Callable[[sqlite3.Connection], T]:
    def transaction(db: sqlite3.Connection) -> T:
        with db:  # commits, or rolls back when anything below raised
            db.execute("BEGIN IMMEDIATE")
            return work(db)

    return transaction


def _open(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute("PRAGMA foreign_keys=ON")
    db.executescript(_SCHEMA)
    return db


def _settle(db: sqlite3.Connection, payment: ExactPayment, terms: Terms, now: int) -> Settled | Rejected:
    """`transferWithAuthorization` of EIP-3009, and what a facilitator makes of its outcome."""
    earlier = _recorded(db, payment)
    if earlier is not None:
        return earlier
    if payment.valid_after >= now:
        return Rejected(reason=Reason.VALID_AFTER.value, message="The authorization is not valid yet.")
    if payment.valid_before <= now:
        return Rejected(reason=Reason.VALID_BEFORE.value, message="The authorization has expired.")
    try:
        require_signature(payment, terms)
    except PaymentInvalid as error:
        return Rejected(reason=error.reason.value, message=error.message)
    if _balance(db, payment.payer) < payment.value:
        return Rejected(
            reason=Reason.INSUFFICIENT_FUNDS.value,
            message=f"{payment.payer} does not hold the {payment.value} micro-USDC it authorized.",
        )
    tx_hash = _hash(bytes.fromhex(payment.payer[2:] + payment.nonce[2:]))
    _move(db, tx_hash, sender=payment.payer, recipient=payment.pay_to, amount=Usdc(payment.value), at=now)
    db.execute(_SPEND_NONCE, {"payer": payment.payer, "nonce": payment.nonce, "tx_hash": tx_hash})
    return Settled(transaction=tx_hash)


def _recorded(db: sqlite3.Connection, payment: ExactPayment) -> Settled | Rejected | None:
    """What became of this nonce: this payment's transfer, something else, or nothing yet."""
    row = db.execute(_FIND_AUTHORIZATION, {"payer": payment.payer, "nonce": payment.nonce}).fetchone()
    if row is None:
        return None
    if row["recipient"] == payment.pay_to and row["amount"] == payment.value:
        return Settled(transaction=row["tx_hash"])
    return Rejected(
        reason=Reason.NONCE_USED.value,
        message="The nonce was cancelled or spent by another authorization. Sign one with a fresh nonce.",
    )


def _move(
    db: sqlite3.Connection, tx_hash: str, *, sender: Address, recipient: Address, amount: Usdc, at: int
) -> None:
    if sender != NOBODY:
        db.execute(_TAKE_FROM_BALANCE, {"address": sender, "amount": amount})
    db.execute(_ADD_TO_BALANCE, {"address": recipient, "amount": amount})
    log = {"tx_hash": tx_hash, "sender": sender, "recipient": recipient, "amount": amount, "at": at}
    db.execute(_LOG_TRANSFER, log)


def _arrivals(db: sqlite3.Connection, pay_to: Address, after: int) -> list[sqlite3.Row]:
    wanted = {"pay_to": pay_to, "after": after, "limit": _ARRIVALS_PER_PAGE}
    return db.execute(_LIST_ARRIVALS, wanted).fetchall()


def _arrived(row: sqlite3.Row, terms: Terms) -> Arrived:
    sender, nonce = Address(row["sender"]), row["nonce"]
    return Arrived(
        id=f"{row['tx_hash']}|0",
        transaction=row["tx_hash"],
        sender=sender,
        amount=Usdc(row["amount"]),
        nonce_key=None if nonce is None else authorization_key(terms.chain_id, terms.asset, sender, nonce),
        at=row["at"],
    )


def _next_hash(db: sqlite3.Connection, kind: bytes) -> str:
    """A hash for what has no nonce; nothing is ever deleted, so that each count comes once."""
    (count,) = db.execute(_COUNT_TRANSFERS).fetchone()
    return _hash(kind + count.to_bytes(8, "big"))


def _balance(db: sqlite3.Connection, address: Address) -> Usdc:
    row = db.execute(_GET_BALANCE, {"address": address}).fetchone()
    return Usdc(row["amount"] if row else 0)


def _hash(data: bytes) -> str:
    return "0x" + keccak256(data).hex()
