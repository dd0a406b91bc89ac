"""Signed requests (RFC 9421): whatever is accepted was signed, as it is, by its wallet, says eth-account.

An input is a request as it stands on the wire: a request line, headers, an empty line and the body.
"""

import base64
import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from random import Random
from typing import Final

from eth_account import Account
from eth_account.messages import encode_defunct
from spawn_schemas.errors import Code

from spawn.payments import signed
from tests.fuzz.target import Target, attempt, spoil_bytes
from tests.unit.bad_signatures import BAD_CALLS, CALLER, Call, sign

AUTHORITY: Final = "api.example.com"
CHAIN_ID: Final = 84532
NOW: Final = 1_900_000_000
CALL: Final = Call(authority=AUTHORITY, chain_id=CHAIN_ID, now=NOW)
WHITESPACE: Final = " \t"
PARTS: Final = (
    b"@authority", b"@method", b"@path", b"@query", b"content-digest", b";created=", b";expires=", b";nonce=",
    b";keyid=", b";alg=", b'"erc8128:84532:0x', b"1900000000", b"1900000060", b"sha-256=:", b"eth=", b'\\"', b", ",
)  # fmt: skip
"""What the headers are made of."""


class Wire:
    """A request, read from an input and written to one."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\n\n")
        line, *fields = head.decode("latin-1").split("\n")
        self.method, _, target = line.partition(" ")
        self.path, mark, query = target.partition("?")
        self.query = mark + query if query else ""
        self.headers = {name: value for name, _, value in (field.partition(": ") for field in fields)}

    def __bytes__(self) -> bytes:
        lines = [f"{self.method} {self.path}{self.query}", *(f"{k}: {v}" for k, v in self.headers.items())]
        return "\n".join(lines).encode("latin-1") + b"\n\n" + self.body

    def base(self, text: str) -> str:
        """The signature base of RFC 9421 section 2.5 for an entry of Signature-Input."""
        names = re.findall(r'"([^"]*)"', text[: text.find(")") + 1])
        derived = {
            "@method": self.method,
            "@authority": AUTHORITY,
            "@path": self.path or "/",
            "@query": self.query or "?",
        }
        values = {**self.headers, **derived}
        lines = [f'"{name}": {values.get(name, "").strip(WHITESPACE)}' for name in names]
        return "\n".join([*lines, f'"@signature-params": {text}'])

    def entries(self) -> Iterator[tuple[str, str]]:
        """Every reading of Signature-Input as a label and a text, right or wrong: whichever verifies will do."""
        header = self.headers.get("signature-input", "")
        ends = [match.start() for match in re.finditer(",|$", header)]
        for match in re.finditer(r"([a-z*][a-z0-9_.*-]*)=(?=\()", header):
            for end in ends:
                if end > match.end():
                    yield match[1], header[match.end() : end].rstrip(WHITESPACE)


def check(data: bytes) -> bool:
    """All of `verify`."""
    wire = Wire(data)
    signed.present(wire.headers)
    verify = partial(
        signed.verify,
        method=wire.method,
        path=wire.path,
        query=wire.query,
        headers=wire.headers,
        body=wire.body,
        authority=AUTHORITY,
        chain_id=CHAIN_ID,
        now=NOW,
    )
    found = attempt(verify, Code.INVALID_SIGNATURE)
    if found is None:
        return False
    assert any(_proves(wire, label, text, found) for label, text in wire.entries())
    assert found.created <= NOW + signed.CLOCK_SKEW_S
    assert NOW <= found.expires <= found.created + signed.MAX_LIFE_S
    assert 0 < len(found.nonce) <= signed.MAX_NONCE_CHARS
    if wire.body:
        digest = base64.b64encode(hashlib.sha256(wire.body).digest()).decode()
        assert f"sha-256=:{digest}:" in wire.headers["content-digest"]
    return True


def _proves(wire: Wire, label: str, text: str, found: signed.SignedRequest) -> bool:
    """Whether this entry covers the request and carries the wallet's signature, and says what was read from it."""
    covered = {"@authority", "@method", "@path"}
    covered |= {"@query"} if wire.query else set()
    covered |= {"content-digest"} if wire.body else set()
    told = {f";created={found.created}", f";expires={found.expires}", f'erc8128:{CHAIN_ID}:{found.wallet}"'}
    if not all(f'"{name}"' in text for name in covered) or not all(part in text.lower() for part in told):
        return False
    for made in re.findall(rf"{re.escape(label)}=:([^:]*):", wire.headers.get("signature", "")):
        with suppress(Exception):  # whatever eth-account does not like is no proof
            signer = Account.recover_message(
                encode_defunct(text=wire.base(text)), signature=base64.b64decode(made)
            )
            if signer.lower() == found.wallet:
                return True
    return False


def mutate(data: bytes, dice: Random) -> bytes:
    """Spoil one part of the request, and sign it again every other time."""
    wire = Wire(data)
    match dice.randrange(10):
        case 0:
            return spoil_bytes(data, dice)
        case 1:
            wire.body = spoil_bytes(wire.body, dice)
        case 2:
            wire.query = spoil_bytes(wire.query.encode("latin-1"), dice).decode("latin-1")
        case _:
            wire.headers = wire.headers or {"signature-input": ""}
            name = dice.choice(list(wire.headers))
            value = wire.headers[name].encode("latin-1")
            at = dice.randrange(len(value) + 1)
            value = (
                spoil_bytes(value, dice)
                if dice.random() < 0.6
                else value[:at] + dice.choice(PARTS) + value[at:]
            )
            wire.headers[name] = value.decode("latin-1")
    if dice.random() < 0.5:
        _sign_again(wire)
    return bytes(wire)


def _sign_again(wire: Wire) -> None:
    """Make digest and signature those of what the request has become."""
    if wire.body:
        digest = base64.b64encode(hashlib.sha256(wire.body).digest()).decode()
        wire.headers["content-digest"] = f"sha-256=:{digest}:"
    label, equals, text = wire.headers.get("signature-input", "").partition("=")
    if equals:
        made = CALLER.sign_message(encode_defunct(wire.base(text).encode("latin-1"))).signature
        wire.headers["signature"] = f"{label}=:{base64.b64encode(made).decode()}:"


def _seed(call: Call) -> bytes:
    lines = [
        f"{call.method} {call.path}{call.query}",
        *(f"{k.lower()}: {v}" for k, v in call.headers.items()),
    ]
    return "\n".join(lines).encode("latin-1", errors="replace") + b"\n\n" + call.body


TARGET: Final = Target(
    seeds=(_seed(sign(CALL)), *(_seed(bad.make(CALL)) for bad in BAD_CALLS)), check=check, mutate=mutate
)
