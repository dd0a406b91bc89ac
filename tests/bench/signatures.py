"""Signs what the load is made of: thousands a second, because a signature is good for seconds only.

A wallet library takes milliseconds for one. This takes the same steps (EIP-712, EIP-191) by hand, and nothing from the
service that is measured: what it makes is accepted by the official middlewares too, which is its test.
"""

import base64
import itertools
import os
from typing import Any, Final

import msgspec
from coincurve import PrivateKey
from eth_utils.address import to_checksum_address
from sha3 import keccak_256  # type: ignore[import-untyped]  # a C extension without annotations
from x402.mechanisms.evm.eip712 import hash_domain
from x402.mechanisms.evm.types import TypedDataDomain

_TRANSFER_TYPE: Final = keccak_256(
    b"TransferWithAuthorization(address from,address to,uint256 value,"
    b"uint256 validAfter,uint256 validBefore,bytes32 nonce)"
).hexdigest()
_PAD: Final = "0" * 24  # an address fills the low 20 of 32 bytes
_LIFE_S: Final = 60
"""The longest that a signed request may live (ERC-8128 as spawn profiles it)."""

_numbers: Final = itertools.count(1)
_run: Final = os.urandom(16).hex()


class Key:
    """A wallet's key."""

    def __init__(self, number: int) -> None:
        """The key that `tests.wallets.Wallet.numbered` has for this number."""
        self._key = PrivateKey(number.to_bytes(32, "big"))
        public = self._key.public_key.format(compressed=False)[1:]
        self.address: str = to_checksum_address(_keccak(public)[12:])

    def sign(self, digest: bytes) -> bytes:
        """r, s and v (27 or 28), as the token contract and wallets have it."""
        signature = self._key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes((27 + signature[64],))


class Offer:
    """The first way to pay that a challenge names, with all that is the same in every payment worked out."""

    def __init__(self, challenge: str) -> None:
        """`challenge` is a PAYMENT-REQUIRED header."""
        required: dict[str, Any] = msgspec.json.decode(base64.b64decode(challenge))
        accepted: dict[str, Any] = required["accepts"][0]
        domain = TypedDataDomain(
            name=accepted["extra"]["name"],
            version=accepted["extra"]["version"],
            chain_id=int(accepted["network"].removeprefix("eip155:")),
            verifying_contract=accepted["asset"],
        )
        self._prefix = b"\x19\x01" + hash_domain(domain)
        self._pay_to: str = to_checksum_address(accepted["payTo"])  # as stock clients spell it
        self._value: str = accepted["amount"]
        self._life_s: int = accepted["maxTimeoutSeconds"]
        # A stock client sends back what it was told, extensions included.
        echo = {"x402Version": 2, "accepted": accepted} | {
            name: required[name] for name in ("resource", "extensions") if required.get(name)
        }
        self._head = _open(echo)
        self._head_v1 = _open({"x402Version": 1, "scheme": "exact", "network": "base-sepolia"})

    def pay(self, key: Key, now: int) -> str:
        """A PAYMENT-SIGNATURE header, good once, until the offer's time is over."""
        return self._pay(self._head, key, now)

    def pay_v1(self, key: Key, now: int) -> str:
        """The same as an X-PAYMENT header of x402 version 1."""
        return self._pay(self._head_v1, key, now)

    def _pay(self, head: str, key: Key, now: int) -> str:
        before, nonce = now + self._life_s, f"{_run}{next(_numbers):032x}"
        words = (
            f"{_TRANSFER_TYPE}{_PAD}{key.address[2:]}{_PAD}{self._pay_to[2:]}{int(self._value):064x}"
            f"{0:064x}{before:064x}{nonce}"
        )
        signature = key.sign(_keccak(self._prefix + _keccak(bytes.fromhex(words)))).hex()
        text = (
            f'{head},"payload":{{"signature":"0x{signature}","authorization":{{"from":"{key.address}",'
            f'"to":"{self._pay_to}","value":"{self._value}","validAfter":"0","validBefore":"{before}",'
            f'"nonce":"0x{nonce}"}}}}}}'
        )
        return base64.b64encode(text.encode()).decode()


def signed_get(key: Key, *, chain_id: int, authority: str, path: str, now: int) -> dict[str, str]:
    """The headers of a GET signed by a wallet (RFC 9421, profile ERC-8128), good once, for a minute."""
    parameters = (
        f'("@authority" "@method" "@path");created={now};expires={now + _LIFE_S}'
        f';nonce="{_run}{next(_numbers)}";keyid="erc8128:{chain_id}:{key.address.lower()}"'
    )
    base = f'"@authority": {authority}\n"@method": GET\n"@path": {path}\n"@signature-params": {parameters}'
    message = base.encode()
    signature = key.sign(_keccak(b"\x19Ethereum Signed Message:\n%d%b" % (len(message), message)))
    return {
        "Signature-Input": f"eth={parameters}",
        "Signature": f"eth=:{base64.b64encode(signature).decode()}:",
    }


def _open(payload: dict[str, Any]) -> str:
    """JSON to which a field can still be added."""
    return msgspec.json.encode(payload)[:-1].decode()


def _keccak(data: bytes) -> bytes:
    digest: bytes = keccak_256(data).digest()
    return digest
