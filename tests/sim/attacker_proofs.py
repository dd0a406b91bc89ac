"""Proofs as an attacker makes them: right in every byte, or wrong in one that the attacker chose.

Written from the specifications (EIP-712, EIP-3009, EIP-191, EIP-4361, RFC 9421 with ERC-8128), not from the product:
what both get wrong alike would go unseen. Invariant: whoever holds a key signs by it whatever text it likes, and
nobody signs by another's.
"""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from coincurve import PrivateKey
from sha3 import keccak_256  # type: ignore[import-untyped]  # a C extension without annotations

from spawn.settings import Settings

CURVE_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
V1_NETWORKS: Final = {"eip155:8453": "base", "eip155:84532": "base-sepolia"}
LIFE_S: Final = 60
"""How long a signed request lives at most (ERC-8128 as the service profiles it)."""

_DOMAIN: Final = b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
_TRANSFER: Final = (
    b"TransferWithAuthorization(address from,address to,uint256 value,"
    b"uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)

_OPTIONAL: Final = {
    "expirationTime": "Expiration Time",
    "notBefore": "Not Before",
    "requestId": "Request ID",
}
"""Lines of EIP-4361 that need not be there."""

Payload = dict[str, Any]


def keccak(data: bytes) -> bytes:
    digest: bytes = keccak_256(data).digest()
    return digest


@dataclass(frozen=True)
class Key:
    """A wallet's private key. `address` is in lower case."""

    secret: PrivateKey = field(repr=False)
    address: str

    @classmethod
    def from_number(cls, number: int) -> "Key":
        secret = PrivateKey(keccak(f"attacker {number}".encode()))
        return cls(secret, "0x" + keccak(secret.public_key.format(compressed=False)[1:])[12:].hex())

    def sign(self, digest: bytes) -> bytes:
        """r, s and v (27 or 28) over 32 bytes."""
        made = self.secret.sign_recoverable(digest, hasher=None)
        return made[:64] + bytes([27 + made[64]])

    def sign_text(self, text: str) -> bytes:
        """Over a message of bytes (EIP-191)."""
        return self.sign(text_digest(text))


def text_digest(text: str) -> bytes:
    """What a wallet signs for a text (EIP-191, version 0x45)."""
    body = text.encode()
    return keccak(b"\x19Ethereum Signed Message:\n%d%b" % (len(body), body))


def _word(address: str) -> bytes:
    return bytes(12) + bytes.fromhex(address[2:])


def authorization_digest(offer: Payload, authorization: dict[str, str]) -> bytes:
    """What EIP-3009 has signed (EIP-712), in the domain that the offer names."""
    domain = keccak(
        keccak(_DOMAIN)
        + keccak(offer["extra"]["name"].encode())
        + keccak(offer["extra"]["version"].encode())
        + int(offer["network"].removeprefix("eip155:")).to_bytes(32, "big")
        + _word(offer["asset"])
    )
    numbers = b"".join(
        int(authorization[name]).to_bytes(32, "big") for name in ("value", "validAfter", "validBefore")
    )
    message = keccak(
        keccak(_TRANSFER)
        + _word(authorization["from"])
        + _word(authorization["to"])
        + numbers
        + bytes.fromhex(authorization["nonce"][2:])
    )
    return keccak(b"\x19\x01" + domain + message)


def offer_of(settings: Settings, amount_usdc: int) -> Payload:
    """What a challenge of this service offers for this amount."""
    return {
        "scheme": "exact",
        "network": settings.x402_network,
        "amount": str(amount_usdc),
        "asset": settings.x402_asset,
        "payTo": settings.x402_pay_to,
        "maxTimeoutSeconds": settings.x402_timeout_s,
        "extra": {"name": settings.x402_asset_name, "version": settings.x402_asset_version},
    }


def payment(key: Key, offer: Payload, *, now: int, nonce: int, **changes: str) -> Payload:
    """A payment of what is offered, until it becomes a header; `changes` are signed fields of the authorization."""
    authorization = {
        "from": key.address,
        "to": offer["payTo"],
        "value": offer["amount"],
        "validAfter": "0",
        "validBefore": str(now + offer["maxTimeoutSeconds"]),
        "nonce": f"0x{nonce:064x}",
    } | changes
    signature = key.sign(authorization_digest(offer, authorization))
    inner = {"signature": "0x" + signature.hex(), "authorization": authorization}
    return {"x402Version": 2, "accepted": offer, "payload": inner}


def in_version_1(payload: Payload) -> Payload:
    """The same authorization as x402 version 1 writes it."""
    network = V1_NETWORKS.get(payload["accepted"]["network"], payload["accepted"]["network"])
    return {"x402Version": 1, "scheme": "exact", "network": network, "payload": payload["payload"]}


def changed(payload: Payload, *, signature: Callable[[bytes], bytes] = bytes, **fields: str) -> Payload:
    """The payment after it was signed: other fields of the authorization, or another signature, and nothing else."""
    inner = payload["payload"]
    made = signature(bytes.fromhex(inner["signature"][2:]))
    return payload | {
        "payload": {"signature": "0x" + made.hex(), "authorization": inner["authorization"] | fields}
    }


def high_s(signature: bytes) -> bytes:
    """The other signature of the same key over the same digest; the token refuses it (EIP-2)."""
    s = CURVE_ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])


