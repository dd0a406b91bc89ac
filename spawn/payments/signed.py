"""Requests signed by a wallet: HTTP Message Signatures (RFC 9421) in the ERC-8128 profile.

A pure function of the request as it was received. Invariant: a `SignedRequest` was signed by the key of
`wallet`, for this very method, authority, path, query and body, at most a minute ago; that it is *new* is for
whoever keeps the nonces to say, until `expires` has passed.

Only the canonical form of the structured fields (RFC 9651) is read. Every signer writes it, and it makes the
received text of the parameters, which is signed, identical to their serialization.
"""

import hashlib
import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import msgspec
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address, ReservationId

from spawn.payments.curve import personal_digest, recover
from spawn.payments.nonces import nonce_key

MAX_HEADER_CHARS: Final = 4096
MAX_MEMBERS: Final = 3
"""Signatures, or digests, that one request may carry; of the signatures one is checked."""
MAX_NONCE_CHARS: Final = 128
MAX_LIFE_S: Final = 60
CLOCK_SKEW_S: Final = 5
"""How far ahead of ours a caller's clock may run."""

_KEYID_MARK: Final = 'keyid="erc8128:'
# The pieces of RFC 9651: a key, a string with its quotes, the characters of the other bare items.
_KEY: Final = r"[a-z*][a-z0-9_.*-]*"
_STRING: Final = r'"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*+"'
_ITEM: Final = rf"(?:{_STRING}|[!#-'*+\--:<-~]+)"
_MEMBER: Final = re.compile(rf'[ \t]*({_KEY})=((?:[^",]|{_STRING})*+)(,|\Z)')
_INPUT: Final = re.compile(rf"\(({_STRING}(?: {_STRING})*)\)((?:;{_KEY}(?:={_ITEM})?)*)")
_PARAMETER: Final = re.compile(rf";({_KEY})(?:=({_ITEM}))?")
_BYTES: Final = re.compile(r":([A-Za-z0-9+/]+={0,2}):")
_INTEGER: Final = re.compile(r"[1-9][0-9]{0,14}")
_COMPONENT: Final = re.compile(r"@?[a-z0-9!#$%&'*+.^_`|~-]+")
# What signers of this profile write: one signature, these four parameters, nothing that needs a quote or a choice.
_PLAIN: Final = re.compile(
    r'([a-z][a-z0-9_]*)=(\(("[a-z0-9@-]+"(?: "[a-z0-9@-]+")*)\);created=([1-9][0-9]{0,14});expires=([1-9][0-9]{0,14})'
    r';nonce="([A-Za-z0-9_-]{1,128})";keyid="erc8128:([1-9][0-9]{0,14}):(0x[0-9a-fA-F]{40})")'
)
_KEYID: Final = re.compile(r"erc8128:([1-9][0-9]{0,14}):(0x[0-9a-fA-F]{40})")


class SignedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Who made a request. `created` and `expires` are unix seconds."""

    wallet: Address
    nonce: str
    created: int
    expires: int

    @property
    def nonce_key(self) -> ReservationId:
        """The name of what may be used once, until `expires` has passed."""
        return nonce_key("sig", self.wallet, self.nonce)


class _Input(msgspec.Struct, frozen=True, kw_only=True):
    """One member of Signature-Input; `text` is what was received and signed. Absent parameters are empty."""

    label: str
    text: str
    components: tuple[str, ...]
    created: str
    expires: str
    nonce: str
    chain_id: int
    wallet: Address


def present(headers: Mapping[str, str]) -> bool:
    """Whether the caller means to sign as a wallet. Signatures by other keys pass us by untouched."""
    return _KEYID_MARK in headers.get("signature-input", "")


def verify(
    *,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    body: bytes,
    authority: str,
    chain_id: int,
    now: int,
) -> SignedRequest:
    """Return who signed this request; raise SpawnError(INVALID_SIGNATURE) unless everything about it holds.

    `path` is raw, as it was on the request line; `query` as well, with its `?`, or empty. `headers` have
    lower-case names and repeated lines joined by ", ". `authority` is the one we are configured to be,
    lower-case and without a default port: what the caller's Host header says is never used.
    """
    signed = _input(headers, chain_id)
    created, expires = _validity(signed, now)
    _require_coverage(signed.components, query=query, body=body)
    if "content-digest" in signed.components:
        _require_digest(headers, body)
    derived = {"@method": method, "@authority": authority, "@path": path or "/", "@query": query or "?"}
    base = _signature_base(signed, derived, headers)
    signature = _signature_bytes(_signature_member(headers, signed.label))
    try:
        signer = recover(personal_digest(base), signature)
    except ValueError as error:
        raise _refusal("signature", f"The signature cannot be used: {error}.") from error
    if signer != signed.wallet:
        raise _refusal(
            "signature",
            f"The signature is not by {signed.wallet} over this request as we received it.",
            next=f"Sign the RFC 9421 signature base, with @authority {authority}, as an EIP-191 message.",
        )
    return SignedRequest(wallet=signed.wallet, nonce=signed.nonce, created=created, expires=expires)


def _input(headers: Mapping[str, str], chain_id: int) -> _Input:
    """The signature to check. Nearly every one is plain, and one look reads all of it."""
    header = headers.get("signature-input", "")
    plain = _PLAIN.fullmatch(header) if len(header) <= MAX_HEADER_CHARS else None
    if plain is None or int(plain[7]) != chain_id:
        return _select(_members(headers, "signature-input"), chain_id)
    return _Input(
        label=plain[1],
        text=plain[2],
        components=_components(plain[3]),
        created=plain[4],
        expires=plain[5],
        nonce=plain[6],
        chain_id=chain_id,
        wallet=Address(plain[8].lower()),
    )


def _signature_member(headers: Mapping[str, str], label: str) -> str:
    header = headers.get("signature", "")
    alone = len(header) <= MAX_HEADER_CHARS and "," not in header and header.startswith(f"{label}=:")
    return header[len(label) + 1 :] if alone else _members(headers, "signature").get(label, "")


def _members(headers: Mapping[str, str], name: str) -> dict[str, str]:
    """Split a header that is a dictionary (RFC 9651 section 3.2) at its top-level commas."""
    header = headers.get(name, "")
    if not header:
        raise _refusal("missing", f"The {name} header is missing.")
    if len(header) > MAX_HEADER_CHARS:
        raise _refusal("malformed", f"The {name} header is longer than {MAX_HEADER_CHARS} characters.")
    members: dict[str, str] = {}
    position, more = 0, ","
    while more:
        match = _MEMBER.match(header, position)
        if match is None or match[1] in members or len(members) == MAX_MEMBERS:
            raise _refusal(
                "malformed", f"The {name} header is not a dictionary of 1 to {MAX_MEMBERS} distinct keys."
            )
        members[match[1]] = match[2].rstrip(" \t")
        position, more = match.end(), match[3]
    return members


def _select(inputs: Mapping[str, str], chain_id: int) -> _Input:
    """The first signature whose key is a wallet on our chain; signatures by other keys are stepped over."""
    wallets = [_read_input(label, text) for label, text in inputs.items() if _KEYID_MARK in text]
    for candidate in wallets:
        if candidate.chain_id == chain_id:
            return candidate
    raise _refusal(
        "keyid",
        f"No signature names a wallet on chain {chain_id} as its key.",
        next=f"Sign with the keyid erc8128:{chain_id}:<your address>.",
    )


def _read_input(label: str, text: str) -> _Input:
    match = _INPUT.fullmatch(text)
    if match is None:
        raise _refusal(
            "malformed",
            "Signature-Input is not in the canonical form of RFC 9651, or has component parameters.",
        )
    components = _components(match[1])
    pairs = _PARAMETER.findall(match[2])
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        raise _refusal("malformed", "A signature parameter is given twice.")
    if "alg" in parameters:
        raise _refusal(
            "malformed", "Leave alg out: an erc8128 keyid already says that the algorithm is EIP-191."
        )
    key = _KEYID.fullmatch(_unquoted(parameters.get("keyid", "")))
    if key is None:
        raise _refusal("keyid", "The keyid is not erc8128:<chain id>:<address>.")
    return _Input(
        label=label,
        text=text,
        components=components,
        created=parameters.get("created", ""),
        expires=parameters.get("expires", ""),
        nonce=_unquoted(parameters.get("nonce", "")),
        chain_id=int(key[1]),
        wallet=Address(key[2].lower()),
    )


@lru_cache(maxsize=1024)
def _components(quoted: str) -> tuple[str, ...]:
    """The covered components, from their names in quotes."""
    components = tuple(quoted[1:-1].split('" "'))
    if len(set(components)) < len(components) or not all(map(_COMPONENT.fullmatch, components)):
        raise _refusal("malformed", "The covered components must be distinct names in lower case.")
    return components


def _validity(signed: _Input, now: int) -> tuple[int, int]:
    """Return created and expires, if they and the nonce say that the signature is fresh at `now`."""
    created, expires = _integer("created", signed.created), _integer("expires", signed.expires)
    if not 0 < len(signed.nonce) <= MAX_NONCE_CHARS:
        raise _refusal("nonce", f"A signature needs a nonce: a string of 1 to {MAX_NONCE_CHARS} characters.")
    if not 0 < expires - created <= MAX_LIFE_S:
        raise _refusal("lifetime", f"expires must be 1 to {MAX_LIFE_S} seconds after created.")
    if created > now + CLOCK_SKEW_S:
        raise _refusal("not_yet_valid", f"The signature was created at {created}, and our clock says {now}.")
    if expires < now:
        raise _refusal("expired", f"The signature expired at {expires}, and our clock says {now}.")
    return created, expires


def _integer(name: str, text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise _refusal(name, f"A signature needs {name}, in whole unix seconds.")
    return int(text)


def _require_coverage(components: tuple[str, ...], *, query: str, body: bytes) -> None:
    needed = ["@authority", "@method", "@path"]
    if query:
        needed.append("@query")
    if body:
        needed.append("content-digest")
    missing = [name for name in needed if name not in components]
    if missing:
        raise _refusal("coverage", f"The signature does not cover {', '.join(missing)}.")


def _require_digest(headers: Mapping[str, str], body: bytes) -> None:
    """Check the body against its SHA-256 in Content-Digest (RFC 9530); other hashes may stand beside it."""
    digest = b2a_base64(hashlib.sha256(body).digest(), newline=False).decode()
    if _members(headers, "content-digest").get("sha-256") != f":{digest}:":
        raise _refusal("digest", "Content-Digest does not hold the sha-256 of the body that we received.")


def _signature_base(signed: _Input, derived: Mapping[str, str], headers: Mapping[str, str]) -> bytes:
    """RFC 9421 section 2.5: one line for each covered component, then the parameters as received."""
    lines = []
    for name in signed.components:
        value = (derived if name.startswith("@") else headers).get(name)
        if value is None:
            raise _refusal("coverage", f"The signature covers {name}, which is not here or not supported.")
        value = value.strip(" \t")
        if not (value.isascii() and value.isprintable()):
            raise _refusal("coverage", f"The signature covers {name}, whose value is not printable ASCII.")
        lines.append(f'"{name}": {value}\n')
    return f'{"".join(lines)}"@signature-params": {signed.text}'.encode("ascii")


def _signature_bytes(member: str) -> bytes:
    match = _BYTES.fullmatch(member)
    if match is None:
        raise _refusal(
            "malformed", "The Signature header has no base64 between colons under the label of its input."
        )
    try:
        return a2b_base64(match[1], strict_mode=True)
    except ValueError as error:
        raise _refusal("malformed", "The signature is not base64 with padding.") from error


def _unquoted(item: str) -> str:
    """The value of a string (RFC 9651 section 3.3.3); empty for an item of another type."""
    return re.sub(r"\\(.)", r"\1", item[1:-1]) if item.startswith('"') else ""


def _refusal(reason: str, message: str, *, next: str | None = None) -> SpawnError:
    return SpawnError(Code.INVALID_SIGNATURE, message, details={"reason": reason}, next=next)
