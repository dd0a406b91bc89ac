"""The rail that a process opens in a world: the service's own code, and beyond it the world's weather and chain.

Invariant: every question to the chain goes through the weather, so that its way there and back can be slow, be lost or
be the last thing that a process does; nothing here remembers anything, because a process that comes back has nothing.
"""

from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from spawn.domain.settlements import LOOK_S
from spawn.evm.node import Block, CallReverted, Log, Node, NodeUnavailable, Receipt, SendRefused, Underpriced
from spawn.payments.arrivals import Arrived, ChainArrivals
from spawn.payments.cdp import CDP_HOST, CdpKey
from spawn.payments.chosen_chain import ChosenChain
from spawn.payments.contract_wallets import ContractWallets
from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Rejected, Settled, SettlementUnclear
from spawn.payments.holdings import TokenHoldings
from spawn.payments.onchain import OnChain
from spawn.payments.remote import RemoteFacilitators
from spawn.rails import Rail, devnet_rail, self_rail
from spawn.store.database import Database
from tests.sim.chain import Ledger
from tests.sim.facilitators import facilitators_of
from tests.sim.sim_node import SimNode
from tests.sim.weather import Fate

if TYPE_CHECKING:
    from tests.sim.process import Process
    from tests.sim.world import World

T = TypeVar("T")

RELAYER_KEYS: Final = ("0x" + "5e" * 32, "0x" + "6f" * 32)
CDP_SECRET: Final = "QUJD" * 21 + "QQ=="
"""Base64 of 64 bytes, as an Ed25519 key of CDP is handed out."""
FIRST: Final = "https://first.test/x402"
SECOND: Final = "https://second.test"
OF_CDP: Final = f"https://{CDP_HOST}/platform/v2/x402"
LOOKS_S: Final = 20.0
"""How often a replica looks what the other one has written of payments, and keeps its lease."""
_LOST: Final = frozenset({Fate.LOST_REQUEST, Fate.DOWN, Fate.REFUSED})


def settings_for(rail: str, random: Random | None = None) -> dict[str, Any]:
    """The settings of a world with this rail; `random` draws those that differ between worlds."""
    draw = random or Random(rail)
    common: dict[str, Any] = {
        "payments": rail,
        "suspense_every_s": draw.choice((10, 30, 300)),
        "suspense_from_block": 0,
        "treasury_every_s": draw.choice((600, 86_400)),
    }
    if rail == "devnet":
        return common
    common |= {
        "rpc_url": "http://node.test",
        "confirmations": draw.choice((1, 2, 2, 3, 5)),
        "suspense_depth": draw.choice((1, 5, 32)),
        "settle_wait_s": draw.choice((2.0, 20.0)),
    }
    if rail == "self":
        return common | {
            "relayer_key": ",".join(RELAYER_KEYS[: draw.choice((1, 1, 2))]),
            "relay_batch_max": draw.choice((1, 3, 50)),
            "relay_alone_from": draw.choice(("0.50", "100.00")),
            "relay_bump_after_s": draw.choice((5, 15)),
        }
    urls = draw.choice(((FIRST,), (FIRST, SECOND), (SECOND, OF_CDP), (OF_CDP, FIRST)))
    cdp = {"cdp_key_id": "key-of-the-simulation", "cdp_key_secret": CDP_SECRET} if OF_CDP in urls else {}
    return (
        common
        | {"x402_facilitator_url": ",".join(urls), "facilitator_timeout_s": draw.choice((4.0, 15.0))}
        | cdp
    )


def sim_rail(world: "World", db: Database, process: "Process | None") -> Rail:
    """The rail of one process; None is one that only looks."""
    chain, settings = world.chain, world.settings
    if chain.node is None:
        assert chain.ledger is not None
        return devnet_rail(DevPort(world, chain.ledger))  # type: ignore[arg-type]  # all that a rail asks of it
    node = ChosenChain(NodePort(world, chain.node), chain.terms)
    if settings.payments == "self":
        holder = "" if process is None else f"process {process.number}"
        # Years of looks five times a second would take as long as years of days.
        look_s = LOOKS_S if world.books.has_replicas else LOOK_S
        return self_rail(settings, db, world.clock, node, holder, look_s=look_s)
    return _remote_rail(world, node)


def _remote_rail(world: "World", node: Node) -> Rail:
    """As `spawn.rails` makes it, with a way of ours to the facilitators."""
    settings, terms = world.settings, world.chain.terms
    cdp = None
    if settings.cdp_key_id:
        entropy = _Entropy(world)
        cdp = CdpKey(settings.cdp_key_id, settings.cdp_key_secret, now=world.clock.now_s, entropy=entropy)
    remote = RemoteFacilitators(
        httpx.AsyncClient(transport=httpx.MockTransport(facilitators_of(world)), trust_env=False),
        settings.facilitator_urls,
        terms,
        OnChain(node, terms, confirmations=settings.confirmations),
        now=world.clock.now_s,
        cdp=cdp,
        timeout_s=settings.facilitator_timeout_s,
        wait_s=settings.settle_wait_s,
    )
    return Rail(
        chain=f"{terms.asset} on {terms.network}",
        facilitator=remote,
        arrivals=ChainArrivals(
            node,
            terms,
            confirmations=max(settings.confirmations, settings.suspense_depth),
            from_block=settings.suspense_from_block,
        ),
        holdings=TokenHoldings(node, terms.asset),
        wallets=ContractWallets(node, terms, world.clock.now_s),
        standings=remote.standings,
    )


