"""Reading and checking an x402 `exact` payment (EIP-3009) by arithmetic alone: no chain, clock or database.

Three steps, apart because a replay needs only the first two: `decode_payment` (is it well formed?),
`identify` (who signed it, and is it for us?), `check` (does it pay this price, now?). A replayed header must
find its stored answer even when it has expired or the price has changed since.
Invariant: an `ExactPayment` made by `identify` is signed by its `payer`'s own key, for our network, asset and payee.
A payer that is a contract has no key: `NotByOwnKey` hands on what only the chain can judge.
"""

import re
from typing import Final

import msgspec
from spawn_schemas.ids import Address, ReservationId
from spawn_schemas.money import Usdc, format_usdc
from spawn_schemas.x402 import SCHEME_EXACT, X402_VERSION, ExactEvmPayload, PaymentPayload, Reason

from spawn.payments.curve import keccak256, recover
from spawn.payments.header import PaymentHeader
from spawn.payments.nonces import authorization_key

MAX_LIFE_S: Final = 3600
"""How far ahead an authorization may expire: used nonces are remembered at least that long."""

SETTLE_MARGIN_S: Final = 6
"""The least time left for the transfer to reach the chain; the x402 SDK asks the same."""

_DOMAIN_TYPE: Final = keccak256(
    b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
_TRANSFER_TYPE: Final = keccak256(
    b"TransferWithAuthorization(address from,address to,uint256 value,"
    b"uint256 validAfter,uint256 validBefore,bytes32 nonce)"
).hex()
_PAD: Final = "0" * 24  # an address fills the low 20 of 32 bytes

_PAYMENT_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_-]{16,128}")
_header: Final = PaymentHeader(
    "PAYMENT-SIGNATURE", PaymentPayload, version=X402_VERSION, offer="the PAYMENT-REQUIRED header"
)


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What we accept: one token on one chain, paid to one account. Made by `terms`, once, at start."""

    network: str
    chain_id: int
    asset: Address
    asset_name: str
    asset_version: str
    pay_to: Address
    max_timeout_s: int
    digest_prefix: bytes

    @property
    def domain_separator(self) -> bytes:
        """The hash of the token's EIP-712 domain."""
        return self.digest_prefix[2:]


