"""x402 version 1 beside version 2: the same authorizations on the same terms, in the words of older clients.

Offers travel in the body of a 402, payments in `X-PAYMENT`, receipts in `X-PAYMENT-RESPONSE`; networks have names
there, and reasons come from a closed list.
Invariant: `identify` recognises exactly the authorizations that version 2 recognises, so a nonce spent in one version
is spent in the other.
"""

from binascii import b2a_base64
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc
from spawn_schemas.x402 import SCHEME_EXACT, Reason
from spawn_schemas.x402_v1 import X402_VERSION_1, PaymentPayloadV1, PaymentRequirementsV1, SettleResponseV1

from spawn.payments.curve import checksummed
from spawn.payments.exact import ExactPayment, PaymentInvalid, Terms, identify_authorization
from spawn.payments.header import PaymentHeader

NETWORKS: Final[Mapping[str, str]] = {"eip155:8453": "base", "eip155:84532": "base-sepolia"}
"""Version 1's name of each network on which we may be paid, by its CAIP-2 name."""

_REASONS: Final[Mapping[str, str]] = {
    Reason.INVALID_VERSION: "invalid_x402_version",
    Reason.UNSUPPORTED_SCHEME: "unsupported_scheme",
    Reason.NETWORK_MISMATCH: "invalid_network",
    Reason.INVALID_REQUIREMENTS: "invalid_payment_requirements",
    Reason.RECIPIENT_MISMATCH: "invalid_exact_evm_payload_recipient_mismatch",
    Reason.VALUE_MISMATCH: "invalid_exact_evm_payload_authorization_value",
    Reason.VALID_AFTER: "invalid_exact_evm_payload_authorization_valid_after",
    Reason.VALID_BEFORE: "invalid_exact_evm_payload_authorization_valid_before",
    Reason.SIGNATURE: "invalid_exact_evm_payload_signature",
    Reason.NONCE_USED: "invalid_transaction_state",
    Reason.INSUFFICIENT_FUNDS: "insufficient_funds",
}
"""Our reasons in version 1's list (`ErrorReasons` of npm `x402` 1.2), which its schemas hold closed."""

_header: Final = PaymentHeader(
    "X-PAYMENT", PaymentPayloadV1, version=X402_VERSION_1, offer="the accepts of the 402 answer's body"
)
_encoder: Final = msgspec.json.Encoder()


def network_name(network: str) -> str | None:
    """Version 1's name of a CAIP-2 network; None where it has none, and so nothing can be offered."""
    return NETWORKS.get(network)


def decode_payment(header: str | bytes) -> PaymentPayloadV1:
    """Read an `X-PAYMENT` header; raise SpawnError(INVALID_PAYMENT) unless it is well formed."""
    return _header.decode(header)


def identify(payload: PaymentPayloadV1, terms: Terms) -> ExactPayment:
    """Return who pays, if this is a payment on our terms; raise PaymentInvalid otherwise.

    Version 1 echoes no offer: token and payee are known from the signature alone.
    """
    if payload.x402_version != X402_VERSION_1:
        raise PaymentInvalid(
            Reason.INVALID_VERSION,
            f"X-PAYMENT carries x402 version {X402_VERSION_1}, not {payload.x402_version}; "
            "version 2 travels in PAYMENT-SIGNATURE.",
        )
    if payload.scheme != SCHEME_EXACT:
        raise PaymentInvalid(Reason.UNSUPPORTED_SCHEME, "Only the scheme exact is accepted.")
    name = network_name(terms.network)
    if name is None:
        raise PaymentInvalid(
            Reason.NETWORK_MISMATCH,
            f"x402 version 1 has no name for {terms.network}: pay there by version 2, in PAYMENT-SIGNATURE.",
        )
    if payload.network != name:
        raise PaymentInvalid(Reason.NETWORK_MISMATCH, f"Pay on the network {name}.")
    return identify_authorization(payload.payload, terms)


def requirements(
    terms: Terms,
    amount_usdc: Usdc,
    resource_url: str,
    description: str,
    output_schema: dict[str, Any] | None = None,
) -> PaymentRequirementsV1 | None:
    """The one way to pay `amount_usdc` by version 1, for the `accepts` of a 402 body; None where there is none.

    `resource_url` must be absolute: the TypeScript SDK refuses anything else. `output_schema` describes the call to
    catalogues.
    """
    name = network_name(terms.network)
    if name is None:
        return None
    return PaymentRequirementsV1(
        scheme=SCHEME_EXACT,
        network=name,
        max_amount_required=str(amount_usdc),
        resource=resource_url,
        description=description,
        mime_type="application/json",
        output_schema=output_schema,
        pay_to=checksummed(terms.pay_to),
        max_timeout_seconds=terms.max_timeout_s,
        asset=checksummed(terms.asset),
        extra={"name": terms.asset_name, "version": terms.asset_version},
    )


def body_error(error: str) -> str:
    """What the `error` of a 402 body says: its reader in the TypeScript SDK takes only words of version 1's list.

    `invalid_payment` stands for all that the list has no word for, an absent payment among it.
    """
    return _REASONS.get(error, "invalid_payment")


def settle_response(
    terms: Terms,
    *,
    success: bool,
    payer: Address,
    transaction: str = "",
    error_reason: str | None = None,
) -> bytes:
    """The value of `X-PAYMENT-RESPONSE`, for a payment that `identify` let through.

    `unexpected_settle_error` stands for reasons that version 1 has no word for, a pending settlement among them: the
    status and body of the answer say that.
    """
    message = SettleResponseV1(
        success=success,
        error_reason=None if error_reason is None else _REASONS.get(error_reason, "unexpected_settle_error"),
        transaction=transaction,
        network=NETWORKS[terms.network],
        payer=checksummed(payer),
    )
    return b2a_base64(_encoder.encode(message), newline=False)
