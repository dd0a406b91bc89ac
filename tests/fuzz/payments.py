"""x402 payment headers, in both versions: whatever is accepted was signed by its payer, says eth-account."""

from base64 import b64encode
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, Final

import msgspec
from eth_account import Account
from eth_account.messages import encode_typed_data
from spawn_schemas.errors import Code
from spawn_schemas.money import Usdc

from spawn.payments import exact, version1
from spawn.payments.exact import ExactPayment, PaymentInvalid
from tests.fuzz.target import Target, assert_plain_base64, attempt, spoil_base64_json, spoil_bytes
from tests.unit.bad_payments import BAD_PAYMENTS, TRANSFER, header, sign
from tests.unit.bad_payments_v1 import BAD_PAYMENTS_V1, envelope
from tests.unit.test_exact import ASSET, NOW, PAYER, PRICE, TERMS, good_payment

DOMAIN: Final = {"name": "USDC", "version": "2", "chainId": 84532, "verifyingContract": ASSET}


def check_version_2(data: bytes) -> bool:
    """`PAYMENT-SIGNATURE`."""
    payload = attempt(lambda: exact.decode_payment(data.decode("latin-1")), Code.INVALID_PAYMENT)
    if payload is None:
        return False
    assert_plain_base64(data)
    key = attempt(lambda: exact.payment_identifier(payload), Code.INVALID_PAYMENT)
    assert key is None or 16 <= len(key) <= 128
    assert exact.decode_payment(b64encode(msgspec.json.encode(payload))) == payload
    return _check(partial(exact.identify, payload, TERMS), payload)


def check_version_1(data: bytes) -> bool:
    """`X-PAYMENT`."""
    payload = attempt(lambda: version1.decode_payment(data.decode("latin-1")), Code.INVALID_PAYMENT)
    if payload is None:
        return False
    assert_plain_base64(data)
    assert version1.decode_payment(b64encode(msgspec.json.encode(payload))) == payload
    return _check(partial(version1.identify, payload, TERMS), payload)


def _check(identify: Callable[[], ExactPayment], payload: Any) -> bool:
    try:
        payment = identify()
    except PaymentInvalid:
        return False
    assert signer(payment) == payment.payer
    assert payment.pay_to == TERMS.pay_to
    authorization = payload.payload.authorization
    assert [payment.value, payment.valid_after, payment.valid_before] == [
        int(number) for number in (authorization.value, authorization.valid_after, authorization.valid_before)
    ]
    try:
        exact.check(payment, amount_usdc=Usdc(PRICE), now=NOW)
    except PaymentInvalid:
        return False
    assert payment.value == PRICE
    assert payment.valid_after < NOW < payment.valid_before
    assert msgspec.json.decode(msgspec.json.encode(payment), type=ExactPayment) == payment
    return True


def signer(payment: ExactPayment) -> str:
    """Who signed this authorization, by the rules of EIP-712 as eth-account has them."""
    message = {
        "from": payment.payer,
        "to": payment.pay_to,
        "value": payment.value,
        "validAfter": payment.valid_after,
        "validBefore": payment.valid_before,
        "nonce": bytes.fromhex(payment.nonce[2:]),
    }
    signable = encode_typed_data(DOMAIN, {"TransferWithAuthorization": TRANSFER}, message)
    recovered: str = Account.recover_message(signable, signature=payment.signature)
    return recovered.lower()


def _signed_again(value: Any) -> Any:
    """The payment with a signature over what its authorization has become; itself where none can be made."""
    good = good_payment()
    try:
        signature = sign({**good, "payload": value["payload"]}, PAYER)
        return {**value, "payload": {**value["payload"], "signature": signature}}
    except Exception:  # noqa: BLE001 - eth-account has many words for what cannot be signed
        return value


def mutate(data: bytes, dice: Random) -> bytes:
    """Mostly the JSON, sometimes the header."""
    if dice.random() < 0.15:
        return spoil_bytes(data, dice)
    return spoil_base64_json(data, dice, _signed_again)


def _seed(text: str) -> bytes:
    return text.encode("latin-1", errors="replace")


VERSION_2: Final = Target(
    seeds=(_seed(header(good_payment())), *(_seed(bad.make(good_payment())) for bad in BAD_PAYMENTS)),
    check=check_version_2,
    mutate=mutate,
)
VERSION_1: Final = Target(
    seeds=(
        _seed(header(envelope(good_payment()))),
        *(_seed(bad.make(good_payment())) for bad in BAD_PAYMENTS_V1),
    ),
    check=check_version_1,
    mutate=mutate,
)
