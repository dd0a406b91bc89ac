"""Signing in with a wallet: the x402 extension `sign-in-with-x`, with the text of EIP-4361, for ordinary accounts.

Pure functions of the header and the time. Invariant: a `SignedIn` was signed by the key of `wallet`, for this service
and at most five minutes ago; that it is *new* is for whoever keeps the nonces to say, until `expires` has passed. The
text names neither method nor path nor body, so it is good for reading only.
"""

from typing import Any, Final

import msgspec
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address, ReservationId
from spawn_schemas.sign_in import (
    EIP191,
    SignIn,
    SignInChain,
    SignInExtension,
    SignInInfo,
)

from spawn.payments.curve import checksummed, personal_digest, recover
from spawn.payments.header import NotInForm, read_header
from spawn.payments.nonces import nonce_key
from spawn.payments.timestamps import format_timestamp, parse_timestamp

VERSION: Final = "1"
MAX_HEADER_BYTES: Final = 4096
MAX_AGE_S: Final = 300
"""How long after `issuedAt` a text may be used; the x402 SDKs have the same limit."""
STALE: Final = "expired"
"""The one reason for which a caller should sign a new text and try again."""
CLOCK_SKEW_S: Final = 5
"""How far ahead of ours the clock of a caller that made its own text may run."""
NONCE_BYTES: Final = 16

STATEMENT: Final = (
    "Sign in to spawn to read what belongs to this wallet. This changes nothing and moves no money on chain."
)

_SCHEMA: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "domain": {"type": "string"},
        "address": {"type": "string"},
        "statement": {"type": "string"},
        "uri": {"type": "string", "format": "uri"},
        "version": {"type": "string"},
        "chainId": {"type": "string"},
        "type": {"type": "string"},
        "nonce": {"type": "string"},
        "issuedAt": {"type": "string", "format": "date-time"},
        "expirationTime": {"type": "string", "format": "date-time"},
        "notBefore": {"type": "string", "format": "date-time"},
        "requestId": {"type": "string"},
        "resources": {"type": "array", "items": {"type": "string", "format": "uri"}},
        "signature": {"type": "string"},
    },
    "required": [
        "domain",
        "address",
        "uri",
        "version",
        "chainId",
        "type",
        "nonce",
        "issuedAt",
        "signature",
    ],
}
"""The header that answers, as the x402 SDKs describe it."""

_decoder: Final = msgspec.json.Decoder(SignIn)


class RelyingParty(msgspec.Struct, frozen=True, kw_only=True):
    """Who is signed in to, as we are configured to be: what a request says of its host is never used.

    `domain` is the host, and the port unless it is the scheme's own; `origin` is scheme and domain.
    """

    domain: str
    origin: str
    network: str


class SignedIn(msgspec.Struct, frozen=True, kw_only=True):
    """Who signed in. `issued_at` and `expires` are unix seconds."""

    wallet: Address
    nonce: str
    issued_at: int
    expires: int

    @property
    def nonce_key(self) -> ReservationId:
        """The name of what may be used once, until `expires` has passed."""
        return nonce_key("siwx", self.wallet, self.nonce)


def relying_party(*, public_url: str, authority: str, chain_id: int) -> RelyingParty:
    """Return the party that callers of `public_url` sign in to; `authority` is its host in normal form."""
    scheme, _, _ = public_url.partition("://")
    return RelyingParty(
        domain=authority, origin=f"{scheme.lower()}://{authority}", network=f"eip155:{chain_id}"
    )


class SignInChallenges:
    """Writes texts to sign. What depends on the party alone is worked out once.

    Nothing is kept of a text: a caller may as well make one with a nonce of its own, and each nonce counts once.
    """

    def __init__(self, party: RelyingParty) -> None:
        self._party = party
        self._chains = (SignInChain(chain_id=party.network, type=EIP191),)
        self._schema = msgspec.Raw(msgspec.json.encode(_SCHEMA))
        self._at: int | None = None
        self._before = self._after = b""

    def json(self, *, entropy: bytes, now: int) -> bytes:
        """`extension` as it is written: within a second only the nonce differs."""
        if now != self._at:
            text = msgspec.json.encode(self.extension(entropy=bytes(NONCE_BYTES), now=now))
            self._before, _, self._after = text.partition(bytes(NONCE_BYTES).hex().encode())
            self._at = now
        return self._before + entropy.hex().encode() + self._after

    def extension(self, *, entropy: bytes, now: int) -> SignInExtension:
        """The value of `extensions["sign-in-with-x"]`; `entropy` is NONCE_BYTES that nobody can guess."""
        info = SignInInfo(
            domain=self._party.domain,
            uri=self._party.origin,
            version=VERSION,
            nonce=entropy.hex(),
            issued_at=format_timestamp(now),
            expiration_time=format_timestamp(now + MAX_AGE_S),
            statement=STATEMENT,
        )
        return SignInExtension(info=info, supported_chains=self._chains, schema=self._schema)


def verify(header: str | bytes, party: RelyingParty, *, now: int) -> SignedIn:
    """Return who signed in; raise SpawnError(INVALID_SIGNATURE) unless everything about it holds at `now`."""
    claim = decode(header)
    _require_ours(claim, party)
    issued_at, expires = _validity(claim, now)
    wallet = Address(claim.address.lower())
    _require_signature(claim, wallet)
    return SignedIn(wallet=wallet, nonce=claim.nonce, issued_at=issued_at, expires=expires)


