"""Signed requests that must not pass, as data: shared by the tests of the verifier and of the HTTP doors.

Each entry takes a call as it should be made and returns one that is refused for one stated reason (the
`reason` in the error's details). Calls are signed by `sign`, which can be told to do anything wrong.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount

from tests.unit.bad_payments import ORDER

CALLER: LocalAccount = Account.from_key("0x" + "22" * 32)
ATTACKER: LocalAccount = Account.from_key("0x" + "a7" * 32)


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request, and what the server that receives it knows of itself."""

    method: str = "POST"
    path: str = "/v1/servers"
    query: str = "?dry=1"
    body: bytes = b'{"type":"small"}'
    headers: Mapping[str, str] = field(default_factory=dict)
    authority: str
    chain_id: int
    now: int

    def with_headers(self, **headers: str) -> "Call":
        """These headers as well; underscores in the names stand for dashes."""
        return replace(self, headers={**self.headers, **{k.replace("_", "-"): v for k, v in headers.items()}})


class BadCall(NamedTuple):
    name: str
    make: Callable[[Call], Call]
    reason: str


def sign(
    call: Call,
    *,
    by: LocalAccount = CALLER,
    label: str = "eth",
    components: str | None = None,
    parameters: str | None = None,
    signature: Callable[[bytes], bytes] = bytes,
    **changes: Any,
) -> Call:
    """Sign `call`. `changes` replace single parameters (None leaves one out), `components` and `parameters`
    the whole text of theirs, `signature` the bytes that come out."""
    call = call.with_headers(content_digest=digest(call.body)) if call.body else call
    values: dict[str, Any] = {
        "created": call.now,
        "expires": call.now + 60,
        "nonce": '"c2lnbmVkLW9uY2U"',
        "keyid": f'"erc8128:{call.chain_id}:{CALLER.address.lower()}"',
        **changes,
    }
    names = components if components is not None else _covered(call)
    text = "".join(f";{name}={value}" for name, value in values.items() if value is not None)
    text = f"({names})" + (text if parameters is None else parameters)
    derived = {"@authority": call.authority, "@method": call.method, "@path": call.path, "@query": call.query}
    lines = [
        f"{name}: {({**call.headers, **derived}).get(name.strip(chr(34)), '')}" for name in names.split()
    ]
    base = "\n".join([*lines, f'"@signature-params": {text}'])
    made = signature(bytes(by.sign_message(encode_defunct(text=base)).signature))
    return call.with_headers(
        signature_input=f"{label}={text}", signature=f"{label}=:{base64.b64encode(made).decode()}:"
    )


def digest(body: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def _covered(call: Call) -> str:
    query = ' "@query"' if call.query else ""
    return f'"@authority" "@method" "@path"{query}' + (' "content-digest"' if call.body else "")


def _signing(**options: Any) -> Callable[[Call], Call]:
    return lambda call: sign(call, **options)


def _then(change: Callable[[Call], Call]) -> Callable[[Call], Call]:
    """Change a call after it was signed properly."""
    return lambda call: change(sign(call))


def _header(name: str, change: Callable[[str], str]) -> Callable[[Call], Call]:
    return _then(lambda call: replace(call, headers={**call.headers, name: change(call.headers[name])}))


def _dropped(name: str) -> Callable[[Call], Call]:
    return _then(lambda call: replace(call, headers={k: v for k, v in call.headers.items() if k != name}))


def _all_but(name: str) -> Callable[[Call], Call]:
    def make(call: Call) -> Call:
        return sign(call, components=" ".join(c for c in _covered(call).split() if c != f'"{name}"'))

    return make


def _timed(created: int, expires: int) -> Callable[[Call], Call]:
    """Signed with these times, in seconds from now."""
    return lambda call: sign(call, created=call.now + created, expires=call.now + expires)


def _keyid(template: str) -> Callable[[Call], Call]:
    def make(call: Call) -> Call:
        return sign(call, keyid=template.format(chain=call.chain_id, address=CALLER.address.lower()))

    return make


def _covering(component: str, **headers: str) -> Callable[[Call], Call]:
    """Signed with one more component, over a call with these headers."""

    def make(call: Call) -> Call:
        return sign(call.with_headers(**headers), components=f"{_covered(call)} {component}")

    return make


def _url_safe(call: Call) -> Call:
    signed = sign(call, signature=lambda made: b"\xff\xff\xff" + made[3:])
    return replace(
        signed, headers={**signed.headers, "signature": signed.headers["signature"].replace("/", "_")}
    )


def _input(change: Callable[[str], str]) -> Callable[[Call], Call]:
    return _header("signature-input", change)


def _high_s(signature: bytes) -> bytes:
    s = ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])


_CHANGED = [
    ("another method", lambda call: replace(call, method="DELETE")),
    ("another path", lambda call: replace(call, path=call.path + "/")),
    ("a path spelled otherwise", lambda call: replace(call, path=call.path.replace("v1", "%761"))),
    ("another query", lambda call: replace(call, query=call.query + "&force=1")),
    ("query dropped", lambda call: replace(call, query="")),
    ("another server", lambda call: replace(call, authority="other.example")),
]

