"""Wallets with code buy over HTTP on a real chain: by EIP-1271, by a delegation (EIP-7702), until they are revoked."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio
from eth_abi.abi import encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from spawn_schemas.ids import Address, parse_address
from x402.http.utils import decode_payment_required_header, decode_payment_response_header

from spawn.evm.transactions import address_of
from tests.anvil import RELAYER_KEYS, anvil
from tests.interop.anvil_service import (
    PAY_TO,
    AnvilService,
    by_facilitators,
    by_ourselves,
    spawn_serve,
)
from tests.interop.clients import TIMEOUT_S
from tests.interop.self_hosted import self_hosted
from tests.interop.service import Mark
from tests.interop.stock_payments import OwnerSigner, Payable
from tests.payments import TERMS

AMOUNT: Final = 750_000
BUY: Final = {"amount": "0.75"}
BEGINNING: Final = Mark(chain=0, ledger=0)
SIGNATURE: Final = "invalid_exact_evm_payload_signature"
RECEIPTS: Final = {1: "x-payment-response", 2: "payment-response"}


class UndeployedSigner(OwnerSigner):
    """Signs as a wallet does that is not deployed yet: wrapped with how to deploy it (ERC-6492)."""

    def sign_typed_data(self, *data: Any) -> bytes:
        inner = super().sign_typed_data(*data)
        wrapped = encode(["address", "bytes", "bytes"], [self.address, b"create it", inner])
        return wrapped + bytes.fromhex("6492" * 16)


@pytest.fixture(scope="module")
def ourselves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnvilService]:
    folder = tmp_path_factory.mktemp("self")
    with anvil() as chain, spawn_serve(folder, chain, by_ourselves(chain)) as service:
        yield service


@pytest.fixture(scope="module")
def by_theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnvilService]:
    folder = tmp_path_factory.mktemp("facilitator")
    with (
        anvil() as chain,
        self_hosted(rpc_url=chain.url, network=TERMS.network, key=RELAYER_KEYS[1]) as theirs,
        spawn_serve(folder, chain, by_facilitators(theirs.url)) as service,
    ):
        yield service


@pytest_asyncio.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
        yield client


def deposit(service: AnvilService, http: httpx.AsyncClient) -> Payable:
    return Payable(http, "POST", f"{service.url}/v1/balance/deposit", BUY)


def a_key() -> LocalAccount:
    account: LocalAccount = Account.create()
    return account


def own(account: LocalAccount) -> Address:
    return parse_address(account.address)


def a_wallet(service: AnvilService, owner: LocalAccount) -> Address:
    """A contract with money that pays with its owner's signature."""
    wallet = service.chain.deploy_wallet(own(owner))
    service.chain.fund(wallet, 2 * AMOUNT)
    return wallet


def a_delegated_account(service: AnvilService) -> LocalAccount:
    """An ordinary account with money and, since it was delegated, code."""
    account = a_key()
    service.chain.delegate(account)
    service.chain.fund(own(account), 2 * AMOUNT)
    return account


async def bought(service: AnvilService, payer: Address, answer: httpx.Response, version: int = 2) -> None:
    """One transfer from the wallet to us, its receipt and its credit."""
    assert answer.status_code == 200, answer.text
    moved = await service.moved(payer, BEGINNING)
    (transfer,) = moved.on_chain
    assert (transfer.recipient, transfer.amount, moved.paid_in) == (PAY_TO, AMOUNT, (AMOUNT,))
    receipt = decode_payment_response_header(answer.headers[RECEIPTS[version]])
    assert receipt.success
    assert (receipt.transaction, parse_address(receipt.payer or "")) == (transfer.tx_hash, payer)
    assert await service.violations() == []


@asynccontextmanager
async def nothing_is_sent(service: AnvilService) -> AsyncIterator[None]:
    """Inside, the relayer signs no transaction, and no block is made."""
    relayer = address_of(RELAYER_KEYS[0])
    before = service.chain.nonce(relayer), service.chain.head
    yield
    assert (service.chain.nonce(relayer), service.chain.head) == before
    assert service.chain.pending() == []


