"""A sign-in speaks for its wallet only as it was signed, to us, and for a few minutes."""

import base64
import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.sign_in import SignIn

from spawn.payments.nonces import nonce_key
from spawn.payments.sign_in import (
    CLOCK_SKEW_S,
    MAX_AGE_S,
    SignedIn,
    SignInChallenges,
    decode,
    eip4361_text,
    relying_party,
    verify,
)
from tests.unit.bad_payments import ORDER
from tests.unit.bad_sign_ins import BAD_SIGN_INS, BadSignIn, Scene, at, claim, encode, sign, text_of
from tests.unit.bad_signatures import CALLER

NOW = 1_900_000_000
SCENE = Scene(domain="api.example.com", origin="https://api.example.com", chain_id=84532, now=NOW)
PARTY = relying_party(public_url="https://api.example.com/", authority="api.example.com", chain_id=84532)
WALLET = CALLER.address.lower()


def accept(header: str, *, now: int = NOW) -> SignedIn:
    return verify(header, PARTY, now=now)


def refusal(header: str, *, now: int = NOW) -> str:
    with pytest.raises(SpawnError) as caught:
        accept(header, now=now)
    assert caught.value.code is Code.INVALID_SIGNATURE
    assert caught.value.details is not None
    assert caught.value.next is not None
    return str(caught.value.details["reason"])


def test_a_sign_in_names_its_wallet() -> None:
    signed = accept(sign(SCENE))
    assert signed.wallet == WALLET
    assert (signed.issued_at, signed.expires) == (NOW, NOW + MAX_AGE_S)
    assert signed.nonce_key == nonce_key("siwx", WALLET, "00112233445566778899aabbccddeeff")


def test_the_table_of_bad_sign_ins_is_long_and_its_names_are_distinct() -> None:
    assert len({bad.name for bad in BAD_SIGN_INS}) == len(BAD_SIGN_INS) > 90


@pytest.mark.parametrize("bad", BAD_SIGN_INS, ids=lambda bad: bad.name)
def test_a_bad_sign_in_is_refused_for_its_own_reason(bad: BadSignIn) -> None:
    assert refusal(bad.make(SCENE)) == bad.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"uri": SCENE.origin},
        {"uri": f"{SCENE.origin}/"},
        {"uri": f"{SCENE.origin}/v1/servers?status=running&limit=5#top"},
        {"uri": f"{SCENE.origin}?a=%20b"},
        {"nonce": "abcdEF12"},
        {"nonce": "n" * 128},
        {"issuedAt": at(NOW + CLOCK_SKEW_S)},
        {"issuedAt": at(NOW - MAX_AGE_S)},
        {"issuedAt": at(NOW).replace("Z", ".123456Z")},
        {"issuedAt": at(NOW + 7200).replace("Z", "+02:00")},
        {"expirationTime": at(NOW + 1)},
        {"expirationTime": "9999-12-31T23:59:59Z"},
        {"notBefore": at(NOW)},
        {"statement": "Sign in; read (only) what is yours: 100, at least!"},
        {"statement": ""},
        {"requestId": ""},
        {"requestId": "call-1:%20@x"},
        {"resources": []},
        {"resources": ["https://elsewhere.example/x", "ipfs://bafy"]},
        {"address": WALLET},
        {"signatureScheme": "eip191"},
    ],
    ids=str,
)
def test_variants_that_the_rules_allow(changes: dict[str, Any]) -> None:
    assert accept(sign(SCENE, **changes)).wallet == WALLET


def test_a_field_that_is_null_is_a_field_left_out() -> None:
    """As the Python SDK reads it."""
    empty = dict.fromkeys(
        ("statement", "expirationTime", "notBefore", "requestId", "resources", "signatureScheme")
    )
    assert accept(sign(SCENE, after=empty)).wallet == WALLET


def test_fields_that_clients_add_are_read_over() -> None:
    assert accept(sign(SCENE, after={"app": "mine"})).wallet == WALLET


def test_a_text_may_have_the_checksum_where_the_header_has_none() -> None:
    """The npm library underneath the SDK writes the checksum by itself."""
    header = sign(SCENE, address=WALLET, text=lambda text: text.replace(WALLET, CALLER.address))
    assert accept(header).wallet == WALLET


def test_it_is_remembered_no_longer_than_it_can_be_used() -> None:
    header = sign(SCENE, expirationTime=at(NOW + 60))
    assert accept(header).expires == NOW + 60
    assert accept(header, now=NOW + 59).expires == NOW + 60
    assert refusal(header, now=NOW + 60) == "expired"
    ahead = sign(SCENE, issuedAt=at(NOW + CLOCK_SKEW_S))
    expires = accept(ahead).expires
    assert accept(ahead, now=expires).wallet == WALLET
    assert refusal(ahead, now=expires + 1) == "expired"


