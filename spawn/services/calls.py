"""A paid call as data, and what the use cases behind it must offer.

Invariant: `prepare` reads and refuses, `act` writes in one transaction; whatever `act` raises changes nothing.
"""

import hashlib
from collections.abc import Mapping
from typing import Protocol

import msgspec
from spawn_ledger.tx import Tx
from spawn_schemas.errors import SpawnError
from spawn_schemas.ids import ActionId, Address, ReservationId, ServerId
from spawn_schemas.money import Usdc

from spawn.domain.charges import Price
from spawn.domain.operations import Operation
from spawn.payments.exact import ExactPayment
from spawn.services.purse import Purse
from spawn.store.database import Database


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls, proven by a payment or a signature. `nonce_key` may be used once, for one request."""

    wallet: Address
    nonce_key: str
    valid_before: int
    payment: ExactPayment | None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The request as it came in; what an idempotency key and a nonce are bound to."""

    method: str
    path: str
    query: str
    body: bytes
    idempotency_key: str | None

    def fingerprint(self) -> str:
        """SHA-256 over method, path, query and body. Payment, signature and key headers are left out."""
        digest = hashlib.sha256()
        for part in (self.method.encode(), self.path.encode(), self.query.encode(), self.body):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return digest.hexdigest()


class PaidCall(msgspec.Struct, frozen=True, kw_only=True):
    """A request with its price and with who pays it."""

    request: Request
    price: Price
    identity: Identity


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What `act` knows besides its own request. `now` is unix seconds.

    `ended`: servers whose money turned out to have ended, in this very transaction, with the operation that
    destroys each and what came back of it.
    """

    wallet: Address
    reservation: ReservationId
    fee_usdc: Usdc
    payment_usdc: Usdc
    now: int
    ended: Mapping[ServerId, tuple[Operation, Usdc]]


class Acted(msgspec.Struct, frozen=True, kw_only=True):
    """What a use case did. `answer` is encoded; with an `operation` it is a draft until the provider answers.

    `stored` is kept for replays instead where the answer carries a secret, and `fee_usdc` says what was
    taken where that is not the route's fee.
    """

    answer: bytes
    stored: bytes | None = None
    fee_usdc: Usdc | None = None
    operation: ActionId | None = None


class UseCase(Protocol):
    """One thing a caller can pay for.

    `fee_from_refund`: the call frees money, and its fee may come out of that.
    """

    fee_from_refund: bool

    async def prepare(self, db: Database, wallet: Address, purse: Purse, now: int) -> None:
        """Read, wait if asked to, and raise SpawnError if the call is doomed. Runs before any money moves."""
        ...

    def act(self, tx: Tx, context: Context) -> Acted:
        """Do it, the fee included, looking again at what `prepare` saw. Raises SpawnError."""
        ...

    def complete(self, tx: Tx, draft: bytes, operation: Operation) -> "Completed":
        """The answer after the provider's first word. Only called when `act` named an operation."""
        ...


class AtOnce:
    """Base of the use cases that are done when their transaction commits: they start no operation."""

    fee_from_refund = False

    def complete(self, tx: Tx, draft: bytes, operation: Operation) -> "Completed":
        """Never called: `act` named no operation."""
        raise RuntimeError(f"{type(self).__name__} starts no operation")


class Completed(msgspec.Struct, frozen=True, kw_only=True):
    """`stored` is kept for replays; `answer` may also carry a secret, handed out this once."""

    answer: bytes
    stored: bytes


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller gets. `settlement` is the chain transaction of its payment, if it paid by one."""

    body: bytes
    wallet: Address
    settlement: str | None
    paid_usdc: Usdc | None
    fee_usdc: Usdc
    replayed: bool


class StoredBody(msgspec.Struct, frozen=True, kw_only=True, tag="body"):
    """An answer at rest."""

    body: msgspec.Raw


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag="refusal"):
    """A refusal at rest."""

    code: str
    message: str
    details: dict[str, object] | None
    next: str | None
    retry_after_s: int | None = None


def refusal_of(error: SpawnError) -> Refusal:
    return Refusal(
        code=error.code.value,
        message=error.message,
        details=error.details,
        next=error.next,
        retry_after_s=error.retry_after_s,
    )