_BAD: list[tuple[str, Callable[[Call], Call], str]] = [
    *((name, _then(change), "signature") for name, change in _CHANGED),
    ("another body", _then(lambda call: replace(call, body=call.body + b" ")), "digest"),
    ("body dropped", _then(lambda call: replace(call, body=b"")), "digest"),
    ("another body and its digest", _then(
        lambda call: replace(call, body=b"{}").with_headers(content_digest=digest(b"{}"))
    ), "signature"),
    ("body added to a call without", lambda call: replace(
        sign(replace(call, body=b"")).with_headers(content_digest=digest(call.body)), body=call.body
    ), "coverage"),
    ("query added to a call without", lambda call: replace(
        sign(replace(call, query="")), query="?a"
    ), "coverage"),
    ("no Signature-Input", _dropped("signature-input"), "missing"),
    ("no Signature", _dropped("signature"), "missing"),
    ("no Content-Digest", _dropped("content-digest"), "missing"),
    ("digest by another hash", _header("content-digest", lambda v: v.replace("256", "512")), "digest"),
    ("digest unquoted", _header("content-digest", lambda v: v.replace(":", "")), "digest"),
    ("two digests of a kind", _header("content-digest", lambda v: f"{v}, {v}"), "malformed"),
    *((f"{name} not covered", _all_but(name), "coverage")
      for name in ("@authority", "@method", "@path", "@query", "content-digest")),
    ("covers a header that is not there", _covering('"x-none"'), "coverage"),
    ("covers what we do not support", _covering('"@status"'), "coverage"),
    ("covers a header with a line end", _covering('"x-odd"', x_odd="a\nb"), "coverage"),
    ("covers a header in Latin-1", _covering('"x-odd"', x_odd="é"), "coverage"),
    ("covers a component twice", _covering('"@path"'), "malformed"),
    ("component with a parameter", _covering('"x-odd";sf', x_odd="1"), "malformed"),
    ("component in capitals", _covering('"X-Odd"', x_odd="1"), "malformed"),
    ("no components", _signing(components=""), "malformed"),
    ("component unquoted", _signing(components="@authority"), "malformed"),
    ("components far apart", _covering(' "x-odd"', x_odd="1"), "malformed"),
    ("no parameters", _signing(parameters=""), "keyid"),
    ("space before a parameter", _input(lambda v: v.replace(";created", "; created")), "malformed"),
    ("parameter twice", _input(lambda v: v + ";created=1"), "malformed"),
    ("algorithm named", _signing(alg='"hmac-sha256"'), "malformed"),
    ("string never closed", _input(lambda v: v[:-1]), "malformed"),
    ("not a dictionary", _input(lambda v: v.removeprefix("eth=")), "malformed"),
    ("label in capitals", _signing(label="ETH"), "malformed"),
    ("label twice", _input(lambda v: f"{v}, {v}"), "malformed"),
    ("comma at the end", _input(lambda v: v + ","), "malformed"),
    ("four labels", _input(lambda v: ", ".join(f"{name}{v}" for name in ("", "a", "b", "c"))), "malformed"),
    ("longer than 4 KiB", _signing(tag='"' + "t" * 4096 + '"'), "malformed"),
    ("not ASCII", _signing(tag="é"), "malformed"),
    ("no keyid", _signing(keyid=None), "keyid"),
    ("keyid of another kind", _keyid('"eip155:{chain}:{address}"'), "keyid"),
    ("keyid as a token", _keyid("erc8128:{chain}:{address}"), "keyid"),
    ("keyid with a short address", _keyid('"erc8128:{chain}:0x22"'), "keyid"),
    ("keyid with a long address", _keyid('"erc8128:{chain}:{address}0"'), "keyid"),
    ("keyid with a chain in other digits", _keyid('"erc8128:0{chain}:{address}"'), "keyid"),
    ("keyid on another chain", _keyid('"erc8128:1:{address}"'), "keyid"),
    ("keyid of somebody else", _signing(by=ATTACKER), "signature"),
    ("no nonce", _signing(nonce=None), "nonce"),
    ("empty nonce", _signing(nonce='""'), "nonce"),
    ("nonce as a number", _signing(nonce="17"), "nonce"),
    ("nonce of 129 characters", _signing(nonce='"' + "n" * 129 + '"'), "nonce"),
    ("no created", _signing(created=None), "created"),
    ("created as text", lambda call: sign(call, created=f'"{call.now}"'), "created"),
    ("created as a fraction", lambda call: sign(call, created=f"{call.now}.5"), "created"),
    ("no expires", _signing(expires=None), "expires"),
    ("expires negative", _signing(expires=-1), "expires"),
    ("lives 61 seconds", _timed(0, 61), "lifetime"),
    ("lives no time", _timed(0, 0), "lifetime"),
    ("expires before it was created", _timed(0, -1), "lifetime"),
    ("expired a second ago", _timed(-61, -1), "expired"),
    ("created 6 seconds ahead", _timed(6, 60), "not_yet_valid"),
    ("signature under another label", _header("signature", lambda v: f"not{v}"), "malformed"),
    ("signature without colons", _header("signature", lambda v: v.replace(":", "")), "malformed"),
    ("signature empty", _header("signature", lambda _: "eth=::"), "malformed"),
    ("signature url-safe", _url_safe, "malformed"),
    ("signature not padded", _header("signature", lambda v: v[:-2] + ":"), "malformed"),
    ("signature in two pieces", _header("signature", lambda v: v[:-1] + "AAAA:"), "malformed"),
    ("signature of 64 bytes", _signing(signature=lambda s: s[:64]), "signature"),
    ("signature of a contract wallet", _signing(signature=lambda s: s * 2), "signature"),
    ("signature with high s", _signing(signature=_high_s), "signature"),
    ("signature with v from 0", _signing(signature=lambda s: s[:64] + bytes([s[64] - 27])), "signature"),
    ("signature of other parity", _signing(signature=lambda s: s[:64] + bytes([55 - s[64]])), "signature"),
    ("signature all zero", _signing(signature=lambda _: bytes(65)), "signature"),
]  # fmt: skip

BAD_CALLS = [BadCall(*entry) for entry in _BAD]
