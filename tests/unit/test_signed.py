"""A signed request speaks for its wallet only as it was signed."""

import base64
import re
import runpy
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st
from spawn_schemas.errors import Code, SpawnError

from spawn.payments.nonces import nonce_key
from spawn.payments.signed import SignedRequest, present, verify
from tests.unit.bad_payments import ORDER
from tests.unit.bad_signatures import BAD_CALLS, CALLER, BadCall, Call, digest, sign

# Examples are files to copy, not a package to import.
SignedRequestAuth = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "signing.py"))[
    "SignedRequestAuth"
]
NOW = 1_900_000_000
CALL = Call(authority="api.example.com", chain_id=84532, now=NOW)


def accept(call: Call) -> SignedRequest:
    return verify(
        method=call.method,
        path=call.path,
        query=call.query,
        headers=call.headers,
        body=call.body,
        authority=call.authority,
        chain_id=call.chain_id,
        now=call.now,
    )


def refusal(call: Call) -> str:
    with pytest.raises(SpawnError) as caught:
        accept(call)
    assert caught.value.code is Code.INVALID_SIGNATURE
    assert caught.value.details is not None
    return str(caught.value.details["reason"])


def test_a_signed_call_names_its_wallet() -> None:
    signed = accept(sign(CALL))
    assert signed.wallet == CALLER.address.lower()
    assert (signed.created, signed.expires) == (NOW, NOW + 60)
    assert signed.nonce_key == nonce_key("sig", CALLER.address.lower(), "c2lnbmVkLW9uY2U")


def test_the_table_of_bad_calls_is_long_and_its_names_are_distinct() -> None:
    assert len({bad.name for bad in BAD_CALLS}) == len(BAD_CALLS) > 60


@pytest.mark.parametrize("bad", BAD_CALLS, ids=lambda bad: bad.name)
def test_a_bad_call_is_refused_for_its_own_reason(bad: BadCall) -> None:
    assert refusal(bad.make(CALL)) == bad.reason


@pytest.mark.parametrize(
    "call",
    [
        sign(replace(CALL, body=b"")),
        sign(replace(CALL, query="")),
        sign(replace(CALL, method="GET", path="/", body=b"", query="")),
        sign(replace(CALL, path="/v1/a%2Fb/../c;d", query="??x=%20&y")),
        sign(CALL, label="*my.sig-1"),
        sign(CALL, tag='"app"', extra="?1"),
        sign(CALL, nonce='"a \\"quoted\\" \\\\ one"'),
        sign(CALL, nonce='"' + "n" * 128 + '"'),
        sign(CALL, keyid=f'"erc8128:84532:{CALLER.address}"'),  # with a checksum
        sign(CALL, created=NOW + 5),
        sign(CALL, created=NOW - 60, expires=NOW),
        sign(
            CALL.with_headers(x_extra="a  b"),
            components='"@path" "x-extra" "@method" "@authority" "@query" "content-digest"',
        ),
        sign(
            replace(CALL, body=b"").with_headers(content_digest=digest(b"")),
            components='"@authority" "@method" "@path" "@query" "content-digest"',
        ),
    ],
    ids=lambda call: f"{call.method} {call.path}{call.query}",
)
def test_variants_that_the_rules_allow(call: Call) -> None:
    assert accept(call).wallet == CALLER.address.lower()


def test_a_covered_empty_query_is_a_question_mark() -> None:
    """RFC 9421 section 2.2.7: the value begins with the question mark, also when there is no query."""
    components = '"@authority" "@method" "@path" "@query" "content-digest"'
    call = replace(sign(replace(CALL, query="?"), components=components), query="")
    assert accept(call).wallet == CALLER.address.lower()


def test_quotes_and_backslashes_are_taken_out_of_a_nonce() -> None:
    assert accept(sign(CALL, nonce=r'"a\"b\\c"')).nonce == r'a"b\c'


def test_white_space_around_a_header_is_not_part_of_it() -> None:
    components = '"@authority" "@method" "@path" "@query" "content-digest" "x-extra"'
    call = sign(CALL.with_headers(x_extra="a, b"), components=components).with_headers(x_extra="  a, b\t")
    assert accept(call).wallet == CALLER.address.lower()