def decode(header: str | bytes) -> SignIn:
    """Read a `SIGN-IN-WITH-X` header; raise SpawnError(INVALID_SIGNATURE) unless it is well formed."""
    try:
        return read_header(header, _decoder, max_bytes=MAX_HEADER_BYTES)
    except NotInForm as error:
        raise _malformed(f"does not hold a signed EIP-4361 text: {_field(error)}") from error
    except ValueError as error:
        raise _malformed(str(error)) from error


def eip4361_text(claim: SignIn, address: str) -> str:
    """The text that was signed, laid out by EIP-4361 as the x402 SDKs do: the chain as a bare number."""
    statement = "" if claim.statement is None else f"{claim.statement}\n"
    lines = [
        f"{claim.domain} wants you to sign in with your Ethereum account:\n{address}\n\n{statement}",
        f"URI: {claim.uri}",
        f"Version: {claim.version}",
        f"Chain ID: {claim.chain_id.removeprefix('eip155:')}",
        f"Nonce: {claim.nonce}",
        f"Issued At: {claim.issued_at}",
    ]
    if claim.expiration_time is not None:
        lines.append(f"Expiration Time: {claim.expiration_time}")
    if claim.not_before is not None:
        lines.append(f"Not Before: {claim.not_before}")
    if claim.request_id is not None:
        lines.append(f"Request ID: {claim.request_id}")
    if claim.resources is not None:
        lines.append("Resources:")
        lines.extend(f"- {resource}" for resource in claim.resources)
    return "\n".join(lines)


def _require_ours(claim: SignIn, party: RelyingParty) -> None:
    if claim.type != EIP191 or claim.signature_scheme not in {None, EIP191}:
        raise _refusal("type", "Only eip191 signatures of ordinary accounts can sign in.")
    if claim.chain_id != party.network:
        raise _refusal("chain", f"The chainId must be {party.network}.")
    if claim.version != VERSION:
        raise _refusal("version", f"The version must be {VERSION}.")
    if claim.domain != party.domain:
        raise _refusal("domain", f"The domain must be {party.domain}: that text is meant for somebody else.")
    if claim.uri != party.origin and not claim.uri.startswith(
        (f"{party.origin}/", f"{party.origin}?", f"{party.origin}#")
    ):
        raise _refusal("uri", f"The uri must be at {party.origin}.")


def _validity(claim: SignIn, now: int) -> tuple[int, int]:
    """Return when the text was issued and until when it may be used, if it may be used at `now`."""
    issued_at = _moment("issuedAt", claim.issued_at)
    if issued_at > now + CLOCK_SKEW_S:
        raise _refusal(
            "not_yet_valid", f"issuedAt is {claim.issued_at}; our clock says {format_timestamp(now)}."
        )
    expires = issued_at + MAX_AGE_S
    if now > expires:
        raise _refusal(STALE, f"issuedAt must be at most {MAX_AGE_S} seconds ago; it is {claim.issued_at}.")
    if claim.expiration_time is not None:
        expiration = _moment("expirationTime", claim.expiration_time)
        if now >= expiration:
            raise _refusal(STALE, f"It expired at {claim.expiration_time}.")
        expires = min(expires, expiration)
    if claim.not_before is not None and now < _moment("notBefore", claim.not_before):
        raise _refusal("not_yet_valid", f"It is not valid before {claim.not_before}.")
    return issued_at, expires


def _moment(name: str, text: str) -> int:
    try:
        return parse_timestamp(text)
    except ValueError as error:
        raise _malformed(f"has no moment of RFC 3339 as its {name}: {error}") from error


def _require_signature(claim: SignIn, wallet: Address) -> None:
    signature = bytes.fromhex(claim.signature[2:])
    if _signer(claim, claim.address, signature) == wallet:
        return
    # Some libraries put the checksum into the text of a wallet that calls itself by its lower-case name.
    spelled = checksummed(wallet)
    if spelled != claim.address and _signer(claim, spelled, signature) == wallet:
        return
    raise _refusal("signature", f"The signature is not by {wallet} over this text.")


def _signer(claim: SignIn, address: str, signature: bytes) -> Address:
    try:
        return recover(personal_digest(eip4361_text(claim, address).encode("ascii")), signature)
    except ValueError as error:
        raise _refusal("signature", f"The signature cannot be used: {error}.") from error


def _field(error: NotInForm) -> str:
    """The decoder's words without the regular expression that was not matched."""
    problem, at, path = str(error).rpartition(" - at ")
    return f"{path} does not have the right form" if at and "regex" in problem else str(error)


def _malformed(what: str) -> SpawnError:
    return _refusal("malformed", f"The SIGN-IN-WITH-X header {what}.")


def _refusal(reason: str, message: str) -> SpawnError:
    return SpawnError(
        Code.INVALID_SIGNATURE,
        message,
        details={"reason": reason},
        next="Send the request without SIGN-IN-WITH-X, and sign the text in the PAYMENT-REQUIRED of its 402.",
    )
