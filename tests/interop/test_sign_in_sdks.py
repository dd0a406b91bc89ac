"""What we declare, lay out and let in as a sign-in is what both x402 SDKs do; where we are stricter we say so."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from x402.extensions.sign_in_with_x import (
    DeclareSIWxOptions,
    SIWxExtension,
    create_siwx_message,
    create_siwx_payload,
    declare_siwx_extension,
    encode_siwx_header,
    parse_siwx_header,
    validate_siwx_message,
    verify_siwx_signature,
)

from spawn.payments.sign_in import SignInChallenges, decode, eip4361_text, relying_party, verify
from tests.engines import node_project
from tests.interop.clients import Lines, running
from tests.unit.bad_sign_ins import BAD_SIGN_INS, Scene, at, claim, encode, sign
from tests.unit.bad_signatures import CALLER

ORIGIN: Final = "https://api.example.com"
NETWORK: Final = "eip155:84532"
PARTY: Final = relying_party(public_url=ORIGIN, authority="api.example.com", chain_id=84532)

AT_THE_EDGE: Final = "valid in a second"
"""Judged a moment later it is valid; the SDKs cannot be told what time it is."""

STRICTER: Final = {
    "longer than 4 KiB",
    "nonce of 129 characters",
    "another chain",  # the SDKs check that it is a chain
    "type of Solana",  # the SDKs go by the chain
    "contract wallet",  # what it says is no matter to the SDKs, and the signature is an ordinary one
    "signature with high s",
    "signature with v from 0",
}
"""Bad sign-ins that both SDKs would let in."""


GOOD: Final[list[dict[str, Any]]] = [
    {},
    {"uri": ORIGIN, "nonce": "abcdEF12"},
    {"statement": "Sign in; read (only) what is yours: 100, at least!", "requestId": "call-1:%20@x"},
    {"statement": "", "requestId": "", "resources": []},
    {
        "resources": ["https://elsewhere.example/x", "ipfs://bafy"],
        "expirationTime": "9999-12-31T23:59:59.123Z",
    },
    {"expirationTime": "9999-12-31t23:59:59.5+23:59", "notBefore": "2020-02-29T00:00:00-11:30"},
]


def scene() -> Scene:
    """The SDKs look at the clock of the machine."""
    return Scene(domain="api.example.com", origin=ORIGIN, chain_id=84532, now=int(time.time()))


def declared() -> dict[str, Any]:
    extension = SignInChallenges(PARTY).extension(entropy=bytes(range(16)), now=int(time.time()))
    value: dict[str, Any] = json.loads(msgspec.json.encode(extension))
    return value


async def python_accepts(header: str) -> bool:
    try:
        payload = parse_siwx_header(header)
        if not (await validate_siwx_message(payload, ORIGIN)).is_valid:
            return False
        return (await verify_siwx_signature(payload)).is_valid
    except ValueError:
        return False


async def npm_accepts(npm: Lines, header: str) -> bool:
    return bool((await npm.ask({"header": header}))["isValid"])


@pytest_asyncio.fixture
async def npm() -> AsyncIterator[Lines]:
    async with running("node", str(node_project() / "judge.mjs"), ORIGIN) as lines:
        yield lines


async def test_what_we_refuse_the_python_sdk_refuses_too() -> None:
    let_in = {bad.name for bad in BAD_SIGN_INS if await python_accepts(bad.make(scene()))}
    assert let_in - {AT_THE_EDGE} == STRICTER | {"base64 with a line end"}


async def test_what_we_refuse_the_npm_package_refuses_too(npm: Lines) -> None:
    let_in = {bad.name for bad in BAD_SIGN_INS if await npm_accepts(npm, bad.make(scene()))}
    assert let_in - {AT_THE_EDGE} == STRICTER | {"resource with a line end"}


async def test_what_we_let_in_both_let_in(npm: Lines) -> None:
    for changes in GOOD:
        here = scene()
        header = sign(here, **changes)
        assert verify(header, PARTY, now=here.now).wallet == CALLER.address.lower()
        assert await python_accepts(header), changes
        assert await npm_accepts(npm, header), changes


async def test_the_text_is_the_npm_packages(npm: Lines) -> None:
    for changes in GOOD:
        claimed = decode(sign(scene(), **changes))
        text = await npm.ask({"info": claim(scene(), **changes), "address": claimed.address})
        assert text["text"] == eip4361_text(claimed, claimed.address)


TEXTS = st.fixed_dictionaries(
    {
        "uri": st.from_regex(
            r"(/[A-Za-z0-9._~@!$&'()*+,;=-]{1,9}){0,3}(\?[a-z=&]{0,9})?", fullmatch=True
        ).map(lambda tail: ORIGIN + tail),
        "nonce": st.from_regex(r"[A-Za-z0-9]{8,40}", fullmatch=True),
    },
    optional={
        "statement": st.text("abcXYZ019 .,:;!?()[]/@&=+$*'_~-#", max_size=40),
        "expirationTime": st.integers(0, 10**10).map(at),
        "notBefore": st.integers(0, 10**10).map(at),
        "requestId": st.from_regex(r"[A-Za-z0-9._~:@!$&'()*+,;=-]{0,20}", fullmatch=True),
        "resources": st.lists(st.just("https://elsewhere.example/x?y=1#z"), max_size=3),
    },
)


@given(TEXTS)
@settings(max_examples=40, deadline=None)  # the SDK reads each text back with a grammar in plain Python
def test_the_text_is_the_python_sdks(changes: dict[str, Any]) -> None:
    fields = claim(scene(), **changes)
    claimed = decode(encode(fields | {"signature": "0x"}))
    assert eip4361_text(claimed, claimed.address) == create_siwx_message(fields, claimed.address)


async def test_the_declaration_has_what_the_sdks_declare(npm: Lines) -> None:
    ours = declared()
    SIWxExtension.model_validate(ours)
    python = declare_siwx_extension(DeclareSIWxOptions(network=NETWORK))["sign-in-with-x"]
    javascript = (await npm.ask({"network": NETWORK}))["sign-in-with-x"]
    assert ours["schema"] == python["schema"] == javascript["schema"]
    assert ours["supportedChains"] == javascript["supportedChains"]
    assert ours["info"]["version"] == python["info"]["version"] == javascript["info"]["version"]


async def test_what_the_sdks_make_of_our_declaration_is_a_good_header() -> None:
    ours = declared()
    payload = await create_siwx_payload(
        ours["info"] | ours["supportedChains"][0], CALLER, f"{ORIGIN}/v1/balance"
    )
    signed_in = verify(encode_siwx_header(payload), PARTY, now=int(time.time()))
    assert signed_in.wallet == CALLER.address.lower()
    assert signed_in.nonce == ours["info"]["nonce"]
