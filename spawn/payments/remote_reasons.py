"""What it means when a facilitator refuses: the words of x402 (specification, section 9) and of its SDK, sorted.

Invariant: a word that is not known here is nobody's but the facilitator's (its compliance rules, its limits): taken as
its last word on `/verify`, and as no proof of anything on `/settle`.
"""

import re
from enum import Enum, auto
from typing import Final

from spawn_schemas.x402 import Reason

from spawn.payments.exact import SETTLE_MARGIN_S, ExactPayment

_WORD: Final = re.compile(r"[a-z][a-z0-9_]{0,79}")
_BROKEN: Final = frozenset(
    {
        "unexpected_verify_error",
        "unexpected_settle_error",
        "invalid_exact_evm_failed_to_verify_signature",
        "invalid_exact_evm_failed_to_get_asset_info",
        "invalid_exact_evm_failed_to_get_network_config",
    }
)
_VERIFIED: Final = frozenset(
    {
        Reason.INVALID_VERSION.value,
        Reason.UNSUPPORTED_SCHEME.value,
        Reason.NETWORK_MISMATCH.value,
        Reason.INVALID_REQUIREMENTS.value,
        Reason.RECIPIENT_MISMATCH.value,
        Reason.VALUE_MISMATCH.value,
        Reason.SIGNATURE.value,
        "invalid_payload",
        "invalid_network",
        "invalid_scheme",
        "missing_eip712_domain",
        "asset_not_deployed_contract",
        "invalid_exact_evm_token_name_mismatch",
        "invalid_exact_evm_token_version_mismatch",
        "invalid_exact_evm_transaction_simulation_failed",
    }
)
_TIMES: Final = frozenset({Reason.VALID_AFTER.value, Reason.VALID_BEFORE.value})
_CHAIN: Final = frozenset(
    {
        Reason.INSUFFICIENT_FUNDS.value,
        Reason.NONCE_USED.value,
        "invalid_exact_evm_insufficient_balance",
    }
)


class Meaning(Enum):
    """What a refusal tells."""

    BROKEN = auto()
    """The facilitator is in trouble; nothing about the payment."""
    DISAGREES = auto()
    """It finds wrong what we verified ourselves: it is wrong, or we are."""
    REFUSES = auto()
    """Something that only the chain or the facilitator can know, or the time has run out since we looked."""


def word(reason: str | None, *, otherwise: str) -> str:
    """A reason as x402 writes them: it is shown to callers and logged, and a stranger wrote it."""
    return reason if reason is not None and _WORD.fullmatch(reason) else otherwise


def meaning(reason: str, payment: ExactPayment, now: int) -> Meaning:
    """What this refusal of a payment that `exact.check` accepted tells, at `now` in unix seconds."""
    if reason in _BROKEN:
        return Meaning.BROKEN
    if reason in _TIMES:
        in_time = payment.valid_after < now and payment.valid_before >= now + SETTLE_MARGIN_S
        return Meaning.DISAGREES if in_time else Meaning.REFUSES
    return Meaning.DISAGREES if reason in _VERIFIED else Meaning.REFUSES


def nothing_sent(reason: str) -> bool:
    """Whether `/settle` that refuses so, and names no transaction, has sent none.

    `transaction_failed` does not prove it: the SDK's facilitator says that also when its node's answer was lost.
    """
    return reason in _VERIFIED | _TIMES | _CHAIN
