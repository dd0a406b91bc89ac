"""Sign-ins that must not pass, as data: shared by the tests of the verifier and of the HTTP doors.

Each entry makes a `SIGN-IN-WITH-X` header that is refused for one stated reason (the `reason` in the error's details).
Headers are signed by `sign`, which can be told to do anything wrong; it lays the text out by its own reading of
EIP-4361, so that it checks the product's.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount

from tests.unit.bad_payments import ORDER
from tests.unit.bad_signatures import ATTACKER, CALLER


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What the server that receives a sign-in knows of itself, and the time."""

    domain: str
    origin: str
    chain_id: int
    now: int


class BadSignIn(NamedTuple):
    name: str
    make: Callable[[Scene], str]
    reason: str


def at(moment: int) -> str:
    """Unix seconds as a client would write them."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def claim(scene: Scene, **changes: Any) -> dict[str, Any]:
    """The header's fields before they are signed; `changes` replace some, None leaves one out."""
    fields = {
        "domain": scene.domain,
        "address": CALLER.address,
        "uri": f"{scene.origin}/v1/balance",
        "version": "1",
        "chainId": f"eip155:{scene.chain_id}",
        "type": "eip191",
        "nonce": "00112233445566778899aabbccddeeff",
        "issuedAt": at(scene.now),
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not None}


def text_of(fields: dict[str, Any]) -> str:
    """The EIP-4361 text."""
    parts = [
        f"{fields.get('domain')} wants you to sign in with your Ethereum account:",
        f"{fields.get('address')}",
        "",
        *([fields["statement"]] if "statement" in fields else []),
        "",
        f"URI: {fields.get('uri')}",
        f"Version: {fields.get('version')}",
        f"Chain ID: {str(fields.get('chainId')).removeprefix('eip155:')}",
        f"Nonce: {fields.get('nonce')}",
        f"Issued At: {fields.get('issuedAt')}",
    ]
    titles = {"expirationTime": "Expiration Time", "notBefore": "Not Before", "requestId": "Request ID"}
    parts += [f"{title}: {fields[name]}" for name, title in titles.items() if name in fields]
    if "resources" in fields:
        parts += ["Resources:", *(f"- {resource}" for resource in fields["resources"])]
    return "\n".join(parts)


def sign(
    scene: Scene,
    *,
    by: LocalAccount = CALLER,
    text: Callable[[str], str] = str,
    signature: Callable[[bytes], bytes] = bytes,
    after: dict[str, Any] | None = None,
    **changes: Any,
) -> str:
    """Sign in. `changes` replace fields before, `after` once the text is signed."""
    fields = claim(scene, **changes)
    made = by.sign_message(encode_defunct(text=text(text_of(fields)))).signature
    fields["signature"] = "0x" + signature(bytes(made)).hex()
    return encode(fields | (after or {}))


def encode(fields: object) -> str:
    return base64.b64encode(json.dumps(fields).encode()).decode()


def _signing(**options: Any) -> Callable[[Scene], str]:
    return lambda scene: sign(scene, **options)


def _after(**changes: Any) -> Callable[[Scene], str]:
    return lambda scene: sign(scene, after=changes)


def _header(change: Callable[[str], str]) -> Callable[[Scene], str]:
    return lambda scene: change(sign(scene))


def _without(name: str) -> Callable[[Scene], str]:
    def make(scene: Scene) -> str:
        fields = json.loads(base64.b64decode(sign(scene)))
        del fields[name]
        return encode(fields)

    return make


def _timed(**times: int) -> Callable[[Scene], str]:
    """Signed with these moments, in seconds from now."""

    def make(scene: Scene) -> str:
        moments: dict[str, Any] = {name: at(scene.now + offset) for name, offset in times.items()}
        return sign(scene, **moments)

    return make


def _uri(change: Callable[[Scene], str]) -> Callable[[Scene], str]:
    return lambda scene: sign(scene, uri=change(scene))


def _high_s(signature: bytes) -> bytes:
    s = int.from_bytes(signature[32:64], "big")
    return signature[:32] + (ORDER - s).to_bytes(32, "big") + bytes([55 - signature[64]])