def encoded(payload: object) -> str:
    """As a header carries it."""
    return base64.b64encode(json.dumps(payload).encode()).decode()


@dataclass(frozen=True, kw_only=True)
class Called:
    """A request before it is signed; `query` has no question mark."""

    method: str
    path: str
    query: str = ""
    body: bytes = b""


def signed(
    key: Key,
    called: Called,
    settings: Settings,
    *,
    now: int,
    nonce: str,
    keyid: str | None = None,
    signature: Callable[[bytes], bytes] = bytes,
    authority: str | None = None,
    life_s: int = LIFE_S,
) -> dict[str, str]:
    """The headers that sign this request from `now` on (unix seconds); `keyid` may name another wallet."""
    parts = {
        "@authority": authority or settings.authority,
        "@method": called.method,
        "@path": called.path,
    }
    headers: dict[str, str] = {}
    if called.query:
        parts["@query"] = f"?{called.query}"
    if called.body:
        headers |= digest_header(called.body)
        parts |= headers
    chain = settings.x402_network.removeprefix("eip155:")
    names = " ".join(f'"{name}"' for name in parts)
    parameters = (
        f'({names});created={now};expires={now + life_s};nonce="{nonce}";'
        f'keyid="erc8128:{chain}:{keyid or key.address}"'
    )
    lines = [f'"{name}": {value}' for name, value in parts.items()]
    made = signature(key.sign_text("\n".join([*lines, f'"@signature-params": {parameters}'])))
    headers["signature-input"] = f"eth={parameters}"
    headers["signature"] = f"eth=:{base64.b64encode(made).decode()}:"
    return headers


def digest_header(body: bytes) -> dict[str, str]:
    """What names a body in a signed request (RFC 9530)."""
    return {"content-digest": f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"}


def signed_in(
    key: Key,
    settings: Settings,
    *,
    now: int,
    nonce: str,
    address: str | None = None,
    domain: str | None = None,
) -> str:
    """A SIGN-IN-WITH-X header (EIP-4361); `address` and `domain` may be another's."""
    authority = domain or settings.authority
    scheme = settings.public_url.partition("://")[0] or "http"
    fields = {
        "domain": authority,
        "address": address or key.address,
        "uri": f"{scheme}://{authority}",
        "version": "1",
        "chainId": settings.x402_network,
        "type": "eip191",
        "nonce": nonce,
        "issuedAt": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return encoded(fields | {"signature": "0x" + key.sign_text(sign_in_text(fields)).hex()})


def sign_in_text(fields: Payload) -> str:
    """The text of a sign-in, as EIP-4361 lays it out: the line of a statement that is not there stays empty."""
    chain = str(fields["chainId"]).removeprefix("eip155:")
    statement = f"{fields['statement']}\n" if fields.get("statement") is not None else ""
    lines = [
        f"{fields['domain']} wants you to sign in with your Ethereum account:\n{fields['address']}\n\n{statement}",
        f"URI: {fields['uri']}",
        f"Version: {fields['version']}",
        f"Chain ID: {chain}",
        f"Nonce: {fields['nonce']}",
        f"Issued At: {fields['issuedAt']}",
    ]
    lines += [f"{title}: {fields[name]}" for name, title in _OPTIONAL.items() if fields.get(name) is not None]
    return "\n".join(lines)
