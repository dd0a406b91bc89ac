"""Customers' keys, and every proof that the API takes: payments of both versions, signed requests, sign-ins.

Written by hand from EIP-712, EIP-191, RFC 9421 and EIP-4361, because a wallet library takes milliseconds for what has
to take microseconds here, and because the service's own code must not be its own judge.
Invariant: a wallet never uses a nonce twice, and the same calls in the same order make the same proofs.
"""

import hashlib
from base64 import b64decode, b64encode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Any, Final

import msgspec
from coincurve import PrivateKey
from sha3 import keccak_256  # type: ignore[import-untyped]  # a C extension without annotations

from spawn.settings import Settings

SIGNATURE_LIFE_S: Final = 60
"""The longest that a signed request may live (ERC-8128 as the service profiles it)."""
_CHAIN_OF: Final = {"base": 8453, "base-sepolia": 84532}
"""Version 1's names of networks."""
_DOMAIN_TYPE: Final = b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
_TRANSFER_TYPE: Final = (
    b"TransferWithAuthorization(address from,address to,uint256 value,"
    b"uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
_PAD: Final = "0" * 24  # an address fills the low 20 of 32 bytes


class Kind(StrEnum):
    """Which proof it is, in the word with which the name of its nonce begins; a session has no nonce."""

    PAYMENT = "x402"
    SIGNED = "sig"
    SIGN_IN = "siwx"
    SESSION = "session"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One proof as it is sent. `name` is what the service's books call its nonce, worked out here by ourselves.

    `valid_until` is the last unix second at which it is worth anything; `amount_usdc` what a payment carries, `key`
    the idempotency key that is inside it.
    """

    kind: Kind
    wallet: str
    headers: dict[str, str]
    name: str
    valid_until: int
    amount_usdc: int = 0
    key: str | None = None

    @property
    def text(self) -> str:
        """The header that says who it is, unlike any other proof's."""
        return next(iter(self.headers.values()))


class _Accepted(msgspec.Struct, rename="camel"):
    pay_to: str
    max_timeout_seconds: int
    asset: str
    network: str
    extra: dict[str, Any]
    amount: str = ""
    max_amount_required: str = ""


class _Required(msgspec.Struct):
    accepts: list[msgspec.Raw]
    resource: msgspec.Raw
    extensions: dict[str, msgspec.Raw]


class _RequiredV1(msgspec.Struct):
    accepts: list[_Accepted]


_required: Final = msgspec.json.Decoder(_Required)
_required_v1: Final = msgspec.json.Decoder(_RequiredV1)
_accepted: Final = msgspec.json.Decoder(_Accepted)


class Wallet:
    """One account: its key, how many nonces it has used, and the service that it deals with."""

    def __init__(self, number: int, settings: Settings) -> None:
        """The same account for the same number in every world."""
        self.number = number
        self._key, self.address, self._spelled = _account(number)
        self._settings = settings
        self._chain_id = settings.chain_id
        self._authority = settings.authority
        self._nonces = 0

    def pay(self, challenge: str, *, now: int, key: str | None = None) -> Proof:
        """Pay the first offer of a PAYMENT-REQUIRED header, as stock clients do: everything offered is echoed.

        `key` becomes the payment's `payment-identifier`.
        """
        required = _required.decode(b64decode(challenge))
        accepted = _accepted.decode(required.accepts[0])
        chain_id = int(accepted.network.removeprefix("eip155:"))
        extensions = required.extensions
        if key is not None:
            named = msgspec.json.encode({"info": {"required": False, "id": key}})
            extensions = extensions | {"payment-identifier": msgspec.Raw(named)}
        payload, proof = self._authorize(accepted, int(accepted.amount), chain_id, now, key)
        header = (
            f'{{"x402Version":2,"accepted":{_text(required.accepts[0])},"resource":{_text(required.resource)},'
            f'"extensions":{_text(msgspec.json.encode(extensions))},"payload":{payload}}}'
        )
        proof.headers["PAYMENT-SIGNATURE"] = b64encode(header.encode()).decode()
        return proof

    def pay_v1(self, body: bytes, *, now: int) -> Proof:
        """Pay the first offer in the body of a 402, as clients of version 1 do."""
        accepted = _required_v1.decode(body).accepts[0]
        chain_id = _CHAIN_OF[accepted.network]
        payload, proof = self._authorize(accepted, int(accepted.max_amount_required), chain_id, now)
        header = f'{{"x402Version":1,"scheme":"exact","network":"{accepted.network}","payload":{payload}}}'
        proof.headers["X-PAYMENT"] = b64encode(header.encode()).decode()
        return proof

    def sign(self, method: str, path: str, query: str, body: bytes, *, now: int) -> Proof:
        """Sign this request (RFC 9421 in the profile of ERC-8128): it pays from the balance."""
        parts = {"@authority": self._authority, "@method": method, "@path": path}
        headers: dict[str, str] = {"Signature": ""}
        if query:
            parts["@query"] = f"?{query}"
        if body:
            digest = f"sha-256=:{b64encode(hashlib.sha256(body).digest()).decode()}:"
            parts["content-digest"] = headers["Content-Digest"] = digest
        nonce, expires = f"n{self._count()}", now + SIGNATURE_LIFE_S
        names = " ".join(f'"{name}"' for name in parts)
        parameters = (
            f"({names});created={now};expires={expires}"
            f';nonce="{nonce}";keyid="erc8128:{self._chain_id}:{self.address}"'
        )
        lines = [f'"{name}": {value}\n' for name, value in parts.items()]
        base = f'{"".join(lines)}"@signature-params": {parameters}'
        headers["Signature"] = f"eth=:{b64encode(self._sign_text(base)).decode()}:"
        headers["Signature-Input"] = f"eth={parameters}"
        return self._proof(Kind.SIGNED, headers, _name(Kind.SIGNED, self.address, nonce), expires)

    def sign_in(self, *, now: int) -> Proof:
        """Sign a text of our own that says who we are (EIP-4361, x402 extension sign-in-with-x): good for one read."""
        nonce, origin = f"signin{self._count():010d}", self._settings.public_url
        issued = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        text = (
            f"{self._authority} wants you to sign in with your Ethereum account:\n{self._spelled}\n\n"
            f"URI: {origin}\nVersion: 1\nChain ID: {self._chain_id}\nNonce: {nonce}\nIssued At: {issued}"
        )
        claim = {
            "domain": self._authority,
            "address": self._spelled,
            "uri": origin,
            "version": "1",
            "chainId": f"eip155:{self._chain_id}",
            "type": "eip191",
            "nonce": nonce,
            "issuedAt": issued,
            "signature": f"0x{self._sign_text(text).hex()}",
        }
        headers = {"SIGN-IN-WITH-X": b64encode(msgspec.json.encode(claim)).decode()}
        return self._proof(Kind.SIGN_IN, headers, _name(Kind.SIGN_IN, self.address, nonce), now + 300)

    def show(self, token: str, *, until: int) -> Proof:
        """A session's bearer."""
        return self._proof(Kind.SESSION, {"Authorization": f"Bearer {token}"}, "", until)

    def _authorize(
        self, accepted: _Accepted, amount_usdc: int, chain_id: int, now: int, key: str | None = None
    ) -> tuple[str, Proof]:
        """The signed authorization (EIP-3009) as JSON, and the proof that it goes into."""
        before, nonce = now + accepted.max_timeout_seconds, f"{self.number:032x}{self._count():032x}"
        prefix = _domain(accepted.extra["name"], accepted.extra["version"], chain_id, accepted.asset.lower())
        words = (
            f"{_keccak(_TRANSFER_TYPE).hex()}{_PAD}{self.address[2:]}{_PAD}{accepted.pay_to[2:]}"
            f"{amount_usdc:064x}{0:064x}{before:064x}{nonce}"
        )
        signature = self._sign_digest(_keccak(prefix + _keccak(bytes.fromhex(words)))).hex()
        payload = (
            f'{{"signature":"0x{signature}","authorization":{{"from":"{self._spelled}","to":"{accepted.pay_to}",'
            f'"value":"{amount_usdc}","validAfter":"0","validBefore":"{before}","nonce":"0x{nonce}"}}}}'
        )
        scope = f"{chain_id} {accepted.asset.lower()} {self.address}"
        name = _name(Kind.PAYMENT, scope, f"0x{nonce}")
        return payload, Proof(
            kind=Kind.PAYMENT,
            wallet=self.address,
            headers={},
            name=name,
            valid_until=before,
            amount_usdc=amount_usdc,
            key=key,
        )

    def _proof(self, kind: Kind, headers: dict[str, str], name: str, until: int) -> Proof:
        return Proof(kind=kind, wallet=self.address, headers=headers, name=name, valid_until=until)

    def _count(self) -> int:
        self._nonces += 1
        return self._nonces

    def _sign_text(self, text: str) -> bytes:
        """EIP-191, version 0x45."""
        message = text.encode()
        return self._sign_digest(_keccak(b"\x19Ethereum Signed Message:\n%d%b" % (len(message), message)))

    def _sign_digest(self, digest: bytes) -> bytes:
        """r, s and v (27 or 28), by RFC 6979: the same digest is signed in the same way."""
        signature = self._key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes((27 + signature[64],))


@cache
def _account(number: int) -> tuple[PrivateKey, str, str]:
    """Key, address in lower case, and address as EIP-55 spells it."""
    key = PrivateKey(hashlib.sha256(f"spawn simulation {number}".encode()).digest())
    digits = _keccak(key.public_key.format(compressed=False)[1:])[12:].hex()
    marks = _keccak(digits.encode()).hex()
    spelled = "".join(
        digit.upper() if mark >= "8" else digit for digit, mark in zip(digits, marks, strict=False)
    )
    return key, f"0x{digits}", f"0x{spelled}"


@cache
def _domain(name: str, version: str, chain_id: int, asset: str) -> bytes:
    """What every digest on this token begins with (EIP-712)."""
    separator = _keccak(
        _keccak(_DOMAIN_TYPE)
        + _keccak(name.encode())
        + _keccak(version.encode())
        + chain_id.to_bytes(32, "big")
        + bytes.fromhex(_PAD + asset[2:])
    )
    return b"\x19\x01" + separator


def _name(kind: Kind, scope: str, nonce: str) -> str:
    """How the books name a nonce: 160 bits of SHA-256 in base64url."""
    digest = hashlib.sha256(f"{scope}|{nonce}".encode()).digest()[:20]
    return f"{kind}_{urlsafe_b64encode(digest).decode().rstrip('=')}"


def _text(raw: msgspec.Raw | bytes) -> str:
    return bytes(raw).decode()


def _keccak(data: bytes) -> bytes:
    digest: bytes = keccak_256(data).digest()
    return digest