class _Entropy:
    """What CDP's tokens need: bytes that no earlier token had."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def bytes(self, count: int, /) -> bytes:
        return self._world.random.randbytes(count)


async def _asked(world: "World", what: str, ask: Callable[[], Awaitable[T]], lost: Exception) -> T:
    """One question to the chain; `lost` is raised where the answer, or the question, was lost."""
    fate = await world.weather.on_the_way("chain", what)
    if fate in _LOST:
        raise lost
    answer: T | None = None
    refusal: Exception | None = None
    try:
        answer = await ask()
    except (CallReverted, SendRefused, NodeUnavailable) as error:
        refusal = error
    world.step(f"chain {what}")
    await world.weather.on_the_way_back("chain", what)
    if fate is Fate.LOST_ANSWER:
        raise lost
    if refusal is not None:
        raise refusal
    return answer  # type: ignore[return-value]  # what `ask` gave, which may be None


class DevPort:
    """The development chain as a process reaches it: a `Facilitator`, its `Arrivals` and `Holdings`."""

    def __init__(self, world: "World", ledger: Ledger) -> None:
        self._world = world
        self._ledger = ledger

    @property
    def name(self) -> str:
        """See `Arrivals.name`."""
        return self._ledger.name

    async def settle(self, payment: ExactPayment) -> Settled | Rejected:
        """See `Facilitator.settle`. The chain's own faults stand for those of the way."""
        self._world.chain.saw(payment)
        fate = await self._world.weather.on_the_way("chain", "settle")
        faults = self._ledger.faults
        faults.lose_request = fate in {Fate.DOWN, Fate.LOST_REQUEST}
        faults.lose_answer = fate is Fate.LOST_ANSWER
        faults.refuse = fate is Fate.REFUSED
        try:
            return await self._ledger.settle(payment)
        finally:
            faults.lose_request = faults.lose_answer = faults.refuse = 0
            self._world.step(f"chain settle, {fate}")
            await self._world.weather.on_the_way_back("chain", "settle")

    async def find(self, payment: ExactPayment) -> Settled | None:
        """See `Facilitator.find`."""
        return await _asked(
            self._world, "find", lambda: self._ledger.find(payment), SettlementUnclear("lost")
        )

    async def is_over(self, payment: ExactPayment) -> bool:
        """See `Facilitator.is_over`."""
        return await _asked(
            self._world, "is over", lambda: self._ledger.is_over(payment), SettlementUnclear("lost")
        )

    async def page(self, cursor: str) -> tuple[tuple[Arrived, ...], str]:
        """See `Arrivals.page`."""
        return await _asked(self._world, "page", lambda: self._ledger.page(cursor), NodeUnavailable("lost"))

    async def balance_of(self, address: Address) -> Usdc:
        """See `Holdings.balance_of`."""
        return await _asked(
            self._world, "balance", lambda: self._ledger.balance_of(address), NodeUnavailable("lost")
        )


class NodePort:
    """A `Node` as a process reaches it."""

    def __init__(self, world: "World", node: SimNode) -> None:
        self._world = world
        self._node = node

    async def chain_id(self) -> int:
        """See `Node.chain_id`; for a while it may be another chain's."""
        if not self._world.calm and self._world.true_s() < self._world.chain.wrong_until:
            return await self._ask("chain id", self._other_id)
        return await self._ask("chain id", self._node.chain_id)

    async def block(self, number: int | None = None) -> Block | None:
        """See `Node.block`."""
        return await self._ask("block", lambda: self._node.block(number))

    async def nonce(self, account: Address) -> int:
        """See `Node.nonce`."""
        return await self._ask("nonce", lambda: self._node.nonce(account))

    async def balance_wei(self, account: Address) -> int:
        """See `Node.balance_wei`."""
        return await self._ask("ether", lambda: self._node.balance_wei(account))

    async def code(self, account: Address) -> bytes:
        """See `Node.code`."""
        return await self._ask("code", lambda: self._node.code(account))

    async def call(
        self,
        to: Address,
        data: bytes,
        *,
        sender: Address | None = None,
        gas: int | None = None,
        block: int | None = None,
    ) -> bytes:
        """See `Node.call`."""
        return await self._ask("call", lambda: self._node.call(to, data, sender=sender, gas=gas, block=block))

    async def priority_fee_wei(self) -> int:
        """See `Node.priority_fee_wei`."""
        return await self._ask("tip", self._node.priority_fee_wei)

    async def send(self, raw: bytes) -> None:
        """See `Node.send`. A refusal has no reason, or one of many."""
        fate = await self._world.weather.on_the_way("chain", "send")
        if fate is Fate.REFUSED:
            raise self._world.random.choice((Underpriced, SendRefused))("refused by the weather")
        if fate in _LOST:
            raise NodeUnavailable("the request was lost")
        refusal: Exception | None = None
        try:
            await self._node.send(raw)
        except (SendRefused, NodeUnavailable) as error:
            refusal = error
        self._world.step(f"chain send, {type(refusal).__name__}")
        await self._world.weather.on_the_way_back("chain", "send")
        if fate is Fate.LOST_ANSWER:
            raise NodeUnavailable("the answer was lost")
        if refusal is not None:
            raise refusal

    async def receipts(self, transactions: tuple[str, ...]) -> tuple[Receipt | None, ...]:
        """See `Node.receipts`."""
        return await self._ask("receipts", lambda: self._node.receipts(transactions))

    async def logs(
        self,
        address: Address,
        topics: tuple[bytes | tuple[bytes, ...] | None, ...],
        *,
        first_block: int,
        last_block: int,
    ) -> tuple[Log, ...]:
        """See `Node.logs`."""
        return await self._ask(
            "logs",
            lambda: self._node.logs(address, topics, first_block=first_block, last_block=last_block),
        )

    async def _other_id(self) -> int:
        return 1

    async def _ask(self, what: str, ask: Callable[[], Awaitable[T]]) -> T:
        return await _asked(self._world, what, ask, NodeUnavailable("the answer was lost"))