@pytest.mark.parametrize(
    ("public_url", "authority"),
    [
        ("http://127.0.0.1:8402", "127.0.0.1:8402"),
        ("HTTP://Spawn.Example:80/", "spawn.example"),
        ("http://[::1]:8402", "[::1]:8402"),
    ],
)
def test_the_domain_has_a_port_unless_it_is_the_schemes_own(public_url: str, authority: str) -> None:
    party = relying_party(public_url=public_url, authority=authority, chain_id=1)
    scene = replace(SCENE, domain=authority, origin=f"http://{authority}", chain_id=1)
    assert verify(sign(scene), party, now=NOW).wallet == WALLET


def test_a_challenge_is_what_a_wallet_has_to_sign() -> None:
    extension = SignInChallenges(PARTY).extension(entropy=bytes(range(16)), now=NOW)
    declared = json.loads(msgspec.json.encode(extension))
    assert declared["supportedChains"] == [{"chainId": "eip155:84532", "type": "eip191"}]
    info = declared["info"]
    assert info["nonce"] == "000102030405060708090a0b0c0d0e0f"
    assert (info["issuedAt"], info["expirationTime"]) == (at(NOW), at(NOW + MAX_AGE_S))
    header = sign(SCENE, **info)
    assert accept(header).expires == NOW + MAX_AGE_S
    assert accept(header, now=NOW + MAX_AGE_S - 1).wallet == WALLET
    assert refusal(header, now=NOW + MAX_AGE_S) == "expired"


def test_the_schema_describes_the_header() -> None:
    extension = SignInChallenges(PARTY).extension(entropy=bytes(16), now=NOW)
    schema = msgspec.json.decode(extension.schema)
    known = {field.encode_name for field in msgspec.structs.fields(SignIn)}
    needed = {field.encode_name for field in msgspec.structs.fields(SignIn) if field.required}
    assert set(schema["properties"]) == known - {"signatureScheme"}
    assert set(schema["required"]) == needed


keys = st.integers(1, ORDER - 1).map(lambda number: "0x" + number.to_bytes(32, "big").hex())
uri_tails = st.from_regex(r"(/[A-Za-z0-9._~:@!$&'()*+,;=-]{0,9}){0,3}(\?[a-z=&%20]{0,9})?", fullmatch=True)
statements = st.text("abcXYZ019 .,:;!?()[]/@&=+$*'_~-#", max_size=40)
nonces = st.from_regex(r"[A-Za-z0-9]{8,40}", fullmatch=True)


@given(
    key=keys,
    changes=st.fixed_dictionaries(
        {
            "nonce": nonces,
            "issuedAt": st.integers(-MAX_AGE_S, CLOCK_SKEW_S).map(lambda offset: at(NOW + offset)),
        },
        optional={
            "uri": uri_tails.map(lambda tail: SCENE.origin + tail),
            "statement": statements,
            "expirationTime": st.integers(1, 10**9).map(lambda offset: at(NOW + offset)),
            "notBefore": st.integers(0, 10**9).map(lambda offset: at(NOW - offset)),
            "requestId": st.from_regex(r"[A-Za-z0-9._~:@!$&'()*+,;=-]{0,20}", fullmatch=True),
            "resources": st.lists(uri_tails.map(lambda tail: f"https://elsewhere.example{tail}"), max_size=3),
        },
    ),
)
@settings(max_examples=60, deadline=None)  # the test's own signing is in plain Python
def test_every_text_by_the_rules_is_recognised(key: str, changes: dict[str, Any]) -> None:
    account = Account.from_key(key)
    header = sign(SCENE, by=account, address=account.address, **changes)
    assert eip4361_text(decode(header), account.address) == text_of(
        claim(SCENE, address=account.address, **changes)
    )
    assert accept(header).wallet == account.address.lower()


@given(st.text(st.characters(max_codepoint=255), max_size=200))
def test_no_header_crashes_the_reader(text: str) -> None:
    for header in (text, base64.b64encode(text.encode()).decode()):
        refusal(header)


@given(
    name=st.sampled_from(
        [
            "domain",
            "address",
            "uri",
            "version",
            "chainId",
            "type",
            "nonce",
            "issuedAt",
            "statement",
            "signature",
        ]
    ),
    value=st.one_of(
        st.text(max_size=30), st.integers(), st.none(), st.lists(st.text(max_size=5), max_size=2)
    ),
)
def test_no_field_can_be_exchanged(name: str, value: object) -> None:
    good = json.loads(base64.b64decode(sign(SCENE, statement="Read")))
    if good[name] != value:
        refusal(encode(good | {name: value}))


def test_one_flipped_bit_of_the_signature_is_enough() -> None:
    fields = json.loads(base64.b64decode(sign(SCENE)))
    good = bytes.fromhex(fields["signature"][2:])
    for bit in range(len(good) * 8):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        assert refusal(encode(fields | {"signature": "0x" + bad.hex()})) == "signature"