def _two_lines(scene: Scene) -> str:
    """A nonce hidden in the uri: the same text, read in two ways."""
    nonce = "Nonce: 00112233445566778899aabbccddeeff"
    chain = f"Chain ID: {scene.chain_id}"
    fields = claim(
        scene, uri=f"{scene.origin}/\nVersion: 1\n{chain}\n{nonce}\nIssued At: {at(scene.now)}\nURI: x"
    )
    made = CALLER.sign_message(encode_defunct(text=text_of(fields))).signature
    return encode(fields | {"signature": "0x" + bytes(made).hex()})


_REQUIRED = ("domain", "address", "uri", "version", "chainId", "type", "nonce", "issuedAt", "signature")

_BAD: list[tuple[str, Callable[[Scene], str], str]] = [
    ("empty header", lambda _: "", "malformed"),
    ("not base64", lambda _: "}{", "malformed"),
    ("not ASCII", lambda _: "é", "malformed"),
    ("longer than 4 KiB", lambda scene: sign(scene, statement="s" * 4000), "malformed"),
    ("base64 with a space", _header(lambda h: f"{h[:40]} {h[40:]}"), "malformed"),
    ("base64 with a line end", _header(lambda h: h + "\n"), "malformed"),
    ("base64 url-safe", lambda scene: sign(scene, requestId="~~~???").replace("/", "_") + "_", "malformed"),
    ("base64 not padded", lambda scene: encode({"a": 1}).rstrip("="), "malformed"),
    ("two headers", _header(lambda h: f"{h}, {h}"), "malformed"),
    ("not JSON", lambda _: base64.b64encode(b"domain").decode(), "malformed"),
    ("not UTF-8", lambda _: base64.b64encode(b'{"domain":"\xff"}').decode(), "malformed"),
    ("nested without end", lambda _: base64.b64encode(b'{"x":' + b"[" * 3000).decode(), "malformed"),
    ("a list", lambda _: encode([]), "malformed"),
    *((f"no {name}", _without(name), "malformed") for name in _REQUIRED),
    ("domain a number", _after(domain=1), "malformed"),
    ("resources a string", _after(resources="https://a.example/"), "malformed"),
    ("address too short", _after(address="0x22"), "malformed"),
    ("address with a line end", _after(address=CALLER.address + "\n"), "malformed"),
    ("address not hex", _after(address="0x" + "g" * 40), "malformed"),
    ("signature not hex", _after(signature="0xzz"), "malformed"),
    ("signature of an odd length", _after(signature="0x123"), "malformed"),
    ("nonce of 7 characters", _signing(nonce="abcdefg"), "malformed"),
    ("nonce of 129 characters", _signing(nonce="n" * 129), "malformed"),
    ("nonce with a dash", _signing(nonce="0011-2233-4455"), "malformed"),
    ("nonce with a line end", _signing(nonce="00112233445566\n"), "malformed"),
    ("nonce in other digits", _signing(nonce="\u0661" * 12), "malformed"),
    ("statement of two lines", _signing(statement="one\ntwo"), "malformed"),
    ("statement in Latin-1", _signing(statement="caf\u00e9"), "malformed"),
    ("statement with a quote", _signing(statement='say "yes"'), "malformed"),
    ("request id with a space", _signing(requestId="a b"), "malformed"),
    ("resource with a line end", _signing(resources=["https://a.example/\n- https://b.example/"]), "malformed"),
    ("resource without a scheme", _signing(resources=["a.example"]), "malformed"),
    ("a nonce inside the uri", _two_lines, "malformed"),
    ("issued at no time", _signing(issuedAt="yesterday"), "malformed"),
    ("issued at a number", _after(issuedAt=1), "malformed"),
    ("issued without a zone", _signing(issuedAt="2030-01-01T00:00:00"), "malformed"),
    ("issued on February 30", _signing(issuedAt="2030-02-30T00:00:00Z"), "malformed"),
    ("issued in a leap second", _signing(issuedAt="2030-06-30T23:59:60Z"), "malformed"),
    ("expires at no time", _signing(expirationTime=""), "malformed"),
    ("not before no time", _signing(notBefore="now"), "malformed"),
    ("type of Solana", _after(type="ed25519"), "type"),
    ("type in capitals", _after(type="EIP191"), "type"),
    ("contract wallet", _after(signatureScheme="eip1271"), "type"),
    ("another chain", _signing(chainId="eip155:1"), "chain"),
    ("chain without its family", lambda scene: sign(scene, chainId=str(scene.chain_id)), "chain"),
    ("chain in other digits", lambda scene: sign(scene, chainId=f"eip155:0{scene.chain_id}"), "chain"),
    ("chain of Solana", _signing(chainId="solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1"), "chain"),
    ("version 2", _signing(version="2"), "version"),
    ("version empty", _signing(version=""), "version"),
    ("another domain", _signing(domain="evil.example"), "domain"),
    ("domain of a subdomain", lambda scene: sign(scene, domain=f"a.{scene.domain}"), "domain"),
    ("domain with a port", lambda scene: sign(scene, domain=f"{scene.domain}:1"), "domain"),
    ("domain in capitals", lambda scene: sign(scene, domain=scene.domain.upper()), "domain"),
    ("domain with a scheme", lambda scene: sign(scene, domain=scene.origin), "domain"),
    ("domain with a line end", lambda scene: sign(scene, domain=f"{scene.domain}\n"), "domain"),
    ("uri elsewhere", _signing(uri="https://evil.example/v1/balance"), "uri"),
    ("uri of a longer host", _uri(lambda scene: f"{scene.origin}.evil.example/"), "uri"),
    ("uri of another port", _uri(lambda scene: f"{scene.origin}1/"), "uri"),
    ("uri with a user", _uri(lambda scene: f"{scene.origin}@evil.example/"), "uri"),
    ("uri of another scheme", _uri(lambda scene: f"ftp://{scene.domain}/"), "uri"),
    ("uri of no scheme", _uri(lambda scene: f"//{scene.domain}/"), "malformed"),
    ("issued 301 seconds ago", _timed(issuedAt=-301), "expired"),
    ("issued 6 seconds ahead", _timed(issuedAt=6), "not_yet_valid"),
    ("issued in the year 9999", _signing(issuedAt="9999-12-31T23:59:59Z"), "not_yet_valid"),
    ("issued in the year 1", _signing(issuedAt="0001-01-01T00:00:00+23:59"), "expired"),
    ("expires now", _timed(expirationTime=0), "expired"),
    ("expired before it was issued", _timed(expirationTime=-60), "expired"),
    ("valid in a second", _timed(notBefore=1), "not_yet_valid"),
    ("signed by somebody else", _signing(by=ATTACKER), "signature"),
    ("address of somebody else", _after(address=ATTACKER.address), "signature"),
    ("nonce changed", _after(nonce="ffeeddccbbaa99887766554433221100"), "signature"),
    ("issuedAt changed", lambda scene: sign(scene, after={"issuedAt": at(scene.now - 1)}), "signature"),
    ("uri changed", lambda scene: sign(scene, after={"uri": f"{scene.origin}/v1/servers"}), "signature"),
    ("statement added", _after(statement="Give me all"), "signature"),
    ("statement dropped", lambda scene: sign(scene, statement="All", after={"statement": None}), "signature"),
    ("empty statement", _after(statement=""), "signature"),
    ("expiration added", lambda scene: sign(scene, after={"expirationTime": at(scene.now + 9)}), "signature"),
    ("not before added", lambda scene: sign(scene, after={"notBefore": at(scene.now)}), "signature"),
    ("request id added", _after(requestId=""), "signature"),
    ("resources added", _after(resources=[]), "signature"),
    ("text with a line end more", _signing(text=lambda t: t + "\n"), "signature"),
    ("text with DOS line ends", _signing(text=lambda t: t.replace("\n", "\r\n")), "signature"),
    ("text with the chain's family", _signing(text=lambda t: t.replace("ID: ", "ID: eip155:")), "signature"),
    ("signature of 64 bytes", _signing(signature=lambda s: s[:64]), "signature"),
    ("signature of a contract wallet", _signing(signature=lambda s: s * 2), "signature"),
    ("signature empty", _signing(signature=lambda _: b""), "signature"),
    ("signature with high s", _signing(signature=_high_s), "signature"),
    ("signature with v from 0", _signing(signature=lambda s: s[:64] + bytes([s[64] - 27])), "signature"),
    ("signature of other parity", _signing(signature=lambda s: s[:64] + bytes([55 - s[64]])), "signature"),
    ("signature all zero", _signing(signature=lambda _: bytes(65)), "signature"),
]  # fmt: skip

BAD_SIGN_INS = [BadSignIn(*entry) for entry in _BAD]
