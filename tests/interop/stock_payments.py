"""Payments as PyPI `x402` signs them, in hand: for tests that send one twice, or for a wallet that is a contract.

Invariant: as in `clients`, no header is made here that the package did not make.
"""

from typing import Any, Final

import httpx
from eth_account.signers.local import LocalAccount
from spawn_schemas.ids import Address
from x402 import x402Client
from x402.http import x402HTTPClient
from x402.mechanisms.evm.exact.register import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSigner

from spawn.payments.curve import checksummed

PATIENCE: Final = 30
"""How often a call is sent again at most. Each time the service waits for a second or so before it says no."""


class OwnerSigner(EthAccountSigner):
    """Signs with an owner's key for a wallet that is somebody else: a contract."""

    def __init__(self, owner: LocalAccount, wallet: Address) -> None:
        super().__init__(owner)
        self._wallet = checksummed(wallet)

    @property
    def address(self) -> str:
        return self._wallet


class Payable:
    """A call that costs money, with what the service asked for it."""

    def __init__(self, http: httpx.AsyncClient, method: str, path: str, body: object = None) -> None:
        self._http = http
        self._method = method
        self._path = path
        self._body = body

    async def pay(self, signer: EthAccountSigner, version: int = 2) -> dict[str, str]:
        """Ask for the price; return the header that pays it, in this version of x402."""
        unpaid = await self.send({})
        assert unpaid.status_code == 402, unpaid.text
        asked = dict(unpaid.headers)
        if version == 1:
            del asked["payment-required"]  # what a service of version 1 does not send
        client: Any = x402HTTPClient(register_exact_evm_client(x402Client(), signer))
        headers, _ = await client.handle_402_response(asked, unpaid.content, str(unpaid.url))
        paying: dict[str, str] = headers
        return paying

    async def send(self, headers: dict[str, str]) -> httpx.Response:
        """The call, once."""
        return await self._http.request(self._method, self._path, json=self._body, headers=headers)

    async def send_until_answered(self, headers: dict[str, str]) -> httpx.Response:
        """The very same call again and again, within PATIENCE, until it is answered."""
        answer = await self.send(headers)
        for _ in range(PATIENCE):
            if answer.status_code != 503:
                break
            answer = await self.send(headers)
        return answer
