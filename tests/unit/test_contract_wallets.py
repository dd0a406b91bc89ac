"""A payer with code pays when its code says so and only then; what strangers can make us ask the node is bounded."""

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
from eth_abi.abi import decode, encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address
from spawn_schemas.x402 import Reason

from spawn.evm.node import CallReverted, Node, NodeUnavailable
from spawn.payments.contract_wallets import (
    GAS_MAX,
    NO_S,
    REMEMBERED_MAX,
    SIGNATURE_MAX_BYTES,
    WAITING_MAX,
    YES_S,
    ContractWallets,
    is_valid_signature_call,
)
from spawn.payments.curve import keccak256, recover
from spawn.payments.exact import ExactPayment, NotByOwnKey, PaymentInvalid, digest, require_signature
from tests.payments import NOW, TERMS, authorize

OWNER: LocalAccount = Account.from_key("0x" + "11" * 32)
OTHER: LocalAccount = Account.from_key("0x" + "22" * 32)
WALLET = Address("0x" + "c0de" * 10)
DELEGATED = Address(OWNER.address.lower())
MAGIC = bytes.fromhex("1626ba7e")
YES = MAGIC + bytes(28)

Contract = Callable[[bytes, bytes], bytes]
"""Digest and signature to what the contract returns."""


def owned(digest: bytes, signature: bytes) -> bytes:
    """A wallet whose owner signs for it."""
    try:
        return YES if recover(digest, signature) == OWNER.address.lower() else bytes(32)
    except ValueError:
        raise CallReverted from None


class Chain:
    """The two questions that a node is asked, and how often it was."""

    def __init__(self) -> None:
        self.contracts: dict[Address, Contract] = {}
        self.is_up = True
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def code(self, account: Address) -> bytes:
        await self._answer("code")
        if account in self.contracts and account == DELEGATED:
            return bytes.fromhex("ef0100") + bytes(20)
        return b"\x60" if account in self.contracts else b""

    async def call(
        self, to: Address, data: bytes, *, sender: Address | None = None, gas: int | None = None
    ) -> bytes:
        await self._answer("call")
        assert gas == GAS_MAX
        assert sender == TERMS.asset  # a wallet may look at who asks
        assert data[:4] == keccak256(b"isValidSignature(bytes32,bytes)")[:4] == MAGIC
        digest, signature = decode(["bytes32", "bytes"], data[4:])
        return self.contracts[to](digest, signature)

    async def _answer(self, question: str) -> None:
        self.asked.append(question)
        await self.gate.wait()
        if not self.is_up:
            raise NodeUnavailable


class World:
    """One verifier before one chain."""

    def __init__(self) -> None:
        self.now = NOW
        self.chain = Chain()
        self.wallets = ContractWallets(cast("Node", self.chain), TERMS, lambda: self.now)

    async def refusal(self, payment: ExactPayment) -> str:
        with pytest.raises(PaymentInvalid) as caught:
            await self.wallets.verify(payment)
        assert caught.value.reason is Reason.SIGNATURE
        return caught.value.message

    async def later(self, payment: ExactPayment) -> SpawnError:
        with pytest.raises(SpawnError) as caught:
            await self.wallets.verify(payment)
        assert caught.value.code is Code.OVERLOADED
        assert caught.value.retry_after_s
        return caught.value


@pytest.fixture
def world() -> World:
    return World()


def by_owner(nonce: int = 0, *, payer: Address = WALLET) -> ExactPayment:
    return authorize(OWNER, value=1_000, nonce=nonce, payer=payer)


def with_signature(payment: ExactPayment, signature: bytes) -> ExactPayment:
    return replace(payment, signature="0x" + signature.hex())


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200))
def test_the_call_is_what_the_abi_makes_of_it(hashed: bytes, signature: bytes) -> None:
    expected = MAGIC + encode(["bytes32", "bytes"], [hashed, signature])
    assert is_valid_signature_call(hashed, signature) == expected


def test_the_pure_check_hands_on_what_is_not_by_the_payers_key() -> None:
    for payment in (by_owner(), with_signature(by_owner(), b""), with_signature(by_owner(), bytes(65))):
        with pytest.raises(NotByOwnKey) as caught:
            require_signature(payment, TERMS)
        assert caught.value.payment is payment
        assert caught.value.reason is Reason.SIGNATURE


async def test_a_wallet_pays_with_what_its_owner_signed(world: World) -> None:
    world.chain.contracts[WALLET] = owned
    await world.wallets.verify(by_owner())
    assert world.chain.asked == ["code", "call"]
    assert "does not approve" in await world.refusal(authorize(OTHER, value=1_000, payer=WALLET))


async def test_the_wallet_sees_the_digest_and_the_signature_as_they_are(world: World) -> None:
    heard: list[tuple[bytes, bytes]] = []

    def listens(digest: bytes, signature: bytes) -> bytes:
        heard.append((digest, signature))
        return YES

    world.chain.contracts[WALLET] = listens
    for signature in (b"", b"\x01", bytes(range(256))):
        await world.wallets.verify(with_signature(by_owner(), signature))
        assert heard.pop() == (digest(by_owner(), TERMS), signature)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        MAGIC,  # not a whole word
        bytes(32),
        bytes(28) + MAGIC,
        MAGIC + bytes(27) + b"\x01",  # the token compares the word, not its first four bytes
        (1).to_bytes(32, "big"),
    ],
)
async def test_only_the_magic_value_is_a_yes(world: World, answer: bytes) -> None:
    world.chain.contracts[WALLET] = lambda _digest, _signature: answer
    await world.refusal(by_owner())


