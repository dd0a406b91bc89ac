"""The Python peer: a FastAPI app behind the official x402 middleware, which serves one priced GET.

Run as `python -m tests.bench.peer CHECKS PORT BODY_FILE [FACILITATOR_URL]`. CHECKS says who verifies and settles a
payment: `process` (the SDK's own facilitator in this process), `http` (a facilitator at that URL) or `none` (one in
this process that says yes to everything). In `process` everything is the SDK's own code and signatures are really
checked; only what would be a call to a node is answered from here, at once and as a healthy chain would, which no real
deployment can have. None of the three keeps a ledger or remembers a nonce, so they do less than we do.
coincurve is installed: the SDK's own `evm` extra leaves it out and then verifies 20 times slower.
"""

import itertools
import sys
from pathlib import Path
from typing import Any, Final

import uvicorn
from fastapi import FastAPI, Response
from x402 import x402Facilitator, x402ResourceServer
from x402.http.facilitator_client import FacilitatorConfig, HTTPFacilitatorClient
from x402.http.middleware.fastapi import PaymentMiddlewareASGI
from x402.http.types import PaymentOption, RouteConfig
from x402.mechanisms.evm.exact.register import register_exact_evm_facilitator, register_exact_evm_server
from x402.mechanisms.evm.types import TransactionReceipt
from x402.schemas import SettleResponse, SupportedKind, SupportedResponse, VerifyResponse

from spawn.settings import DEVNET_ASSET, DEVNET_NETWORK, DEVNET_PAY_TO

PATH: Final = "/v1/servers"
_RELAYER: Final = "0x" + "11" * 20
_TRANSACTION: Final = "0x" + "33" * 32


class HealthyChain:
    """A `FacilitatorEvmSigner` whose node answers at once: payers are ordinary accounts, every transfer succeeds."""

    def __init__(self) -> None:
        self._transactions = itertools.count(1)

    def get_addresses(self) -> list[str]:
        return [_RELAYER]

    def get_chain_id(self) -> int:
        return int(DEVNET_NETWORK.removeprefix("eip155:"))

    def get_code(self, address: str) -> bytes:
        return b"\x60" if address.lower() == DEVNET_ASSET.lower() else b""

    def get_balance(self, address: str, token_address: str) -> int:
        return 10**12

    def read_contract(self, address: str, abi: list[dict[str, Any]], function_name: str, *args: Any) -> Any:
        """The simulation of a transfer returns nothing and does not revert."""
        return None

    def write_contract(
        self,
        address: str,
        abi: list[dict[str, Any]],
        function_name: str,
        *args: Any,
        data_suffix: str | None = None,
    ) -> str:
        return f"0x{next(self._transactions):064x}"

    def wait_for_transaction_receipt(self, tx_hash: str) -> TransactionReceipt:
        return TransactionReceipt(status=1, block_number=1, tx_hash=tx_hash)

    def send_transaction(self, to: str, data: bytes) -> str:
        raise NotImplementedError("only wallets that are contracts need it")

    def verify_typed_data(self, *args: Any, **kwargs: Any) -> bool:
        raise NotImplementedError("the exact scheme recovers the signature by itself")


class SayYes:
    """A facilitator that checks nothing and moves nothing."""

    async def verify(self, payload: Any, requirements: Any) -> VerifyResponse:
        return VerifyResponse(is_valid=True, payer=payload.payload["authorization"]["from"])

    async def settle(self, payload: Any, requirements: Any) -> SettleResponse:
        payer = payload.payload["authorization"]["from"]
        return SettleResponse(success=True, transaction=_TRANSACTION, network=DEVNET_NETWORK, payer=payer)

    def get_supported(self) -> SupportedResponse:
        kind = SupportedKind(x402_version=2, scheme="exact", network=DEVNET_NETWORK)
        return SupportedResponse(kinds=[kind])


def facilitator(checks: str, url: str | None) -> Any:
    """Who verifies and settles; `url` is of the remote one."""
    match checks:
        case "process":
            return register_exact_evm_facilitator(x402Facilitator(), HealthyChain(), DEVNET_NETWORK)
        case "http":
            return HTTPFacilitatorClient(FacilitatorConfig(url=url or ""))
        case "none":
            return SayYes()
        case _:
            raise ValueError(f"CHECKS is process, http or none, not {checks}")


def app(asked: Any, body: bytes) -> FastAPI:
    """One priced GET that answers `body` when the facilitator `asked` agrees."""
    server = register_exact_evm_server(x402ResourceServer(asked), DEVNET_NETWORK)
    option = PaymentOption(scheme="exact", pay_to=DEVNET_PAY_TO, price="$0.001", network=DEVNET_NETWORK)
    api = FastAPI()
    api.add_middleware(
        PaymentMiddlewareASGI,
        routes={f"GET {PATH}": RouteConfig(accepts=option, description="List your servers")},
        server=server,
    )

    @api.get(PATH)
    async def read() -> Response:
        return Response(body, media_type="application/json")

    return api


def main(checks: str, port: str, body: str, url: str | None = None) -> None:
    """Serve until told to stop."""
    uvicorn.run(
        app(facilitator(checks, url), Path(body).read_bytes()),
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
