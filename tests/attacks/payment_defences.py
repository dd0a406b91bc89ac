"""What keeps payments out that do not pay us, in either version of x402."""

from typing import Final

from tests.attacks.defence import Defence

CURVE: Final = "spawn/payments/curve.py"
HEADER: Final = "spawn/payments/header.py"
EXACT: Final = "spawn/payments/exact.py"
VERSION1: Final = "spawn/payments/version1.py"

OF_PAYMENTS: Final = (
    Defence(
        name="only the lower half of s",
        file=CURVE,
        before="if s == _ZERO or s > _HALF_N:",
        after="if s == _ZERO:",
        attacks=(
            "payment: high s",
            "signature: signature with high s",
            "replay: the other signature of the same key",
        ),
    ),
    Defence(
        name="v is 27 or 28",
        file=CURVE,
        before='{27: b"\\x00", 28: b"\\x01"}',
        after='{0: b"\\x00", 1: b"\\x01", 27: b"\\x00", 28: b"\\x01"}',
        attacks=("payment: v counted from 0", "signature: signature with v from 0"),
    ),
    Defence(
        name="base64 in one spelling",
        file=HEADER,
        before="if b2a_base64(raw, newline=False) != text:",
        after="if not raw:",
        attacks=("payment: junk inside", "payment: space inside", "payment: unused bits set"),
    ),
    Defence(
        name="a payment header has 8 KiB",
        file=HEADER,
        before="if len(header) > max_bytes:",
        after="if not header:",
        attacks=("payment: longer than 8 KiB",),
    ),
    Defence(
        name="our version of the protocol",
        file=EXACT,
        before="if payload.x402_version != X402_VERSION:",
        after="if payload.x402_version < 1:",
        attacks=("payment: version 1", "payment: version 3"),
    ),
    Defence(
        name="our scheme",
        file=EXACT,
        before="if accepted.scheme != SCHEME_EXACT:",
        after="if not accepted.scheme:",
        attacks=("payment: scheme upto", "payment: scheme in capitals"),
    ),
    Defence(
        name="our network",
        file=EXACT,
        before="if accepted.network != terms.network:",
        after="if not accepted.network:",
        attacks=("payment: another chain", "payment: network by its old name"),
    ),
    Defence(
        name="our token",
        file=EXACT,
        before="if accepted.asset.lower() != terms.asset:",
        after="if not accepted.asset:",
        attacks=("payment: another token",),
    ),
    Defence(
        name="money for us",
        file=EXACT,
        before="if payment.pay_to != terms.pay_to:",
        after="if not payment.pay_to:",
        attacks=("payment: another payee signed", "payment: to twice in the JSON"),
    ),
    Defence(
        name="nobody pays himself",
        file=EXACT,
        before="if payment.payer == payment.pay_to:",
        after="if not payment.payer:",
        attacks=("payment: payee pays itself", "payment: of the payee to itself"),
    ),
    Defence(
        name="the payer signed",
        file=EXACT,
        before="if signer != payment.payer:",
        after="if not signer:",
        attacks=(
            "payment: signed by a stranger",
            "payment: signed for another chain",
            "payment: value changed",
            "payment: for a wallet that signed nothing",
            "key: known, with a forged payment of its owner",
        ),
    ),
    Defence(
        name="exactly the price",
        file=EXACT,
        before="if payment.value != amount_usdc:",
        after="if payment.value < 0:",
        attacks=(
            "payment: one unit too little",
            "payment: one unit too much",
            "payment: a smaller amount echoed and signed",
            "money: a price paid for a cheaper route",
            "body: fund twice, the small one paid",
        ),
    ),
    Defence(
        name="validAfter is past",
        file=EXACT,
        before="if payment.valid_after >= now:",
        after="if payment.valid_after < 0:",
        attacks=("payment: validAfter is now", "payment: not yet valid"),
    ),
    Defence(
        name="time to settle",
        file=EXACT,
        before="if payment.valid_before < now + margin_s:",
        after="if payment.valid_before < 0:",
        attacks=("payment: five seconds are left", "payment: expired", "payment: held back until it expired"),
    ),
    Defence(
        name="nonces are remembered as long as they are valid",
        file=EXACT,
        before="if payment.valid_before > now + MAX_LIFE_S:",
        after="if payment.valid_before < 0:",
        attacks=("payment: an hour and a second are left",),
    ),
    Defence(
        name="version 1's version",
        file=VERSION1,
        before="if payload.x402_version != X402_VERSION_1:",
        after="if payload.x402_version < 0:",
        attacks=(
            "version 1: version 0",
            "version 1: version 2",
        ),
    ),
    Defence(
        name="version 1's scheme",
        file=VERSION1,
        before="if payload.scheme != SCHEME_EXACT:",
        after="if not payload.scheme:",
        attacks=(
            "version 1: scheme upto",
            "version 1: scheme in capitals",
        ),
    ),
    Defence(
        name="version 1's name of our network",
        file=VERSION1,
        before="if payload.network != name:",
        after="if not payload.network:",
        attacks=(
            "version 1: the main network",
            "version 1: another network",
        ),
    ),
)
