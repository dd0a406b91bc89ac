"""A chain that is slow: callers are told so, with the transaction; the same payment sent again gets its answer."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio
from x402 import RecoveredResponseResult, x402Client
from x402.http.clients import httpx as x402_httpx
from x402.http.utils import decode_payment_response_header
from x402.mechanisms.evm.exact.register import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSigner

from tests.anvil import RELAYER_KEYS, anvil
from tests.interop.anvil_service import (
    AnvilService,
    by_facilitators,
    by_ourselves,
    spawn_serve,
)
from tests.interop.clients import BUYERS, TIMEOUT_S
from tests.interop.self_hosted import self_hosted
from tests.interop.service import Mark
from tests.interop.stock_payments import PATIENCE, Payable
from tests.interop.story import ORDER
from tests.payments import TERMS
from tests.wallets import Wallet

CONFIRMATIONS: Final = 2
IMPATIENT: Final = {"SPAWN_SETTLE_WAIT_S": "2", "SPAWN_CONFIRMATIONS": str(CONFIRMATIONS)}
BEGINNING: Final = Mark(chain=0, ledger=0)
BUY: Final = ORDER | {"fund": "0.90"}
PRICE: Final = 910_000
RECEIPTS: Final = {1: "x-payment-response", 2: "payment-response"}
WORDS: Final = {1: "unexpected_settle_error", 2: "settlement_pending"}
"""What a receipt says of a settlement that is not done: version 1 has no word for it."""


@pytest.fixture(scope="module")
def ourselves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnvilService]:
    folder = tmp_path_factory.mktemp("self")
    with anvil() as chain, spawn_serve(folder, chain, by_ourselves(chain), IMPATIENT) as service:
        yield service


@pytest.fixture(scope="module")
def by_theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnvilService]:
    folder = tmp_path_factory.mktemp("facilitator")
    with (
        anvil() as chain,
        self_hosted(rpc_url=chain.url, network=TERMS.network, key=RELAYER_KEYS[0]) as theirs,
        spawn_serve(folder, chain, by_facilitators(theirs.url), IMPATIENT) as service,
    ):
        yield service


@pytest.fixture
def unmined(ourselves: AnvilService) -> Iterator[AnvilService]:
    """Nothing is mined until somebody does."""
    ourselves.chain.set_automine(False)
    yield ourselves
    ourselves.chain.set_automine(True)


@pytest_asyncio.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
        yield client


async def buying(service: AnvilService, http: httpx.AsyncClient, wallet: Wallet, name: str) -> Payable:
    await service.mint(wallet, "5.00")
    return Payable(http, "POST", f"{service.url}/v1/servers", BUY | {"name": name})


def pending(answer: httpx.Response, version: int) -> str:
    """The transaction that a 503 names, which asks for the same payment again and never for another."""
    assert answer.status_code == 503, answer.text
    error = answer.json()["error"]
    assert error["code"] == "settlement_pending"
    assert int(answer.headers["retry-after"]) == error["retry_after"] > 0
    assert "do not sign a new one" in error["next"]
    assert "payment-required" not in answer.headers
    assert "accepts" not in answer.json()
    receipt = decode_payment_response_header(answer.headers[RECEIPTS[version]])
    assert (receipt.success, receipt.error_reason) == (False, WORDS[version])
    transaction: str = receipt.transaction
    assert transaction == (error["details"] or {}).get("transaction", "")
    return transaction


async def paid_once(service: AnvilService, wallet: Wallet, answer: httpx.Response, version: int) -> str:
    """The transaction in the receipt of an answer that was paid for: the only transfer, and the only credit."""
    assert answer.status_code == 201, answer.text
    receipt = decode_payment_response_header(answer.headers[RECEIPTS[version]])
    assert receipt.success
    assert await moved(service, wallet) == [(receipt.transaction, PRICE)]
    assert await service.violations() == []
    return receipt.transaction


async def moved(service: AnvilService, wallet: Wallet) -> list[tuple[str, int]]:
    """What a wallet that is used once has paid, each of it credited."""
    paid = await service.moved(wallet.address, BEGINNING)
    assert tuple(transfer.amount for transfer in paid.on_chain) == paid.paid_in
    return [(transfer.tx_hash, transfer.amount) for transfer in paid.on_chain]


@pytest.mark.parametrize("version", [1, 2])
async def test_the_same_header_gets_the_paid_answer_once_it_is_mined(
    unmined: AnvilService, http: httpx.AsyncClient, version: int
) -> None:
    wallet = Wallet.numbered(400 + version)
    call = await buying(unmined, http, wallet, f"mined-{version}")
    header = await call.pay(EthAccountSigner(wallet.account), version)
    sent = pending(await call.send(header), version)
    assert unmined.chain.pending() == [sent]
    assert pending(await call.send(header), version) == sent
    assert await moved(unmined, wallet) == []
    unmined.chain.mine(CONFIRMATIONS)
    answer = await call.send_until_answered(header)
    assert await paid_once(unmined, wallet, answer, version) == sent
    again = await call.send(header)
    assert again.json()["server"]["id"] == answer.json()["server"]["id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert await paid_once(unmined, wallet, again, version) == sent


@pytest.mark.parametrize("version", [1, 2])
async def test_what_a_facilitator_settled_is_pending_until_it_is_deep_enough(
    by_theirs: AnvilService, http: httpx.AsyncClient, version: int
) -> None:
    wallet = Wallet.numbered(410 + version)
    call = await buying(by_theirs, http, wallet, f"deep-{version}")
    header = await call.pay(EthAccountSigner(wallet.account), version)
    sent = pending(await call.send(header), version)
    (transfer,) = [one for one in by_theirs.chain.transfers() if one.sender == wallet.address]
    assert transfer.transaction == sent
    by_theirs.chain.mine(CONFIRMATIONS - 1)
    answer = await call.send_until_answered(header)
    assert await paid_once(by_theirs, wallet, answer, version) == sent


async def test_a_facilitator_that_does_not_come_back_may_have_sent_it(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    """It waits for its transaction, and tells nobody which: there is no hash to pass on, and nothing else changes."""
    hurried = {"SPAWN_FACILITATOR_TIMEOUT_S": "3", "SPAWN_SETTLE_WAIT_S": "1"}
    with (
        anvil() as chain,
        self_hosted(rpc_url=chain.url, network=TERMS.network, key=RELAYER_KEYS[0]) as theirs,
        spawn_serve(tmp_path, chain, by_facilitators(theirs.url), hurried) as service,
    ):
        wallet = Wallet.numbered(420)
        call = await buying(service, http, wallet, "silence")
        header = await call.pay(EthAccountSigner(wallet.account))
        chain.set_automine(False)
        assert pending(await call.send(header), 2) == ""
        assert len(chain.pending()) == 1
        chain.mine()
        answer = await call.send_until_answered(header)
        await paid_once(service, wallet, answer, 2)


@pytest.mark.parametrize("name", ["x402[httpx]", "x402[requests]", "@x402/fetch"])
async def test_a_stock_client_that_names_its_call_just_calls_again(unmined: AnvilService, name: str) -> None:
    """It signs a new payment each time, which stays unspent: the key says that it is the same purchase."""
    wallet = Wallet.numbered(430 + list(BUYERS).index(name))
    await unmined.mint(wallet, "5.00")
    key = {"Idempotency-Key": f"purchase-{name}"}
    order = BUY | {"name": f"again-{list(BUYERS).index(name)}"}
    async with BUYERS[name].open(unmined.url, wallet, None) as client:
        first = await client.call("POST", "/v1/servers", order, key)
        assert first.status == 503, first.body
        assert first.receipt is not None
        assert (first.receipt.success, first.receipt.transaction) == (False, unmined.chain.pending()[0])
        assert int(first.headers["retry-after"]) > 0
        unmined.chain.mine(CONFIRMATIONS)
        answer = await client.call("POST", "/v1/servers", order, key)
        for _ in range(PATIENCE):
            if answer.status != 503:
                break
            answer = await client.call("POST", "/v1/servers", order, key)
    assert answer.status == 201, answer.body
    assert await moved(unmined, wallet) == [(first.receipt.transaction, PRICE)]


async def test_a_stock_client_that_recovers_by_itself_pays_once(unmined: AnvilService) -> None:
    """PyPI `x402` asks its owner's hook about a failed payment, and if told to, signs another and repeats the call."""
    wallet = Wallet.numbered(440)
    await unmined.mint(wallet, "5.00")
    heard: list[Any] = []

    async def wait_for_it(context: Any) -> RecoveredResponseResult | None:
        heard.append(context.settle_response)
        if context.settle_response.success:
            return None
        unmined.chain.mine(CONFIRMATIONS)
        return RecoveredResponseResult()

    client = register_exact_evm_client(x402Client(), EthAccountSigner(wallet.account))
    client.on_payment_response(wait_for_it)
    async with x402_httpx.x402HttpxClient(client, base_url=unmined.url, timeout=TIMEOUT_S) as http:
        order, key = BUY | {"name": "recovered"}, {"Idempotency-Key": "recovered"}
        answer = await http.request("POST", "/v1/servers", json=order, headers=key)
    transaction = await paid_once(unmined, wallet, answer, 2)
    assert [(one.success, one.error_reason, one.transaction) for one in heard] == [
        (False, WORDS[2], transaction),
        (True, None, transaction),
    ]