def _beside(call: Call, member: str, signature: str = ":AAAA:", *, first: bool = True) -> Call:
    """Put another signature before, or behind, the one that is there."""
    label = member.split("=", 1)[0]
    pair = [(member, f"{label}={signature}"), (call.headers["signature-input"], call.headers["signature"])]
    (input_a, signature_a), (input_b, signature_b) = pair if first else reversed(pair)
    return call.with_headers(
        signature_input=f"{input_a}, {input_b}", signature=f"{signature_b} ,\t{signature_a}"
    )


FOREIGN = [
    'bot=("@authority");created=1;keyid="JrQLj5P_89iXES9-vFgrIy29clF9CC_oPPsw3c5D0bs";tag="web-bot-auth"',
    'bot=("@query-param";name="a,b" "content-type";sf);keyid="x"',
    'bot=();created=1;expires=2;keyid="erc8128"',
]


@pytest.mark.parametrize("member", FOREIGN)
@pytest.mark.parametrize("first", [True, False])
def test_signatures_by_other_keys_are_stepped_over(member: str, first: bool) -> None:
    assert accept(_beside(sign(CALL), member, first=first)).wallet == CALLER.address.lower()


def test_of_several_wallets_the_first_on_our_chain_speaks() -> None:
    stranger = "0x" + "00" * 19 + "01"
    elsewhere = f'a=("@authority");created={NOW};expires={NOW + 9};nonce="n";keyid="erc8128:1:{stranger}"'
    assert accept(_beside(sign(CALL), elsewhere)).wallet == CALLER.address.lower()
    here = elsewhere.replace("erc8128:1:", "erc8128:84532:")
    assert refusal(_beside(sign(CALL), here)) == "coverage"
    assert accept(_beside(sign(CALL), here, first=False)).wallet == CALLER.address.lower()


def test_only_a_signature_by_a_wallet_is_a_signed_call() -> None:
    assert present(sign(CALL).headers)
    assert not present({})
    for member in FOREIGN:
        assert not present({"signature-input": member})


VECTORS = [
    # Made by the npm package @slicekit/erc8128 0.2.0, with the key 0x11…11, created 1900000000.
    (
        Call(
            method="GET",
            path="/v1/servers",
            query="?status=running&name=a%20b",
            body=b"",
            authority="api.example.com",
            chain_id=84532,
            now=NOW,
        ),
        '("@authority" "@method" "@path" "@query")',
        "hlXh0gXZiz1nfwZtXW5LSA2N0RPF8xcgRmha/5VEx0kW644OwNYbycCljjK01neLah4IGglqCzIgKirISjCT0Rw=",
    ),
    (
        Call(
            query="",
            headers={"content-digest": "sha-256=:VbELkHkUq8RySia6UFSpI6QsPkL7GrzMXlRIlJlw3WI=:"},
            authority="api.example.com",
            chain_id=84532,
            now=NOW,
        ),
        '("@authority" "@method" "@path" "content-digest")',
        "YS/w0k1cBV4Siy1oR8m9YBLE2n1HQWFxMm2L42Of8lhDc3Ez9iyc4H2AsZ5kIA2tqOf21hL9ZiRC6x0JU9kLUhw=",
    ),
    (
        Call(
            method="GET",
            path="/v1/balance",
            query="",
            body=b"",
            authority="api.example.com:8402",
            chain_id=84532,
            now=NOW,
        ),
        '("@authority" "@method" "@path")',
        "kzVfH4FU6yib0PYf1oC/rQCVYWSqqDr8to+D9Ee4Vlg2b9OabJAshFcBoIufNjo1ax6KcaE1QzAQNfkJjsXoDxw=",
    ),
]