@pytest.mark.parametrize("version", [1, 2])
async def test_a_contract_wallet_buys(ourselves: AnvilService, http: httpx.AsyncClient, version: int) -> None:
    owner = a_key()
    wallet = a_wallet(ourselves, owner)
    call = deposit(ourselves, http)
    answer = await call.send(await call.pay(OwnerSigner(owner, wallet), version))
    await bought(ourselves, wallet, answer, version)


@pytest.mark.parametrize("version", [1, 2])
async def test_a_delegated_account_buys(
    ourselves: AnvilService, http: httpx.AsyncClient, version: int
) -> None:
    account = a_delegated_account(ourselves)
    call = deposit(ourselves, http)
    answer = await call.send(await call.pay(OwnerSigner(account, own(account)), version))
    await bought(ourselves, own(account), answer, version)


async def test_both_buy_where_a_facilitator_settles(by_theirs: AnvilService, http: httpx.AsyncClient) -> None:
    owner, account = a_key(), a_delegated_account(by_theirs)
    wallet = a_wallet(by_theirs, owner)
    call = deposit(by_theirs, http)
    for signer, payer in ((owner, wallet), (account, own(account))):
        answer = await call.send(await call.pay(OwnerSigner(signer, payer)))
        await bought(by_theirs, payer, answer)


@pytest.mark.parametrize("version", [1, 2])
async def test_a_wallet_with_another_owner_is_refused_before_anything_is_sent(
    ourselves: AnvilService, http: httpx.AsyncClient, version: int
) -> None:
    owner, heir = a_key(), a_key()
    wallet = a_wallet(ourselves, owner)
    call = deposit(ourselves, http)
    signed_before = await call.pay(OwnerSigner(owner, wallet), version)
    ourselves.chain.set_owner(wallet, own(heir))
    async with nothing_is_sent(ourselves):
        refused = await call.send(signed_before)
    mend(refused, "does not approve the signature (EIP-1271)")
    assert (await ourselves.moved(wallet, BEGINNING)).on_chain == ()
    answer = await call.send(await call.pay(OwnerSigner(heir, wallet), version))
    await bought(ourselves, wallet, answer, version)


@pytest.mark.parametrize("version", [1, 2])
async def test_a_delegated_account_whose_code_has_another_owner_is_refused_before_anything_is_sent(
    ourselves: AnvilService, http: httpx.AsyncClient, version: int
) -> None:
    """Its own key signed, so that arithmetic lets it pass; the trial before the transaction does not."""
    account, heir = a_delegated_account(ourselves), a_key()
    payer = own(account)
    call = deposit(ourselves, http)
    signed_before = await call.pay(OwnerSigner(account, payer), version)
    ourselves.chain.set_owner(payer, own(heir))
    async with nothing_is_sent(ourselves):
        refused = await call.send(signed_before)
    assert refused.status_code == 402, refused.text
    error = refused.json()["error"]
    assert (error["code"], error["details"]["reason"]) == ("settlement_failed", SIGNATURE)
    assert "code of the paying account does not accept it" in error["message"]
    receipt = decode_payment_response_header(refused.headers[RECEIPTS[version]])
    assert (receipt.success, receipt.error_reason, receipt.transaction) == (False, SIGNATURE, "")
    assert "payment-required" not in refused.headers
    answer = await call.send(await call.pay(OwnerSigner(heir, payer), version))
    await bought(ourselves, payer, answer, version)


@pytest.mark.parametrize("version", [1, 2])
async def test_a_wallet_that_is_not_deployed_is_told_to_be(
    ourselves: AnvilService, http: httpx.AsyncClient, version: int
) -> None:
    owner = a_key()
    wallet = own(a_key())  # somewhere without code
    ourselves.chain.fund(wallet, AMOUNT)
    call = deposit(ourselves, http)
    async with nothing_is_sent(ourselves):
        refused = await call.send(await call.pay(UndeployedSigner(owner, wallet), version))
    mend(refused, "is not deployed", "no ERC-6492", "Deploy it")


def mend(refused: httpx.Response, *words: str) -> None:
    """402 that asks for a better payment, in both versions, and says in these words what was wrong."""
    assert refused.status_code == 402, refused.text
    body = refused.json()
    assert decode_payment_required_header(refused.headers["payment-required"]).error == SIGNATURE
    assert body["error"] == SIGNATURE
    for word in words:
        assert word in body["message"]
