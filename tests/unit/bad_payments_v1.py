"""Version 1 payments that must not pass, as data: the table of version 2, carried over, and what only version 1 has.

Each entry turns a good *version 2* payment (as `bad_payments` has it) into an `X-PAYMENT` value that is refused for
one stated reason: what is signed is the same in both versions, only the envelope differs.
"""

import base64
import json
from collections.abc import Callable
from typing import Any, Final

from spawn_schemas.errors import Code
from spawn_schemas.x402 import Reason

from tests.unit.bad_payments import (
    DOES_NOT_PAY,
    NOT_A_PAYMENT,
    NOT_FOR_US,
    NOT_SIGNED,
    BadPayment,
    Payment,
    header,
)

NETWORK: Final = "base-sepolia"
ABOUT_THE_OFFER: Final = {
    "no accepted",
    "accepted is null",
    "accepted amount as number",
    "no network",
    "version 1",
    "version 3",
    "scheme upto",
    "scheme in capitals",
    "another chain",
    "network by its old name",
    "another token",
    "another payee accepted",
}
"""Entries of version 2's table about its envelope, to which version 1 has others."""


def envelope(payment: Payment, **changes: Any) -> Payment:
    """The same authorization as version 1 writes it."""
    return {
        "x402Version": 1,
        "scheme": "exact",
        "network": NETWORK,
        "payload": payment["payload"],
        **changes,
    }


def _without(name: str) -> Callable[[Payment], str]:
    return lambda good: header({key: value for key, value in envelope(good).items() if key != name})


def _changed(**changes: Any) -> Callable[[Payment], str]:
    return lambda good: header(envelope(good, **changes))


def _in_envelope(make: Callable[[Payment], str]) -> Callable[[Payment], str]:
    """What version 2's entry makes, in the other envelope."""
    return lambda good: header(envelope(json.loads(base64.b64decode(make(good)))))


def _of_envelope(make: Callable[[Payment], str]) -> Callable[[Payment], str]:
    """Version 2's entry, made of a version 1 payment."""
    return lambda good: make(envelope(good))


ENVELOPE_MALFORMED = [
    ("no scheme", _without("scheme")),
    ("scheme is null", _changed(scheme=None)),
    ("no network", _without("network")),
    ("network as number", _changed(network=84532)),
    ("version as true", _changed(x402Version=True)),
    ("the payload of another chain", _changed(payload={"transaction": "QUJD"})),
    ("payload as text", _changed(payload="0x")),
    ("a version 2 payment", header),
]

ENVELOPE_NOT_FOR_US = [
    ("version 0", _changed(x402Version=0), Reason.INVALID_VERSION),
    ("version 2", _changed(x402Version=2), Reason.INVALID_VERSION),
    ("scheme upto", _changed(scheme="upto"), Reason.UNSUPPORTED_SCHEME),
    ("scheme in capitals", _changed(scheme="EXACT"), Reason.UNSUPPORTED_SCHEME),
    ("the main network", _changed(network="base"), Reason.NETWORK_MISMATCH),
    ("network in capitals", _changed(network="BASE-SEPOLIA"), Reason.NETWORK_MISMATCH),
    ("network with a line end", _changed(network="base-sepolia\n"), Reason.NETWORK_MISMATCH),
    ("network by its new name", _changed(network="eip155:84532"), Reason.NETWORK_MISMATCH),
    ("network by its number", _changed(network="84532"), Reason.NETWORK_MISMATCH),
    ("another network", _changed(network="avalanche"), Reason.NETWORK_MISMATCH),
    ("no name of a network", _changed(network=""), Reason.NETWORK_MISMATCH),
]

BAD_PAYMENTS_V1 = [
    *(BadPayment(name, make, Code.INVALID_PAYMENT) for name, make in ENVELOPE_MALFORMED),
    *(BadPayment(name, make, reason) for name, make, reason in ENVELOPE_NOT_FOR_US),
    *(
        BadPayment(name, _of_envelope(make), Code.INVALID_PAYMENT)
        for name, make in NOT_A_PAYMENT
        if name not in ABOUT_THE_OFFER
    ),
    *(
        BadPayment(name, _in_envelope(make), reason)
        for name, make, reason in NOT_FOR_US
        if name not in ABOUT_THE_OFFER
    ),
    *(BadPayment(name, _in_envelope(make), Reason.SIGNATURE) for name, make in NOT_SIGNED),
    *(BadPayment(name, _in_envelope(make), reason) for name, make, reason in DOES_NOT_PAY),
]
