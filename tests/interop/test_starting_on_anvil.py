"""The service starts while its chain, or whoever settles for it, is down; and works once they are up, by itself."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx
import pytest_asyncio
from x402.http.utils import decode_payment_required_header
from x402.mechanisms.evm.signers import EthAccountSigner

from tests.anvil import RELAYER_KEYS, Chain, anvil
from tests.interop.anvil_service import by_facilitators, by_ourselves, spawn_serve
from tests.interop.clients import TIMEOUT_S
from tests.interop.self_hosted import self_hosted
from tests.interop.service import Mark, RunningService
from tests.interop.stock_payments import OwnerSigner, Payable
from tests.payments import TERMS
from tests.ports import free_port
from tests.wallets import Wallet

BEGINNING: Final = Mark(chain=0, ledger=0)
IMPATIENT: Final = {"SPAWN_SETTLE_WAIT_S": "1", "SPAWN_RPC_TIMEOUT_S": "2"}
AMOUNT: Final = 500_000
LOOKS: Final = 200
NOBODY: Final = "http://127.0.0.1:9"
"""Where nobody listens (the discard port)."""


@pytest_asyncio.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
        yield client


def deposit(service: RunningService, http: httpx.AsyncClient) -> Payable:
    return Payable(http, "POST", f"{service.url}/v1/balance/deposit", {"amount": "0.50"})


async def is_up(service: RunningService, http: httpx.AsyncClient) -> None:
    """Whoever asks whether it lives, what there is and what it costs gets an answer."""
    assert (await http.get(f"{service.url}/health")).json()["status"] == "ok"
    assert (await http.get(f"{service.url}/v1/catalog")).status_code == 200
    unpaid = await deposit(service, http).send({})
    assert unpaid.status_code == 402
    required = decode_payment_required_header(unpaid.headers["payment-required"])
    assert [offer.get_amount() for offer in required.accepts] == [str(AMOUNT)]


def later(answer: httpx.Response, code: str) -> None:
    """503 that says when to come again, and asks for no other payment."""
    assert answer.status_code == 503, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert int(answer.headers["retry-after"]) == error["retry_after"] > 0
    assert "payment-required" not in answer.headers


async def paid_once(service: RunningService, wallet: Wallet, answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["deposited"]) == (200, "0.50"), answer.text
    moved = await service.moved(wallet.address, BEGINNING)
    assert ([one.amount for one in moved.on_chain], moved.paid_in) == ([AMOUNT], (AMOUNT,))
    assert await service.violations() == []


async def test_we_settle_once_the_node_is_up(http: httpx.AsyncClient, tmp_path: Path) -> None:
    wallet = Wallet.numbered(500)
    with anvil() as chain:
        chain.fund(wallet.address, AMOUNT)
        chain.stop()
        with spawn_serve(tmp_path, chain, by_ourselves(chain), IMPATIENT) as service:
            await is_up(service, http)
            call = deposit(service, http)
            header = await call.pay(EthAccountSigner(wallet.account))
            later(await call.send(header), "settlement_pending")
            later(await call.send(header), "settlement_pending")
            chain.start()
            await paid_once(service, wallet, await call.send_until_answered(header))
            service.check_books()


async def test_a_contract_wallet_is_asked_once_the_node_is_up(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    """Without the chain nobody knows whether it signed: it is sent away, and its payment is not taken down."""
    owner = Wallet.numbered(510)
    with anvil() as chain:
        wallet = chain.deploy_wallet(owner.address)
        chain.fund(wallet, AMOUNT)
        chain.stop()
        with spawn_serve(tmp_path, chain, by_ourselves(chain), IMPATIENT) as service:
            call = deposit(service, http)
            header = await call.pay(OwnerSigner(owner.account, wallet))
            later(await call.send(header), "overloaded")
            chain.start()
            answer = await call.send_until_answered(header)
            assert answer.status_code == 200, answer.text
            assert (await service.moved(wallet, BEGINNING)).paid_in == (AMOUNT,)
            assert await service.violations() == []


async def test_facilitators_are_asked_once_node_and_one_of_them_are_up(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    wallet, port = Wallet.numbered(520), free_port()
    rail = by_facilitators(NOBODY, f"http://127.0.0.1:{port}")
    with anvil() as chain:
        chain.fund(wallet.address, AMOUNT)
        chain.stop()
        with spawn_serve(tmp_path, chain, rail, IMPATIENT) as service:
            await is_up(service, http)
            call = deposit(service, http)
            header = await call.pay(EthAccountSigner(wallet.account))
            later(await call.send(header), "settlement_pending")
            chain.start()
            later(await call.send(header), "settlement_pending")
            with self_hosted(rpc_url=chain.url, network=TERMS.network, key=RELAYER_KEYS[0], port=port):
                await paid_once(service, wallet, await call.send_until_answered(header))
            service.check_books()


async def test_a_call_that_waits_when_the_service_stops_is_told_so_and_goes_on_after_the_next_start(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    wallet = Wallet.numbered(530)
    with anvil() as chain:
        chain.fund(wallet.address, AMOUNT)
        chain.set_automine(False)
        with spawn_serve(tmp_path, chain, by_ourselves(chain)) as service:
            call = deposit(service, http)
            header = await call.pay(EthAccountSigner(wallet.account))
            waiting = asyncio.create_task(call.send(header))
            (sent,) = await sent_to(chain)
        stopped = await waiting
        later(stopped, "settlement_pending")
        assert stopped.json()["error"]["details"] == {"transaction": sent}
        chain.mine()
        with spawn_serve(tmp_path, chain, by_ourselves(chain)) as service:
            await paid_once(service, wallet, await deposit(service, http).send_until_answered(header))


async def sent_to(chain: Chain) -> list[str]:
    """What waits to be mined, once something does."""
    for _ in range(LOOKS):
        if pending := chain.pending():
            return pending
        await asyncio.sleep(0.05)
    raise AssertionError("nothing was sent")
