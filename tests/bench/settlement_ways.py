"""Ways to bring payments to a chain: ours, and what others do or would.

Invariant: a way returns when the chain has mined all of its payments; nothing is signed, fetched or imported for the
first time while the clock runs that a running service would have done before.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
from eth_account import Account
from eth_typing import ChecksumAddress
from web3 import AsyncHTTPProvider, AsyncWeb3
from x402 import x402Facilitator
from x402.mechanisms.evm.constants import TRANSFER_WITH_AUTHORIZATION_VRS_ABI
from x402.mechanisms.evm.exact.register import register_exact_evm_facilitator
from x402.mechanisms.evm.signers import FacilitatorWeb3Signer
from x402.schemas import PaymentPayload, PaymentRequirements

from spawn.clock import SystemClock, SystemEntropy
from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Settled
from spawn.rails import open_rail
from spawn.services.relayer import Relayer
from spawn.settings import Settings
from spawn.store.migrate import migrate
from spawn.store.sqlite import SqliteDatabase
from tests.anvil import RELAYER_KEYS, Chain
from tests.payments import PAYEE, TERMS

Settle: TypeAlias = Callable[[Sequence[ExactPayment]], Coroutine[Any, Any, None]]

_KEY: Final = RELAYER_KEYS[0]
_GAS: Final = 150_000
_TIP_WEI: Final = 10**9
_FEE_WEI: Final = 5 * 10**9
_POLL_S: Final = 0.002
"""How often web3.py looks for a receipt: its default of 0.1 s would be most of what is measured."""
_END_S: Final = 120
"""After which a way is given up."""


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """`payments` is how many a round of it takes at most: the slow ones would take minutes."""

    name: str
    what: str
    payments: int
    open: Callable[[Chain], Any]


@asynccontextmanager
async def open_relayer(chain: Chain, **changes: Any) -> AsyncIterator[Relayer]:
    """Our relayer on this chain, not started, as the service makes it from settings (`changes` are to those)."""
    with tempfile.TemporaryDirectory(prefix="spawn-settle-") as folder:
        path = Path(folder) / "spawn.db"
        settings = Settings(
            database_url=f"sqlite:///{path}",
            payments="self",
            rpc_url=chain.url,
            relayer_key=_KEY,
            x402_pay_to=PAYEE,
            **changes,
        )
        migrate(settings.database_url)
        async with AsyncExitStack() as opened:
            db = await SqliteDatabase.open(path)
            opened.push_async_callback(db.close)
            rail = open_rail(settings, db, SystemClock(), SystemEntropy(), opened)
            assert rail.relayer is not None
            yield rail.relayer


def ours(in_flight: int) -> Callable[[Chain], Any]:
    """The relayer as a service runs it: so many callers, each of whom settles the next payment after its last."""

    @asynccontextmanager
    async def opened(chain: Chain) -> AsyncIterator[Settle]:
        async with open_relayer(chain) as relayer:
            await relayer.start()

            async def caller(payments: Iterator[ExactPayment]) -> None:
                for payment in payments:
                    outcome = await relayer.settle(payment)
                    assert isinstance(outcome, Settled), outcome

            async def settle(payments: Sequence[ExactPayment]) -> None:
                turns = iter(payments)
                async with asyncio.timeout(_END_S), asyncio.TaskGroup() as callers:
                    for _ in range(in_flight):
                        callers.create_task(caller(turns))

            try:
                yield settle
            finally:
                await relayer.stop()

    return opened


@asynccontextmanager
async def web3_estimated(chain: Chain) -> AsyncIterator[Settle]:
    """One by one as web3.py's documentation has it: the nonce, fees and gas are asked for each."""
    async with _web3(chain) as web3:
        account = Account.from_key(_KEY)
        token = web3.eth.contract(
            address=web3.to_checksum_address(chain.token), abi=TRANSFER_WITH_AUTHORIZATION_VRS_ABI
        )

        async def settle(payments: Sequence[ExactPayment]) -> None:
            for payment in payments:
                call = token.functions.transferWithAuthorization(*_arguments(payment))
                nonce = await web3.eth.get_transaction_count(account.address)
                built = await call.build_transaction({"from": account.address, "nonce": nonce})
                await _send(web3, bytes(account.sign_transaction(built).raw_transaction))

        yield settle


