"""A wallet for tests: signs x402 payments with any time, amount or nonce a test wants."""

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Any

from eth_account import Account
from eth_account.signers.local import LocalAccount
from spawn_schemas.ids import Address, parse_address

_TYPES: dict[str, list[dict[str, str]]] = {
    "TransferWithAuthorization": [
        {"name": "from", "type": "address"},
        {"name": "to", "type": "address"},
        {"name": "value", "type": "uint256"},
        {"name": "validAfter", "type": "uint256"},
        {"name": "validBefore", "type": "uint256"},
        {"name": "nonce", "type": "bytes32"},
    ]
}


@dataclass
class Wallet:
    """An account and the nonces it has used."""

    account: LocalAccount
    _nonce: int = 0

    @classmethod
    def numbered(cls, number: int) -> "Wallet":
        """The same wallet for the same number in every run."""
        return cls(Account.from_key(number.to_bytes(32, "big")))

    @property
    def address(self) -> Address:
        return parse_address(self.account.address)

    def payment(self, challenge: str, *, now: int, nonce: int | None = None, **changes: Any) -> str:
        """Sign the first offer of a PAYMENT-REQUIRED header; `changes` overwrite fields of the authorization.

        The extensions come back as they are, which is what stock clients do.
        """
        required = json.loads(b64decode(challenge))
        payload = self.payload(required["accepts"][0], now=now, nonce=nonce, **changes)
        return encode(payload | {"extensions": required["extensions"]})

    def payload(
        self, offer: dict[str, Any], *, now: int, nonce: int | None = None, **changes: Any
    ) -> dict[str, Any]:
        """The payment as a dict, before it becomes a header."""
        self._nonce += 1
        authorization: dict[str, Any] = {
            "from": self.account.address,
            "to": offer["payTo"],
            "value": offer["amount"],
            "validAfter": "0",
            "validBefore": str(now + offer["maxTimeoutSeconds"]),
            "nonce": f"0x{self._nonce if nonce is None else nonce:064x}",
        }
        authorization |= changes
        domain = {
            "name": offer["extra"]["name"],
            "version": offer["extra"]["version"],
            "chainId": int(offer["network"].removeprefix("eip155:")),
            "verifyingContract": offer["asset"],
        }
        message = {
            **authorization,
            "value": int(authorization["value"]),
            "validAfter": int(authorization["validAfter"]),
            "validBefore": int(authorization["validBefore"]),
            "nonce": bytes.fromhex(authorization["nonce"][2:]),
        }
        signed = self.account.sign_typed_data(domain, _TYPES, message)
        return {
            "x402Version": 2,
            "accepted": offer,
            "payload": {"signature": f"0x{bytes(signed.signature).hex()}", "authorization": authorization},
        }


def encode(payload: dict[str, Any]) -> str:
    """A payload as the PAYMENT-SIGNATURE header carries it."""
    return b64encode(json.dumps(payload).encode()).decode()
