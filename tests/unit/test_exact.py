"""What the local verifier accepts is what the x402 SDK and the token accept, and nothing else."""

import dataclasses
from typing import Any

import msgspec
import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_keys.backends.native.main import NativeECCBackend
from eth_keys.main import KeyAPI
from eth_utils.address import to_checksum_address
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc
from spawn_schemas.x402 import Authorization, ExactEvmPayload, PaymentPayload, Reason
from x402.mechanisms.evm.eip712 import hash_eip3009_authorization
from x402.mechanisms.evm.exact import ExactEvmScheme
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.mechanisms.evm.types import ExactEIP3009Authorization
from x402.schemas import PaymentRequirements

from spawn.payments.curve import checksummed, keccak256, recover
from spawn.payments.exact import (
    MAX_LIFE_S,
    ExactPayment,
    PaymentInvalid,
    Terms,
    check,
    decode_payment,
    identify,
    identify_authorization,
    payment_identifier,
    terms,
)
from tests.unit.bad_payments import BAD_PAYMENTS, ORDER, BadPayment, Payment, header, sign

NOW = 1_900_000_000
PRICE = Usdc(1_000)
PAYER: LocalAccount = Account.from_key("0x" + "11" * 32)
ASSET = "0x036CbD53842c5426634e7929541eC2318f3dCF7e"
PAYEE = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
TERMS = terms(
    chain_id=84532,
    asset=Address(ASSET.lower()),
    asset_name="USDC",
    asset_version="2",
    pay_to=Address(PAYEE.lower()),
)
NATIVE = KeyAPI(NativeECCBackend())  # pure Python: shares no code with ours

