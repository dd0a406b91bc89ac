"""Version 1 lets through what version 2 lets through, and writes what the version 1 SDKs read."""

import json
from base64 import b64decode

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc
from spawn_schemas.x402 import Reason
from x402.mechanisms.evm.exact.v1.client import ExactEvmSchemeV1
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.schemas.v1 import PaymentRequirementsV1

from spawn.payments import exact, version1
from spawn.payments.exact import ExactPayment, PaymentInvalid, Terms, check, terms
from spawn.payments.header import MAX_HEADER_BYTES
from tests.unit.bad_payments import NOT_A_PAYMENT, NOT_FOR_US, BadPayment, header, sign
from tests.unit.bad_payments_v1 import ABOUT_THE_OFFER, BAD_PAYMENTS_V1, envelope
from tests.unit.test_exact import ASSET, NOW, PAYEE, PAYER, PRICE, TERMS, good_payment

URL = "http://127.0.0.1:8402/v1/servers"
MAIN_NETWORK = terms(
    chain_id=8453, asset=TERMS.asset, asset_name="USD Coin", asset_version="2", pay_to=TERMS.pay_to
)
ELSEWHERE = terms(chain_id=1, asset=TERMS.asset, asset_name="USDC", asset_version="2", pay_to=TERMS.pay_to)
WORDS_OF_VERSION_1 = {
    "insufficient_funds",
    "invalid_exact_evm_payload_authorization_valid_after",
    "invalid_exact_evm_payload_authorization_valid_before",
    "invalid_exact_evm_payload_authorization_value",
    "invalid_exact_evm_payload_signature",
    "invalid_exact_evm_payload_recipient_mismatch",
    "invalid_network",
    "invalid_payment_requirements",
    "invalid_payment",
    "unsupported_scheme",
    "invalid_x402_version",
    "invalid_transaction_state",
    "unexpected_settle_error",
}
"""Those of `ErrorReasons` in npm `x402` 1.2 that we use; tests/interop asks the package itself."""


def accept(value: str | bytes, on: Terms = TERMS, now: int = NOW) -> ExactPayment:
    """All three steps."""
    payment = version1.identify(version1.decode_payment(value), on)
    check(payment, amount_usdc=PRICE, now=now)
    return payment


def refusal(value: str) -> Code | Reason:
    with pytest.raises((SpawnError, PaymentInvalid)) as caught:
        accept(value)
    error = caught.value
    if isinstance(error, PaymentInvalid):
        assert error.message
        return error.reason
    assert isinstance(error, SpawnError)
    assert error.message.startswith("The X-PAYMENT header ")
    assert error.next is not None
    assert "accepts" in error.next
    return error.code


@pytest.mark.parametrize(
    ("network", "name"),
    [("eip155:8453", "base"), ("eip155:84532", "base-sepolia"), ("eip155:1", None), ("base", None)],
)
def test_the_networks_that_version_1_has_names_for(network: str, name: str | None) -> None:
    assert version1.network_name(network) == name


def test_a_good_payment_is_the_one_that_version_2_reads() -> None:
    good = good_payment()
    expected = exact.identify(exact.decode_payment(header(good)), TERMS)
    assert accept(header(envelope(good))) == accept(header(envelope(good)).encode()) == expected