@pytest.mark.parametrize(("call", "components", "signature"), VECTORS)
def test_what_a_javascript_wallet_signs_is_recognised(call: Call, components: str, signature: str) -> None:
    address = Account.from_key("0x" + "11" * 32).address.lower()
    signed = call.with_headers(
        signature_input=f"eth={components};created=1900000000;expires=1900000060"
        f';nonce="c2xpY2VraXQtdmVjdG9y";keyid="erc8128:84532:{address}"',
        signature=f"eth=:{signature}:",
    )
    assert accept(signed).wallet == address


characters = st.characters(exclude_categories=["Cc", "Cs"])
keys = st.integers(1, ORDER - 1).map(lambda number: "0x" + number.to_bytes(32, "big").hex())


@given(
    key=keys,
    method=st.sampled_from(["GET", "POST", "PATCH", "DELETE"]),
    path=st.text(characters, max_size=20),
    query=st.dictionaries(st.text(characters, max_size=5), st.text(characters, max_size=5), max_size=3),
    body=st.binary(max_size=50),
)
@settings(max_examples=60)
def test_what_our_example_signs_is_recognised(
    key: str, method: str, path: str, query: dict[str, str], body: bytes
) -> None:
    account = Account.from_key(key)
    auth = SignedRequestAuth(account, 84532, clock=lambda: NOW)
    url = httpx.URL("http://127.0.0.1:8402").copy_with(path="/" + quote(path), params=query)
    request = next(auth.auth_flow(httpx.Request(method, url, content=body)))
    raw_path, _, raw_query = request.url.raw_path.decode().partition("?")
    call = Call(
        method=method,
        path=raw_path,
        query=f"?{raw_query}" if raw_query else "",
        body=body,
        headers={name.lower(): value for name, value in request.headers.items()},
        authority="127.0.0.1:8402",
        chain_id=84532,
        now=NOW,
    )
    assert accept(call).wallet == account.address.lower()
    assert refusal(replace(call, method="PUT")) == "signature"


@given(
    st.text(st.characters(max_codepoint=255), max_size=200),
    st.text(st.characters(max_codepoint=255), max_size=99),
)
def test_no_header_crashes_the_reader(signature_input: str, signature: str) -> None:
    for text in (signature_input, f'eth={signature_input};keyid="erc8128:84532:0x{"22" * 20}"'):
        refusal(CALL.with_headers(signature_input=text, signature=signature, content_digest=signature))


@given(st.integers(0, 400), st.characters(min_codepoint=32, max_codepoint=126))
@settings(max_examples=150)
def test_no_character_of_the_signed_text_can_be_exchanged(position: int, character: str) -> None:
    call = sign(CALL)
    text = call.headers["signature-input"]
    position %= len(text)
    changed = text[:position] + character + text[position + 1 :]
    if changed != text and position >= len("eth="):
        refusal(call.with_headers(signature_input=changed))


def test_one_flipped_bit_of_the_signature_is_enough() -> None:
    call = sign(CALL)
    good = base64.b64decode(call.headers["signature"].removeprefix("eth=:").removesuffix(":"))
    for bit in range(len(good) * 8):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        text = base64.b64encode(bad).decode()
        assert refusal(call.with_headers(signature=f"eth=:{text}:")) == "signature"


@given(st.integers(1, 60), st.binary(min_size=1, max_size=90))
def test_a_plain_header_reads_as_the_general_one(life_s: int, nonce: bytes) -> None:
    """The quick way and the thorough one: a second signature beside the first takes the header the long way round."""
    call = sign(CALL)
    beside = call.with_headers(
        signature_input=f'{call.headers["signature-input"]}, tls=("@method");keyid="other"',
        signature=f"{call.headers['signature']}, tls=:AAAA:",
    )
    assert accept(call) == accept(beside)
    for broken in (
        f"created=0{life_s}",
        f"nonce={nonce.hex()}",
        'nonce=""',
        "expires=1.0",
        'keyid="erc8128:1:0x00"',
    ):
        name = broken.partition("=")[0]
        swapped = re.sub(rf";{name}=[^;]+", f";{broken}", call.headers["signature-input"])
        alone = refusal(call.with_headers(signature_input=swapped))
        assert alone == refusal(
            beside.with_headers(signature_input=f'{swapped}, tls=("@method");keyid="other"')
        )
