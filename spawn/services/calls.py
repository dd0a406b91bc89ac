"""A paid call as data, and what the use cases behind it must offer.

Invariant: `check` reads and refuses before money moves on chain, `act` does it in one transaction; whatever either
raises changes nothing.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum, auto
from typing import ClassVar, Final

import msgspec
from spawn_ledger.tx import Tx
from spawn_schemas.errors import SpawnError
from spawn_schemas.ids import ActionId, Address, ReservationId, ServerId
from spawn_schemas.money import Usdc

from spawn.domain.barring import Barred
from spawn.domain.charges import Price
from spawn.domain.operations import Operation
from spawn.payments.exact import ExactPayment
from spawn.services.purse import Purse
from spawn.services.standing import Left, Standing
from spawn.store.database import Database


class Proof(Enum):
    """How a caller showed which wallet it is."""

    PAYMENT = auto()
    """An x402 payment: it pays for the call itself."""
    SIGNATURE = auto()
    """The request is signed, method and body included: good for every verb, paid from the balance."""
    SIGN_IN = auto()
    """A signed message that names neither method nor body: good for one read."""
    SESSION = auto()
    """A bearer that a proof was exchanged for: good for reads until it expires."""


_BINDING: Final = (Proof.PAYMENT, Proof.SIGNATURE)
"""As a constant, because looking a member up in its class is slow."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls. `nonce_key` may be used once, for one request, and names it; a session makes one up for each.

    `seal` is what only the sender of a payment knows: a hash of the header as it was sent. The payment itself can be
    read on chain by anybody once it is settled.
    """

    proof: Proof
    wallet: Address
    nonce_key: ReservationId
    valid_before: int
    payment: ExactPayment | None
    seal: str | None = None

    @property
    def binds_request(self) -> bool:
        """Whether the caller vouched for this very request, and not only for being the caller."""
        return self.proof in _BINDING


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The request as it came in; what an idempotency key and a nonce are bound to."""

    method: str
    path: str
    query: str
    body: bytes
    idempotency_key: str | None

    def fingerprint(self) -> str:
        """SHA-256 over method, path, query and body. Payment, signature and key headers are left out."""
        line = f"{self.method} {self.path} {self.query}\n"  # none of them holds a blank or ends the line
        return hashlib.sha256(line.encode() + self.body).hexdigest()


class PaidCall(msgspec.Struct, frozen=True, kw_only=True):
    """A request with its price and with who pays it. `rate_limited`: whether it takes one of the wallet's turns."""

    request: Request
    price: Price
    identity: Identity
    rate_limited: bool


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What `act` knows besides its own request. `now` is unix seconds.

    `ended`: servers whose money turned out to have ended, in this very transaction, with the operation that
    destroys each and what came back of it. `binds_request` is that of the caller's identity. `standing`: what the
    wallet has; for a read, whose fee is taken beforehand, what it has left. `reference` names this call in the books.
    """

    wallet: Address
    binds_request: bool
    reference: str
    fee_usdc: Usdc
    payment_usdc: Usdc
    now: int
    ended: Mapping[ServerId, tuple[Operation, Usdc]]
    standing: Standing


class Acted(msgspec.Struct, frozen=True, kw_only=True):
    """What a use case did. `answer` is encoded; with an `operation` it is a draft until the provider answers.

    `stored` is kept for replays instead where the answer carries a secret, and `fee_usdc` says what was
    taken where that is not the route's fee.
    """

    answer: bytes
    stored: bytes | None = None
    fee_usdc: Usdc | None = None
    operation: ActionId | None = None


class UseCase(ABC):
    """One thing a caller can pay for.

    `only_reads`: it changes nothing that is anybody's, so that a proof which does not bind the request will do.
    `fee_from_refund`: the call frees money, and its fee may come out of that.
    `open_to`: the barred wallets that may make it all the same; a read is anybody's, and nobody looks.
    `saves`: the server that it gives money to, and that must not be ended for want of it in the same moment.
    `refusal`: why it is not for sale now, whoever asks. It may have been when the call was first made, so that a
    caller who is known is told only after it is certain that this is no repetition.
    """

    only_reads: ClassVar[bool] = False
    fee_from_refund: ClassVar[bool] = False
    open_to: ClassVar[frozenset[Barred]] = frozenset()
    saves: ServerId | None = None
    refusal: SpawnError | None = None

    async def wait(self, db: Database, wallet: Address, now: int) -> None:  # noqa: B027 - most calls wait for nothing
        """Wait for something, if the caller asked to, before anything is reserved. Raises SpawnError."""

    def check(self, tx: Tx, wallet: Address, purse: Purse, now: int) -> None:  # noqa: B027 - a list is never doomed
        """Raise SpawnError if the call is doomed. Runs with the reservation, before any money moves on chain.

        A read that is paid from the balance goes straight to `act`, which looks at everything itself.
        """

    @abstractmethod
    def act(self, tx: Tx, context: Context) -> Acted:
        """Do it, looking again at what `check` saw, and take the fee unless it `only_reads`. Raises SpawnError."""

    def complete(self, tx: Tx, draft: bytes, operation: Operation) -> "Completed":
        """The answer after the provider's first word. Only called when `act` named an operation."""
        raise RuntimeError(f"{type(self).__name__} starts no operation")

    async def tell(self, answer: bytes) -> bytes:
        """What is sent for an answer, with no transaction open, whenever it is sent: most are sent as they are stored.

        For a call whose effect is done and whose outcome is elsewhere. Raises SpawnError where that is not there yet:
        the call stays done, and whoever repeats it asks here again.
        """
        return answer


class Read(UseCase):
    """A use case that only shows the caller what is theirs. Its fee is taken before it acts."""

    only_reads = True


class Completed(msgspec.Struct, frozen=True, kw_only=True):
    """`stored` is kept for replays; `answer` may also carry a secret, handed out this once."""

    answer: bytes
    stored: bytes


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller gets, and what it has left. `settlement` is the chain transaction of its payment, if any."""

    body: bytes
    wallet: Address
    left: Left
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
