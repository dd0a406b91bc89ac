"""PyPI x402's facilitator behind its three routes, as its examples serve it.

python -m tests.interop.self_hosted_app PORT RPC_URL NETWORK      with its account's key in X402_TEST_KEY
"""

import os
import sys

import uvicorn
from fastapi import FastAPI
from x402 import x402Facilitator
from x402.mechanisms.evm.exact.register import register_exact_evm_facilitator
from x402.mechanisms.evm.signers import FacilitatorWeb3Signer
from x402.schemas.responses import (
    SettleRequest,
    SettleResponse,
    SupportedResponse,
    VerifyRequest,
    VerifyResponse,
)

from tests.interop.self_hosted import KEY_VARIABLE


def app(rpc_url: str, network: str, key: str) -> FastAPI:
    """The facilitator for one network."""
    signer = FacilitatorWeb3Signer(key, rpc_url)
    facilitator = register_exact_evm_facilitator(x402Facilitator(), signer, network)
    served = FastAPI()

    @served.get("/supported")
    async def supported() -> SupportedResponse:
        return facilitator.get_supported()

    @served.post("/verify")
    async def verify(asked: VerifyRequest) -> VerifyResponse:
        return await facilitator.verify(asked.payment_payload, asked.payment_requirements)

    @served.post("/settle")
    async def settle(asked: SettleRequest) -> SettleResponse:
        return await facilitator.settle(asked.payment_payload, asked.payment_requirements)

    return served


if __name__ == "__main__":
    _, port, rpc_url, network = sys.argv
    theirs = app(rpc_url, network, os.environ[KEY_VARIABLE])
    uvicorn.run(theirs, host="127.0.0.1", port=int(port), log_level="warning")