@asynccontextmanager
async def web3_fixed(chain: Chain) -> AsyncIterator[Settle]:
    """One by one, asking for nothing that can be known: fixed gas and fees, and a nonce that we count."""
    async with _web3(chain) as web3:
        account = Account.from_key(_KEY)
        address: ChecksumAddress = web3.to_checksum_address(chain.token)
        token = web3.eth.contract(address=address, abi=TRANSFER_WITH_AUTHORIZATION_VRS_ABI)
        nonces = count(await web3.eth.get_transaction_count(account.address))

        async def settle(payments: Sequence[ExactPayment]) -> None:
            for payment in payments:
                signed = account.sign_transaction(
                    {
                        "chainId": chain.chain_id,
                        "nonce": next(nonces),
                        "to": address,
                        "value": 0,
                        "data": token.encode_abi("transferWithAuthorization", _arguments(payment)),
                        "gas": _GAS,
                        "maxFeePerGas": _FEE_WEI,
                        "maxPriorityFeePerGas": _TIP_WEI,
                    }
                )
                await _send(web3, bytes(signed.raw_transaction))

        yield settle


@asynccontextmanager
async def x402_facilitator(chain: Chain) -> AsyncIterator[Settle]:
    """PyPI x402's own, in this process: nothing is spent on HTTP between it and who asks it."""
    signer = FacilitatorWeb3Signer(_KEY, chain.url)
    facilitator = register_exact_evm_facilitator(x402Facilitator(), signer, TERMS.network)

    async def settle(payments: Sequence[ExactPayment]) -> None:
        for payment in payments:
            answer = await facilitator.settle(*_envelope(payment))
            assert answer.success, answer

    yield settle


def ways(*, payments: int, in_flight: int) -> tuple[Way, ...]:
    """Ours first; the others settle as many as they do in about two seconds."""
    return (
        Way(
            name="spawn",
            what=f"our relayer, one key, batches of 50, {in_flight} in flight; every step stored before the next",
            payments=payments,
            open=ours(in_flight),
        ),
        Way(
            name="web3.py",
            what="one by one: build, estimate, sign, send, wait",
            payments=min(100, payments),
            open=web3_estimated,
        ),
        Way(
            name="web3.py, fixed",
            what="one by one with fixed gas and a nonce counted here",
            payments=min(200, payments),
            open=web3_fixed,
        ),
        Way(
            name="x402 facilitator",
            what="PyPI x402's facilitator, in process: verify, simulate, sign, send, wait",
            payments=min(20, payments),
            open=x402_facilitator,
        ),
    )


@asynccontextmanager
async def _web3(chain: Chain) -> "AsyncIterator[AsyncWeb3[AsyncHTTPProvider]]":
    provider = AsyncHTTPProvider(chain.url)
    web3 = AsyncWeb3(provider)
    try:
        await web3.eth.chain_id
        yield web3
    finally:
        await provider.disconnect()


async def _send(web3: "AsyncWeb3[AsyncHTTPProvider]", raw: bytes) -> None:
    sent = await web3.eth.send_raw_transaction(raw)
    receipt = await web3.eth.wait_for_transaction_receipt(sent, timeout=_END_S, poll_latency=_POLL_S)
    assert receipt["status"] == 1, receipt


def _arguments(payment: ExactPayment) -> tuple[Any, ...]:
    signature = bytes.fromhex(payment.signature[2:])
    return (
        AsyncWeb3.to_checksum_address(payment.payer),
        AsyncWeb3.to_checksum_address(payment.pay_to),
        payment.value,
        payment.valid_after,
        payment.valid_before,
        bytes.fromhex(payment.nonce[2:]),
        signature[64],
        signature[:32],
        signature[32:64],
    )


def _envelope(payment: ExactPayment) -> tuple[PaymentPayload, PaymentRequirements]:
    """The payment as a resource server hands it to a facilitator."""
    offer = {
        "scheme": "exact",
        "network": TERMS.network,
        "amount": str(payment.value),
        "asset": TERMS.asset,
        "payTo": payment.pay_to,
        "maxTimeoutSeconds": TERMS.max_timeout_s,
        "extra": {"name": TERMS.asset_name, "version": TERMS.asset_version},
    }
    # As its own clients write them: it hands both on to web3.py, which takes no other form.
    payer, payee = map(AsyncWeb3.to_checksum_address, (payment.payer, payment.pay_to))
    authorization = {
        "from": payer,
        "to": payee,
        "value": str(payment.value),
        "validAfter": str(payment.valid_after),
        "validBefore": str(payment.valid_before),
        "nonce": payment.nonce,
    }
    payload = {
        "x402Version": 2,
        "accepted": offer,
        "payload": {"signature": payment.signature, "authorization": authorization},
    }
    return PaymentPayload.model_validate(payload), PaymentRequirements.model_validate(offer)