keys = st.integers(1, ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
uint256 = st.integers(0, 2**256 - 1)
bytes32 = st.binary(min_size=32, max_size=32)
authorizations = st.builds(
    ExactEIP3009Authorization,
    from_address=st.just(""),
    to=st.just(PAYEE),
    value=uint256.map(str),
    valid_after=uint256.map(str),
    valid_before=uint256.map(str),
    nonce=bytes32.map(lambda nonce: "0x" + nonce.hex()),
)
tokens = st.builds(
    terms,
    chain_id=st.integers(1, 2**64),
    asset=st.just(TERMS.asset),
    asset_name=st.text(max_size=20),
    asset_version=st.text(max_size=5),
    pay_to=st.just(TERMS.pay_to),
)


def good_payment(**authorization: str) -> Payment:
    """A payment of PRICE by PAYER at NOW, as the stock client writes it."""
    payment: dict[str, Any] = {
        "x402Version": 2,
        "accepted": {
            "scheme": "exact",
            "network": "eip155:84532",
            "amount": str(PRICE),
            "asset": ASSET,
            "payTo": PAYEE,
            "maxTimeoutSeconds": 300,
            "extra": {"name": "USDC", "version": "2", "paymentFlow": "upfront"},
        },
        "payload": {
            "authorization": {
                "from": PAYER.address,
                "to": PAYEE,
                "value": str(PRICE),
                "validAfter": "0",
                "validBefore": str(NOW + 300),
                "nonce": "0x" + "5a" * 32,
                **authorization,
            },
        },
        "resource": {"url": "http://127.0.0.1:8402/v1/balance"},
        "extensions": {},
    }
    payment["payload"]["signature"] = sign(payment, PAYER)
    return payment


def accept(value: str, on: Terms = TERMS, now: int = NOW) -> ExactPayment:
    """All three steps."""
    payment = identify(decode_payment(value), on)
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
    assert error.next
    return error.code


def test_a_good_payment_is_read_into_normal_form() -> None:
    payment = accept(header(good_payment()))
    assert payment == accept(header(good_payment()).encode().decode())
    assert payment.payer == PAYER.address.lower()
    assert payment.pay_to == PAYEE.lower()
    assert (payment.value, payment.valid_after, payment.valid_before) == (PRICE, 0, NOW + 300)
    names = {
        payment.nonce_key(TERMS.chain_id, TERMS.asset),
        payment.nonce_key(TERMS.chain_id + 1, TERMS.asset),
        payment.nonce_key(TERMS.chain_id, payment.payer),
        replace(payment, payer=payment.pay_to).nonce_key(TERMS.chain_id, TERMS.asset),
        replace(payment, nonce="0x" + "00" * 32).nonce_key(TERMS.chain_id, TERMS.asset),
    }
    assert len(names) == 5
    again = replace(payment, value=1, signature="0x", valid_before=1)
    assert again.nonce_key(TERMS.chain_id, TERMS.asset) in names  # the token keeps one nonce for all of these


def test_the_table_of_bad_payments_is_long_and_its_names_are_distinct() -> None:
    assert len({bad.name for bad in BAD_PAYMENTS}) == len(BAD_PAYMENTS) > 90


@pytest.mark.parametrize("bad", BAD_PAYMENTS, ids=lambda bad: bad.name)
def test_a_bad_payment_is_refused_for_its_own_reason(bad: BadPayment) -> None:
    assert refusal(bad.make(good_payment())) == bad.expected


def test_bytes_that_are_no_header_are_refused() -> None:
    for value in (b"\xff\xfe", "é" * 8, header(good_payment()) + "\n"):
        with pytest.raises(SpawnError):
            decode_payment(value)


@given(st.binary(max_size=600))
def test_no_bytes_crash_the_decoder(data: bytes) -> None:
    with pytest.raises(SpawnError):
        decode_payment(data)
    with pytest.raises(SpawnError):
        decode_payment(header(data.decode("latin-1")))


def test_hex_may_come_in_any_case_and_means_the_same_nonce() -> None:
    good = good_payment()
    shouting = good_payment()
    for place, names in (
        (shouting["payload"]["authorization"], ("from", "to", "nonce")),
        (shouting["payload"], ("signature",)),
    ):
        for name in names:
            place[name] = "0x" + place[name][2:].upper()
    shouting["accepted"]["asset"] = ASSET.lower()
    shouting["accepted"]["payTo"] = PAYEE.lower()
    assert accept(header(shouting)) == accept(header(good))


def test_a_replay_is_identified_even_when_it_has_expired_and_the_price_has_changed() -> None:
    payment = identify(decode_payment(header(good_payment(value="77", validBefore="5"))), TERMS)
    assert (payment.value, payment.valid_before) == (77, 5)


@pytest.mark.parametrize(
    ("valid_after", "valid_before", "reason"),
    [
        (NOW - 1, NOW + 6, None),
        (NOW - 1, NOW + MAX_LIFE_S, None),
        (NOW, NOW + 300, Reason.VALID_AFTER),  # the token demands strictly less than now
        (NOW + 1, NOW + 300, Reason.VALID_AFTER),
        (0, NOW + 5, Reason.VALID_BEFORE),
        (0, NOW + MAX_LIFE_S + 1, Reason.VALID_BEFORE),
    ],
)
def test_the_edges_of_time(valid_after: int, valid_before: int, reason: Reason | None) -> None:
    value = header(good_payment(validAfter=str(valid_after), validBefore=str(valid_before)))
    if reason is None:
        accept(value)
    else:
        assert refusal(value) == reason


def test_a_refused_amount_says_what_to_pay() -> None:
    payment = identify(decode_payment(header(good_payment())), TERMS)
    with pytest.raises(PaymentInvalid, match=r"0\.25 USDC.* exactly 250000, not 1000"):
        check(payment, amount_usdc=Usdc(250_000), now=NOW)


@given(value=st.integers(0, 2**63 - 1), nonce=bytes32)
@settings(max_examples=20)
def test_a_checked_payment_survives_storage(value: int, nonce: bytes) -> None:
    payment = identify(
        decode_payment(header(good_payment(value=str(value), nonce="0x" + nonce.hex()))), TERMS
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(payment), type=ExactPayment) == payment
    assert msgspec.json.decode(msgspec.json.encode(payment), type=ExactPayment) == payment


def _authorize(key: bytes, fields: ExactEIP3009Authorization, on: Terms) -> tuple[ExactEvmPayload, bytes]:
    """The authorization, signed by `key` over the digest that the SDK computes; and that digest."""
    account = Account.from_key(key)
    fields = dataclasses.replace(fields, from_address=account.address)
    digest = hash_eip3009_authorization(fields, on.chain_id, on.asset, on.asset_name, on.asset_version)
    authorization = Authorization(
        from_=fields.from_address,
        to=fields.to,
        value=fields.value,
        valid_after=fields.valid_after,
        valid_before=fields.valid_before,
        nonce=fields.nonce,
    )
    signature = "0x" + bytes(account.unsafe_sign_hash(digest).signature).hex()
    return ExactEvmPayload(signature=signature, authorization=authorization), digest


@given(keys, authorizations, tokens)
@settings(max_examples=60)
def test_what_the_sdk_signs_is_recognised(key: bytes, fields: ExactEIP3009Authorization, on: Terms) -> None:
    signed, _ = _authorize(key, fields, on)
    payment = identify_authorization(signed, on)
    assert payment.payer == Account.from_key(key).address.lower()
    assert str(payment.value) == fields.value
    assert str(payment.valid_after) == fields.valid_after
    assert str(payment.valid_before) == fields.valid_before
    assert payment.nonce == fields.nonce


@given(keys, authorizations, st.integers(0, 65 * 8 - 1))
@settings(max_examples=80, deadline=None)
def test_a_signature_with_one_bit_wrong_is_refused_as_another_implementation_would(
    key: bytes, fields: ExactEIP3009Authorization, bit: int
) -> None:
    signed, digest = _authorize(key, fields, TERMS)
    signature = bytearray.fromhex(signed.signature[2:])
    signature[bit // 8] ^= 1 << bit % 8
    changed = msgspec.structs.replace(signed, signature="0x" + signature.hex())
    with pytest.raises(PaymentInvalid) as caught:
        identify_authorization(changed, TERMS)
    assert caught.value.reason is Reason.SIGNATURE
    assert _oracle(digest, bytes(signature)) != signed.authorization.from_.lower()


@given(bytes32, bytes32, st.integers(1, ORDER - 1), st.sampled_from([27, 28]))
@settings(max_examples=80, deadline=None)
def test_recovery_agrees_with_an_independent_implementation(digest: bytes, r: bytes, s: int, v: int) -> None:
    signature = r + s.to_bytes(32, "big") + bytes([v])
    expected = _oracle(digest, signature)
    if expected is None:
        with pytest.raises(ValueError, match=r"\w"):
            recover(digest, signature)
    else:
        assert recover(digest, signature) == expected


def _oracle(digest: bytes, signature: bytes) -> str | None:
    """What the token contract makes of a signature, by pure-Python arithmetic; None where it reverts."""
    r, s, v = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"), signature[64]
    if v not in (27, 28) or not 0 < r < ORDER or not 0 < s <= ORDER // 2:
        return None
    try:
        key = NATIVE.ecdsa_recover(digest, NATIVE.Signature(vrs=(v - 27, r, s)))
    except Exception:  # noqa: BLE001  # each way in which there is no such point has an exception of its own
        return None
    return str(key.to_address())


@given(keys, bytes32)
@settings(max_examples=30)
def test_every_low_s_signature_recovers_to_its_key(key: bytes, digest: bytes) -> None:
    account = Account.from_key(key)
    signature = bytes(account.unsafe_sign_hash(digest).signature)
    assert recover(digest, signature) == account.address.lower()


@given(st.binary(min_size=20, max_size=20))
def test_checksums_are_those_of_eip_55(raw: bytes) -> None:
    assert checksummed(Address("0x" + raw.hex())) == to_checksum_address(raw)


def test_keccak_is_the_original_padding() -> None:
    empty = "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert keccak256(b"").hex() == empty


@pytest.mark.parametrize(
    ("asset", "name", "chain_id", "separator"),
    [
        (ASSET, "USDC", 84532, "71f17a3b2ff373b803d70a5a07c046c1a2bc8e89c09ef722fcb047abe94c9818"),
        (
            "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913",
            "USD Coin",
            8453,
            "02fa7265e7c5d81118673727957699e4d68f74cd74b7db77da710fe8a2c7834f",
        ),
    ],
)
def test_the_stock_client_pays_us_in_usdc(asset: str, name: str, chain_id: int, separator: str) -> None:
    """`separator` is what `DOMAIN_SEPARATOR()` of the deployed contract answers."""
    on = terms(
        chain_id=chain_id,
        asset=Address(asset.lower()),
        asset_name=name,
        asset_version="2",
        pay_to=TERMS.pay_to,
    )
    assert on.digest_prefix.hex() == "1901" + separator
    requirements = PaymentRequirements(
        scheme="exact",
        network=f"eip155:{chain_id}",
        asset=asset,
        amount=str(PRICE),
        pay_to=PAYEE,
        max_timeout_seconds=300,
        extra={"name": name, "version": "2"},
    )
    inner = ExactEvmScheme(EthAccountSigner(PAYER)).create_payment_payload(requirements)
    accepted = requirements.model_dump(by_alias=True)
    payment = identify(decode_payment(header({"x402Version": 2, "accepted": accepted, "payload": inner})), on)
    assert payment.payer == PAYER.address.lower()
    check(payment, amount_usdc=PRICE, now=payment.valid_before - 300)


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        (None, None),
        ({}, None),
        ({"payment-identifier": {"info": {"required": False}}}, None),
        ({"payment-identifier": {"info": {"id": "pay_0123456789abcdef"}}}, "pay_0123456789abcdef"),
        ({"payment-identifier": {"info": {"id": "k" * 128}}}, "k" * 128),
    ],
)
def test_the_payment_identifier_is_read(extensions: dict[str, Any] | None, expected: str | None) -> None:
    assert payment_identifier(_with(extensions)) == expected


@pytest.mark.parametrize("key", ["short", "k" * 129, "has spaces in it, it has", "pay_0123456789abcde\n", 17])
def test_a_payment_identifier_that_breaks_the_rule_is_refused(key: object) -> None:
    with pytest.raises(SpawnError):
        payment_identifier(_with({"payment-identifier": {"info": {"id": key}}}))


def _with(extensions: dict[str, Any] | None) -> PaymentPayload:
    return decode_payment(header({**good_payment(), "extensions": extensions}))