async def test_what_follows_the_magic_value_is_no_matter(world: World) -> None:
    world.chain.contracts[WALLET] = lambda _digest, _signature: YES + b"\x01" * 64
    await world.wallets.verify(by_owner())


async def test_a_delegated_account_is_asked_even_for_its_own_keys_signature(world: World) -> None:
    """As the token does it: no falling back to the key (EIP-7702, SignatureChecker)."""
    own = by_owner(payer=DELEGATED)
    world.chain.contracts[DELEGATED] = owned
    await world.wallets.verify(own)
    world.now += YES_S
    world.chain.contracts[DELEGATED] = lambda _digest, _signature: bytes(32)
    await world.refusal(own)


async def test_an_account_without_code_has_its_key_only(world: World) -> None:
    await world.wallets.verify(by_owner(payer=Address(OWNER.address.lower())))
    assert "is not by" in await world.refusal(by_owner())
    assert "65 bytes, not 3" in await world.refusal(with_signature(by_owner(), b"abc"))
    assert "call" not in world.chain.asked


async def test_an_undeployed_wallet_is_told_to_deploy_and_then_to_take_the_wrapper_off(world: World) -> None:
    inner = bytes.fromhex(by_owner().signature[2:])
    wrapped = with_signature(
        by_owner(),
        encode(["address", "bytes", "bytes"], [WALLET, b"deploy", inner]) + bytes.fromhex("6492" * 16),
    )
    assert "Deploy it" in await world.refusal(wrapped)
    world.chain.contracts[WALLET] = owned
    world.now += NO_S
    assert "without the ERC-6492 wrapper" in await world.refusal(wrapped)
    await world.wallets.verify(by_owner())


async def test_a_signature_that_costs_too_much_gas_is_refused_unasked(world: World) -> None:
    world.chain.contracts[WALLET] = lambda _digest, _signature: YES
    await world.wallets.verify(with_signature(by_owner(), bytes(SIGNATURE_MAX_BYTES)))
    world.chain.asked.clear()
    assert "costs too much" in await world.refusal(with_signature(by_owner(), bytes(SIGNATURE_MAX_BYTES + 1)))
    assert world.chain.asked == []


async def test_forged_payments_of_one_account_cost_one_question(world: World) -> None:
    for number in range(100):
        await world.refusal(authorize(OTHER, value=1_000, nonce=number, payer=WALLET))
    assert world.chain.asked == ["code"]


async def test_the_same_payment_is_asked_about_once_a_minute(world: World) -> None:
    world.chain.contracts[WALLET] = owned
    for _ in range(3):
        await world.wallets.verify(by_owner())
        await world.refusal(authorize(OTHER, value=1_000, payer=WALLET))
    assert world.chain.asked == ["code", "call", "call"]
    await world.wallets.verify(by_owner(1))
    assert world.chain.asked == ["code", "call", "call", "call"]


async def test_an_approval_that_is_taken_back_counts_no_longer_than_it_is_remembered(world: World) -> None:
    world.chain.contracts[WALLET] = owned
    await world.wallets.verify(by_owner())
    world.chain.contracts[WALLET] = lambda _digest, _signature: bytes(32)
    world.now += YES_S - 1
    await world.wallets.verify(by_owner())
    await world.refusal(by_owner(1))
    world.now += 1
    await world.refusal(by_owner())


async def test_a_refusal_is_forgotten_sooner_because_it_can_be_mended(world: World) -> None:
    world.chain.contracts[WALLET] = lambda _digest, _signature: bytes(32)
    await world.refusal(by_owner())
    world.chain.contracts[WALLET] = owned
    world.now += NO_S - 1
    await world.refusal(by_owner())
    world.now += 1
    await world.wallets.verify(by_owner())


async def test_what_is_remembered_is_bounded_and_the_oldest_goes_first(world: World) -> None:
    first, second = (Address(f"0x{number:040x}") for number in (1, 2))
    for account in (first, second, first):
        assert not await world.wallets.has_code(account)
    for number in range(3, REMEMBERED_MAX + 2):
        await world.wallets.has_code(Address(f"0x{number:040x}"))
    world.chain.asked.clear()
    await world.wallets.has_code(first)
    assert world.chain.asked == []
    await world.wallets.has_code(second)
    assert world.chain.asked == ["code"]


async def test_a_node_that_is_down_is_no_verdict(world: World) -> None:
    world.chain.contracts[WALLET] = owned
    world.chain.is_up = False
    assert "Nothing was charged" in str((await world.later(by_owner())).next)
    world.chain.is_up = True
    await world.wallets.verify(by_owner())


async def test_no_more_than_some_payments_wait_for_the_node(world: World) -> None:
    world.chain.contracts[WALLET] = owned
    world.chain.gate.clear()
    waiting = [asyncio.create_task(world.wallets.verify(by_owner(number))) for number in range(WAITING_MAX)]
    await asyncio.sleep(0)
    assert len(world.chain.asked) == WAITING_MAX
    await world.later(by_owner())
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    world.chain.gate.set()
    await world.wallets.verify(by_owner())
    await asyncio.gather(*waiting[1:])
