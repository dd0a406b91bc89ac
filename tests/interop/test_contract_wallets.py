"""Wallets with code on a real chain: what we let through the token takes, and what we refuse it refuses as well."""

import time
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from eth_abi.abi import encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from msgspec.structs import replace
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address, parse_address
from spawn_schemas.x402 import Reason

from spawn.evm.web3_node import Web3Node
from spawn.payments.contract_wallets import NO_S, YES_S, ContractWallets
from spawn.payments.exact import ExactPayment, NotByOwnKey, PaymentInvalid, require_signature
from tests.anvil import Chain, anvil, transfer_data
from tests.payments import PAYEE, TERMS, authorize

OWNER: LocalAccount = Account.from_key("0x" + "11" * 32)
NEXT_OWNER: LocalAccount = Account.from_key("0x" + "22" * 32)
OWN: Address = parse_address(OWNER.address)
VALUE = 1_000


@pytest.fixture
def chain() -> Iterator[Chain]:
    with anvil() as running:
        yield running


class Till:
    """We, at a chain: verify as the gate does, and settle as anybody may."""

    def __init__(self, chain: Chain, node: Web3Node) -> None:
        self.chain = chain
        self.now = int(time.time())
        self.wallets = ContractWallets(node, TERMS, lambda: self.now)
        self._nonce = 0

    def sign(self, account: LocalAccount, payer: Address) -> ExactPayment:
        self._nonce += 1
        return authorize(account, value=VALUE, nonce=self._nonce, payer=payer, valid_before=self.now + 300)

    def token_takes(self, payment: ExactPayment) -> bool:
        before = self.chain.balance(PAYEE)
        self.chain.fund(payment.payer, VALUE)
        taken = self.chain.succeeded(self.chain.submit(payment, key=self.chain.relayer_keys[0]))
        assert (self.chain.balance(PAYEE) - before == VALUE) is taken
        return taken

    async def accepts(self, payment: ExactPayment) -> None:
        """The contract decides, and the token agrees with us."""
        await self.wallets.verify(payment)
        assert self.token_takes(payment)

    async def refuses(self, payment: ExactPayment) -> str:
        with pytest.raises(PaymentInvalid) as caught:
            await self.wallets.verify(payment)
        assert caught.value.reason is Reason.SIGNATURE
        assert not self.token_takes(payment)
        return caught.value.message

    def later(self) -> None:
        """What was known of wallets is forgotten."""
        self.now += YES_S


@pytest_asyncio.fixture
async def till(chain: Chain) -> AsyncIterator[Till]:
    node = Web3Node(chain.url, timeout_s=10)
    yield Till(chain, node)
    await node.close()


def long(payment: ExactPayment) -> ExactPayment:
    """The same approval as wallets with several keys write it: whose signature it is comes first."""
    return replace(payment, signature="0x" + OWN[2:] + payment.signature[2:])


async def test_a_contract_wallet_pays_by_both_overloads_until_it_has_another_owner(till: Till) -> None:
    wallet = till.chain.deploy_wallet(OWN)
    for payment in (till.sign(OWNER, wallet), long(till.sign(OWNER, wallet))):
        with pytest.raises(NotByOwnKey):
            require_signature(payment, TERMS)
        await till.accepts(payment)
    assert "does not approve" in await till.refuses(till.sign(NEXT_OWNER, wallet))

    till.chain.set_owner(wallet, parse_address(NEXT_OWNER.address))
    till.later()
    await till.refuses(till.sign(OWNER, wallet))
    await till.refuses(long(till.sign(OWNER, wallet)))
    await till.accepts(till.sign(NEXT_OWNER, wallet))


async def test_an_approval_taken_back_before_it_settles_moves_nothing(till: Till) -> None:
    """We remember the approval of one payment for a minute; the chain does not, and has the last word."""
    wallet = till.chain.deploy_wallet(OWN)
    payment = till.sign(OWNER, wallet)
    await till.wallets.verify(payment)
    till.chain.set_owner(wallet, parse_address(NEXT_OWNER.address))
    await till.wallets.verify(payment)
    assert not till.token_takes(payment)
    till.later()
    await till.refuses(payment)


async def test_a_delegated_account_pays_until_its_code_has_another_owner(till: Till) -> None:
    till.chain.delegate(OWNER)
    await till.accepts(till.sign(OWNER, OWN))
    await till.accepts(long(till.sign(OWNER, OWN)))

    till.chain.set_owner(OWN, parse_address(NEXT_OWNER.address))
    till.later()
    await till.accepts(till.sign(NEXT_OWNER, OWN))
    revoked = till.sign(OWNER, OWN)
    await till.refuses(revoked)
    require_signature(revoked, TERMS)  # its own key signed: only the chain can tell, and a simulation asks it


async def test_an_account_that_was_delegated_has_its_key_again(till: Till) -> None:
    till.chain.delegate(OWNER)
    await till.accepts(long(till.sign(OWNER, OWN)))
    till.chain.undelegate(OWNER)
    till.later()
    assert "85" in await till.refuses(long(till.sign(OWNER, OWN)))
    await till.accepts(till.sign(OWNER, OWN))


async def test_a_wallet_pays_once_it_is_deployed_and_its_signature_unwrapped(till: Till) -> None:
    """Until then the token takes it for an ordinary account (ERC-6492 means nothing to it)."""
    snapshot = till.chain.snapshot()
    wallet = till.chain.deploy_wallet(OWN)
    till.chain.revert(snapshot)
    bare = till.sign(OWNER, wallet)
    wrapper = encode(["address", "bytes", "bytes"], [wallet, b"create", bytes.fromhex(bare.signature[2:])])
    wrapped = replace(bare, signature="0x" + wrapper.hex() + "6492" * 16)
    assert "Deploy it" in await till.refuses(wrapped)

    assert till.chain.deploy_wallet(OWN) == wallet
    till.now += NO_S
    assert "without the ERC-6492 wrapper" in await till.refuses(wrapped)
    await till.accepts(bare)


async def test_a_contract_that_is_no_wallet_approves_nothing(till: Till) -> None:
    """Its call is reverted, or answers something else: the token itself, the batcher, and code that is no code."""
    nonsense = Address("0x" + "0bad" * 10)
    till.chain.ask("anvil_setCode", nonsense, "0x00")  # stops, with no answer
    for account in (till.chain.token, till.chain.multicall, nonsense):
        await till.refuses(till.sign(OWNER, account))


@pytest.mark.parametrize(
    "code",
    ["fe", "5b600056", "50", "63ffffffff6000f3"],
    ids=["invalid", "endless", "no stack", "long answer"],
)
async def test_code_that_halts_is_a_refusal_and_not_a_node_that_is_down(till: Till, code: str) -> None:
    account = Address("0x" + "0bad" * 10)
    till.chain.ask("anvil_setCode", account, f"0x{code}")
    await till.refuses(till.sign(OWNER, account))


async def test_no_verdict_without_the_chain(till: Till) -> None:
    wallet = till.chain.deploy_wallet(OWN)
    payment = till.sign(OWNER, wallet)
    till.chain.stop()
    with pytest.raises(SpawnError) as caught:
        await till.wallets.verify(payment)
    assert caught.value.code is Code.OVERLOADED
    assert caught.value.retry_after_s
    till.chain.start()
    await till.accepts(payment)


def test_the_overload_is_chosen_by_the_length_of_the_signature(till: Till) -> None:
    payment = till.sign(OWNER, OWN)
    assert transfer_data(payment)[:4] != transfer_data(long(payment))[:4]