class PaymentInvalid(Exception):
    """The payment is well formed and does not pay. `reason` is for clients, `message` for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class ExactPayment(msgspec.Struct, frozen=True, kw_only=True):
    """A signed authorization in normal form (lower-case hex), fit to be stored and settled later.

    `signature` has 65 bytes where an ordinary account signs, and any number where code does.
    Encodes as msgpack or JSON once `check` passed: before that `value` and the times may exceed 64 bits.
    """

    payer: Address
    pay_to: Address
    value: int
    valid_after: int
    valid_before: int
    nonce: str
    signature: str

    def nonce_key(self, chain_id: int, asset: Address) -> ReservationId:
        """The name of what may be spent once; the token contract keeps nonces per payer (EIP-3009)."""
        return authorization_key(chain_id, asset, self.payer, self.nonce)


class NotByOwnKey(PaymentInvalid):
    """A `payment` for us that the payer's own key did not sign: code at the payer may stand by it (EIP-1271).

    Whoever can ask the chain does (`ContractWallets.verify`); to everybody else it is the refusal that it says it is.
    """

    def __init__(self, payment: ExactPayment, message: str) -> None:
        super().__init__(Reason.SIGNATURE, message)
        self.payment = payment


def terms(
    *,
    chain_id: int,
    asset: Address,
    asset_name: str,
    asset_version: str,
    pay_to: Address,
    max_timeout_s: int = 300,
) -> Terms:
    """Return the terms with the EIP-712 domain hashed in; name and version must be those of the contract."""
    separator = keccak256(
        _DOMAIN_TYPE
        + keccak256(asset_name.encode())
        + keccak256(asset_version.encode())
        + chain_id.to_bytes(32, "big")
        + bytes.fromhex(_PAD + asset[2:])
    )
    return Terms(
        network=f"eip155:{chain_id}",
        chain_id=chain_id,
        asset=asset,
        asset_name=asset_name,
        asset_version=asset_version,
        pay_to=pay_to,
        max_timeout_s=max_timeout_s,
        digest_prefix=b"\x19\x01" + separator,
    )


def decode_payment(header: str | bytes) -> PaymentPayload:
    """Read a `PAYMENT-SIGNATURE` header; raise SpawnError(INVALID_PAYMENT) unless it is well formed."""
    return _header.decode(header)


def payment_identifier(payload: PaymentPayload) -> str | None:
    """The caller's idempotency key, from the x402 extension `payment-identifier`; None if there is none.

    Raises SpawnError(INVALID_PAYMENT) for one that breaks the extension's rule: 16 to 128 of `A-Za-z0-9_-`.
    """
    match (payload.extensions or {}).get("payment-identifier"):
        case None | {"info": {"id": None}}:
            return None
        case {"info": {"id": str(key)}} if _PAYMENT_IDENTIFIER.fullmatch(key):
            return key
        case {"info": {**info}} if "id" not in info:
            return None
        case _:
            raise _header.malformed("has a payment-identifier that is not 16 to 128 letters, digits, - or _")


def identify(payload: PaymentPayload, terms: Terms) -> ExactPayment:
    """Return who pays, if this is a payment on our terms; raise PaymentInvalid otherwise.

    Amount and time are left to `check`. What the caller echoes in `accepted.amount`, `extra` and
    `maxTimeoutSeconds` binds nobody: only what is signed counts.
    """
    accepted = payload.accepted
    if payload.x402_version != X402_VERSION:
        raise PaymentInvalid(
            Reason.INVALID_VERSION,
            f"PAYMENT-SIGNATURE carries x402 version {X402_VERSION}, not {payload.x402_version}.",
        )
    if accepted.scheme != SCHEME_EXACT:
        raise PaymentInvalid(Reason.UNSUPPORTED_SCHEME, "Only the scheme exact is accepted.")
    if accepted.network != terms.network:
        raise PaymentInvalid(Reason.NETWORK_MISMATCH, f"Pay on the network {terms.network}.")
    if accepted.asset.lower() != terms.asset:
        raise PaymentInvalid(Reason.INVALID_REQUIREMENTS, f"Pay with the asset {terms.asset}.")
    if accepted.pay_to.lower() != terms.pay_to:
        raise PaymentInvalid(Reason.RECIPIENT_MISMATCH, f"Pay to {terms.pay_to}.")
    return identify_authorization(payload.payload, terms)


def identify_authorization(signed: ExactEvmPayload, terms: Terms) -> ExactPayment:
    """The part of `identify` that does not depend on the protocol version around it."""
    authorization = signed.authorization
    payment = ExactPayment(
        payer=Address(authorization.from_.lower()),
        pay_to=Address(authorization.to.lower()),
        value=int(authorization.value),
        valid_after=int(authorization.valid_after),
        valid_before=int(authorization.valid_before),
        nonce=authorization.nonce.lower(),
        signature=signed.signature.lower(),
    )
    if payment.pay_to != terms.pay_to:
        raise PaymentInvalid(Reason.RECIPIENT_MISMATCH, f"Sign an authorization to {terms.pay_to}.")
    if payment.payer == payment.pay_to:
        # The chain would report success and nobody would have paid.
        raise PaymentInvalid(Reason.RECIPIENT_MISMATCH, "The payee cannot pay itself.")
    require_signature(payment, terms)
    return payment


def require_signature(payment: ExactPayment, terms: Terms) -> None:
    """Raise NotByOwnKey unless the payer's own key signed exactly this authorization (EIP-712)."""
    signature = bytes.fromhex(payment.signature[2:])
    if len(signature) != 65:
        raise NotByOwnKey(
            payment,
            f"A signature by the key of {payment.payer} has 65 bytes, not {len(signature)}. A contract wallet "
            "(EIP-1271) pays where the service can ask the chain; else pay from an account with its own key.",
        )
    try:
        signer = recover(digest(payment, terms), signature)
    except ValueError as error:
        raise NotByOwnKey(payment, f"The signature cannot be used: {error}.") from error
    if signer != payment.payer:
        raise NotByOwnKey(
            payment,
            f"The signature is not by {payment.payer} over this authorization. Sign EIP-712 data with the "
            f"domain name {terms.asset_name!r}, version {terms.asset_version!r}, chain {terms.chain_id}.",
        )


def check(payment: ExactPayment, *, amount_usdc: Usdc, now: int, margin_s: int = SETTLE_MARGIN_S) -> None:
    """Raise PaymentInvalid unless the payment is exactly `amount_usdc` and can be settled at `now`.

    The token demands `validAfter < now < validBefore`, strictly (EIP-3009 as USDC implements it); `margin_s`
    is kept for the way to the chain. More than the price is refused as well: `exact` means that.
    """
    if payment.value != amount_usdc:
        raise PaymentInvalid(
            Reason.VALUE_MISMATCH,
            f"This call costs {format_usdc(amount_usdc)} USDC: authorize a value of exactly {amount_usdc}, "
            f"not {payment.value}.",
        )
    if payment.valid_after >= now:
        raise PaymentInvalid(
            Reason.VALID_AFTER, f"validAfter must be in the past: it is {payment.valid_after}, now is {now}."
        )
    if payment.valid_before < now + margin_s:
        raise PaymentInvalid(
            Reason.VALID_BEFORE,
            f"validBefore must leave {margin_s} seconds to settle: it is {payment.valid_before}, "
            f"now is {now}.",
        )
    if payment.valid_before > now + MAX_LIFE_S:
        raise PaymentInvalid(
            Reason.VALID_BEFORE,
            f"validBefore must be at most {MAX_LIFE_S} seconds ahead: it is {payment.valid_before}, "
            f"now is {now}.",
        )


def digest(payment: ExactPayment, terms: Terms) -> bytes:
    """The EIP-712 digest that is to be signed.

    Every field is one 32-byte word, so the words are joined as hex and read once.
    """
    words = (
        f"{_TRANSFER_TYPE}{_PAD}{payment.payer[2:]}{_PAD}{payment.pay_to[2:]}"
        f"{payment.value:064x}{payment.valid_after:064x}{payment.valid_before:064x}{payment.nonce[2:]}"
    )
    return keccak256(terms.digest_prefix + keccak256(bytes.fromhex(words)))