@given(
    value=st.integers(0, 2**256 - 1),
    nonce=st.binary(min_size=32, max_size=32),
    after=st.integers(0, 2**256 - 1),
    before=st.integers(0, 2**256 - 1),
    flipped=st.none() | st.integers(0, 65 * 8 - 1),
)
@settings(max_examples=60, deadline=None)
def test_both_versions_answer_alike_about_the_same_authorization(
    value: int, nonce: bytes, after: int, before: int, flipped: int | None
) -> None:
    payment = good_payment(
        value=str(value), nonce="0x" + nonce.hex(), validAfter=str(after), validBefore=str(before)
    )
    if flipped is not None:
        signature = bytearray.fromhex(payment["payload"]["signature"][2:])
        signature[flipped // 8] ^= 1 << flipped % 8
        payment["payload"]["signature"] = "0x" + signature.hex()

    def by_version_2() -> ExactPayment:
        return exact.identify(exact.decode_payment(header(payment)), TERMS)

    def by_version_1() -> ExactPayment:
        return version1.identify(version1.decode_payment(header(envelope(payment))), TERMS)

    if flipped is None:
        assert by_version_1() == by_version_2()
        return
    with pytest.raises(PaymentInvalid) as refused_by_2:
        by_version_2()
    with pytest.raises(PaymentInvalid) as refused_by_1:
        by_version_1()
    assert (refused_by_1.value.reason, refused_by_1.value.message) == (
        refused_by_2.value.reason,
        refused_by_2.value.message,
    )


def test_the_table_of_bad_payments_is_long_its_names_are_distinct_and_none_is_forgotten() -> None:
    assert len({bad.name for bad in BAD_PAYMENTS_V1}) == len(BAD_PAYMENTS_V1) > 100
    of_version_2 = {name for name, *_ in (*NOT_A_PAYMENT, *NOT_FOR_US)}
    assert of_version_2 >= ABOUT_THE_OFFER


@pytest.mark.parametrize("bad", BAD_PAYMENTS_V1, ids=lambda bad: bad.name)
def test_a_bad_payment_is_refused_for_its_own_reason(bad: BadPayment) -> None:
    assert refusal(bad.make(good_payment())) == bad.expected


@given(st.binary(max_size=600))
def test_no_bytes_crash_the_decoder(data: bytes) -> None:
    with pytest.raises(SpawnError):
        version1.decode_payment(data)
    with pytest.raises(SpawnError):
        version1.decode_payment(header(data.decode("latin-1")))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), st.lists, max_leaves=9))
def test_any_json_in_a_field_is_read_or_refused(value: object) -> None:
    good = envelope(good_payment())
    for name in good:
        payment = header({**good, name: value})
        if name in {"scheme", "network"} and isinstance(value, str):
            assert refusal(payment) in {Reason.UNSUPPORTED_SCHEME, Reason.NETWORK_MISMATCH}
        elif name == "x402Version" and type(value) is int:
            # Of an integer that fits in no register the JSON reader says that itself.
            assert value == 1 or refusal(payment) in {Reason.INVALID_VERSION, Code.INVALID_PAYMENT}
        else:
            assert refusal(payment) is Code.INVALID_PAYMENT


@pytest.mark.parametrize("extra", [{"extensions": {}}, {"accepted": None}, {"resource": URL}])
def test_fields_that_are_not_of_version_1_are_read_over(extra: dict[str, object]) -> None:
    good = envelope(good_payment())
    assert accept(header({**good, **extra})) == accept(header(good))


def test_the_longest_header_is_as_long_as_in_version_2() -> None:
    padded = envelope(good_payment())
    room = MAX_HEADER_BYTES // 4 * 3 - len(json.dumps({**padded, "filler": ""}))
    accept(header({**padded, "filler": "x" * room}))
    assert refusal(header({**padded, "filler": "x" * (room + 1)})) is Code.INVALID_PAYMENT


def test_a_payment_on_the_main_network_names_it() -> None:
    payment = good_payment()
    payment["accepted"] |= {"network": "eip155:8453", "extra": {"name": "USD Coin", "version": "2"}}
    payment["payload"]["signature"] = sign(payment, PAYER)
    assert accept(header(envelope(payment, network="base")), MAIN_NETWORK).payer == PAYER.address.lower()
    with pytest.raises(PaymentInvalid, match="network base"):
        accept(header(envelope(payment)), MAIN_NETWORK)


def test_where_version_1_has_no_name_nothing_is_offered_and_nothing_taken() -> None:
    assert version1.requirements(ELSEWHERE, PRICE, URL, "x") is None
    for name in ("base", "base-sepolia", "eip155:1"):
        payload = version1.decode_payment(header(envelope(good_payment(), network=name)))
        with pytest.raises(PaymentInvalid, match="PAYMENT-SIGNATURE") as caught:
            version1.identify(payload, ELSEWHERE)
        assert caught.value.reason is Reason.NETWORK_MISMATCH


