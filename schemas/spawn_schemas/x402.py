"""The x402 messages as they travel: what a caller sends in a payment header and what we answer.

Version 2 of the protocol, scheme `exact` on EVM chains with EIP-3009 authorizations. Numbers inside an
authorization are decimal strings, because JSON readers lose 256-bit integers.
Invariant: a decoded payment is well formed (hex is hex, every number fits in 256 bits); whether it is *true*
is decided by whoever checks its signature.
"""

from enum import Enum
from typing import Annotated, Any

import msgspec

X402_VERSION = 2
SCHEME_EXACT = "exact"

MAX_UINT256 = 2**256 - 1

# `\Z` and not `$`, which would let a trailing newline through.
AddressText = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-fA-F]{40}\Z")]
Bytes32Text = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-fA-F]{64}\Z")]
HexText = Annotated[str, msgspec.Meta(pattern=r"^0x(?:[0-9a-fA-F]{2})*\Z")]
UintText = Annotated[str, msgspec.Meta(pattern=r"^(?:0|[1-9][0-9]{0,77})\Z")]


class Reason(str, Enum):
    """Why a payment is refused, in words that x402 clients know: specification section 9, and the SDK."""

    INVALID_VERSION = "invalid_x402_version"
    UNSUPPORTED_SCHEME = "unsupported_scheme"
    NETWORK_MISMATCH = "network_mismatch"
    INVALID_REQUIREMENTS = "invalid_payment_requirements"
    RECIPIENT_MISMATCH = "invalid_exact_evm_payload_recipient_mismatch"
    VALUE_MISMATCH = "invalid_exact_evm_payload_authorization_value_mismatch"
    VALID_AFTER = "invalid_exact_evm_payload_authorization_valid_after"
    VALID_BEFORE = "invalid_exact_evm_payload_authorization_valid_before"
    SIGNATURE = "invalid_exact_evm_payload_signature"
    NONCE_USED = "invalid_exact_evm_nonce_already_used"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    SETTLEMENT_PENDING = "settlement_pending"


class Authorization(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """EIP-3009 `TransferWithAuthorization`. `value` in the token's smallest unit, times in unix seconds."""

    from_: AddressText = msgspec.field(name="from")
    to: AddressText
    value: UintText
    valid_after: UintText
    valid_before: UintText
    nonce: Bytes32Text

    def __post_init__(self) -> None:
        for number in (self.value, self.valid_after, self.valid_before):
            if len(number) == 78 and int(number) > MAX_UINT256:
                raise ValueError("a number is larger than 256 bits")


class ExactEvmPayload(msgspec.Struct, frozen=True, kw_only=True):
    """The signed half of a payment, the same in versions 1 and 2."""

    signature: HexText
    authorization: Authorization


class PaymentRequirements(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One way to pay, offered by us and echoed by the caller. `amount` is in the token's smallest unit."""

    scheme: str
    network: str
    amount: UintText
    asset: str
    pay_to: str
    max_timeout_seconds: int
    extra: dict[str, Any] | None = None


class PaymentPayload(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The `PAYMENT-SIGNATURE` header. Fields that clients add, such as `resource`, are read over."""

    x402_version: int
    accepted: PaymentRequirements
    payload: ExactEvmPayload
    extensions: dict[str, Any] | None = None


class Resource(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What the payment is for, in words a person can read; name and tags are for catalogues (extension `bazaar`)."""

    url: str
    description: str
    mime_type: str
    service_name: str | None = None
    tags: tuple[str, ...] = ()


class PaymentRequired(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The `PAYMENT-REQUIRED` header of a 402."""

    x402_version: int
    error: str | None = None
    resource: Resource
    accepts: tuple[PaymentRequirements, ...]
    extensions: dict[str, Any] | None = None


class SettleResponse(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The `PAYMENT-RESPONSE` header. `transaction` is empty when there is none."""

    success: bool
    transaction: str
    network: str
    payer: str | None = None
    error_reason: str | None = None
    amount: str | None = None