@given(st.integers(0, 2**63 - 1), st.text(max_size=50))
def test_the_offer_is_what_the_sdk_reads(amount: int, description: str) -> None:
    offer = version1.requirements(TERMS, Usdc(amount), URL, description)
    written = json.loads(msgspec.json.encode(offer))
    assert (
        PaymentRequirementsV1.model_validate(written).model_dump(by_alias=True, exclude_none=True) == written
    )
    assert written == {
        "scheme": "exact",
        "network": "base-sepolia",
        "maxAmountRequired": str(amount),
        "resource": URL,
        "description": description,
        "mimeType": "application/json",
        "payTo": PAYEE,
        "maxTimeoutSeconds": 300,
        "asset": ASSET,
        "extra": {"name": "USDC", "version": "2"},
    }


def test_the_offer_may_describe_the_call_to_catalogues() -> None:
    described = {"input": {"type": "http", "method": "GET"}}
    offer = version1.requirements(TERMS, PRICE, URL, "x", described)
    assert offer is not None
    assert offer.output_schema == described


@pytest.mark.parametrize("on", [TERMS, MAIN_NETWORK], ids=lambda on: on.network)
def test_the_stock_scheme_pays_what_we_offer(on: Terms) -> None:
    offer = PaymentRequirementsV1.model_validate_json(
        msgspec.json.encode(version1.requirements(on, PRICE, URL, "x"))
    )
    signed = ExactEvmSchemeV1(EthAccountSigner(PAYER)).create_payment_payload(offer)
    payload = {"x402Version": 1, "scheme": "exact", "network": offer.network, "payload": signed}
    payment = version1.identify(version1.decode_payment(header(payload)), on)
    assert payment.payer == PAYER.address.lower()
    check(payment, amount_usdc=PRICE, now=payment.valid_before - 300)


@pytest.mark.parametrize("error", [*(reason.value for reason in Reason), "payment_required", "", "hacked"])
def test_a_body_says_why_in_words_of_version_1(error: str) -> None:
    assert version1.body_error(error) in WORDS_OF_VERSION_1


def test_a_reason_that_version_1_knows_is_told() -> None:
    assert version1.body_error(Reason.VALUE_MISMATCH) == "invalid_exact_evm_payload_authorization_value"
    assert version1.body_error("insufficient_funds") == "insufficient_funds"
    assert version1.body_error("payment_required") == "invalid_payment"


def receipt(value: bytes) -> dict[str, object]:
    """As every version 1 client decodes it: base64 of JSON."""
    read: dict[str, object] = json.loads(b64decode(value, validate=True))
    return read


def test_the_receipt_of_a_settlement() -> None:
    value = version1.settle_response(
        MAIN_NETWORK, success=True, payer=Address(PAYER.address.lower()), transaction="0x" + "ab" * 32
    )
    assert receipt(value) == {
        "success": True,
        "transaction": "0x" + "ab" * 32,
        "network": "base",
        "payer": PAYER.address,
    }


@pytest.mark.parametrize(
    ("reason", "transaction", "told"),
    [
        (Reason.INSUFFICIENT_FUNDS, "", "insufficient_funds"),
        (Reason.NONCE_USED, "", "invalid_transaction_state"),
        (Reason.SETTLEMENT_PENDING, "0x" + "cd" * 32, "unexpected_settle_error"),
        ("a revert nobody foresaw", "", "unexpected_settle_error"),
    ],
)
def test_the_receipt_of_what_was_not_settled(reason: str, transaction: str, told: str) -> None:
    payer = Address(PAYER.address.lower())
    value = version1.settle_response(
        TERMS, success=False, payer=payer, transaction=transaction, error_reason=reason
    )
    assert receipt(value) == {
        "success": False,
        "errorReason": told,
        "transaction": transaction,
        "network": "base-sepolia",
        "payer": PAYER.address,
    }
    assert told in WORDS_OF_VERSION_1
