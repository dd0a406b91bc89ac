"""The chain of one world, whichever rail it has: money, strangers, and what really happened.

Invariant: it outlives every process and believes none; `moved` tells what can never be taken back any more, read from
the chain's own log and from nothing that the service says.
"""

from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

from spawn_schemas.ids import Address
from spawn_schemas.money import MAX_USDC, Usdc

from spawn.evm.eip3009 import AUTHORIZATION_USED, TRANSFER, address_topic
from spawn.evm.node import Receipt
from spawn.evm.transactions import address_of
from spawn.payments import devnet
from spawn.payments.devnet import DevChain, DevnetFaults
from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Settled
from spawn.rails import x402_terms
from tests.fake_node import MULTICALL
from tests.sim.facilitators import Facilitator
from tests.sim.sim_node import SimNode

if TYPE_CHECKING:
    from tests.sim.world import World

T = TypeVar("T")

ETHER_WEI: Final = 10**18
ELSEWHERE: Final = "0x" + "e1" * 20
"""Whoever else customers do business with."""
SEEN_MAX: Final = 64
"""So many authorizations strangers keep in mind."""
SELECT_MOVED: Final = """
SELECT t.seq, t.tx_hash, t.sender, t.amount, a.nonce FROM transfer t
LEFT JOIN authorization_state a ON a.tx_hash = t.tx_hash
WHERE t.seq > :seq AND t.recipient = :pay_to AND t.sender <> :pay_to AND t.amount > 0 ORDER BY t.seq
"""


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Money that reached us for good, in micro-USDC; `nonce` of the authorization, None for an ordinary transfer."""

    number: int
    payer: str
    nonce: str | None
    amount: int
    transaction: str


class Ledger(DevChain):
    """The development chain without its thread: its SQL runs where it is asked for."""

    def __init__(self, world: "World") -> None:
        self._terms = x402_terms(world.settings)
        self._now = world.true_s
        self._faults = DevnetFaults()
        self._db = devnet._open(Path(":memory:"), 0.0)

    @property
    def faults(self) -> DevnetFaults:
        """What goes wrong next."""
        return self._faults

    def moved(self, seq: int) -> list[Any]:
        """What reached us after this place in the log."""
        return self._db.execute(SELECT_MOVED, {"seq": seq, "pay_to": self._terms.pay_to}).fetchall()

    def close(self) -> None:
        self._db.close()

    async def _run(self, work: Any) -> Any:
        return work(self._db)


class SimChain:
    """`node` on the rails that have one, else `ledger`."""

    def __init__(self, world: "World") -> None:
        self._world = world
        settings = world.settings
        self.terms = x402_terms(settings)
        self.ledger: Ledger | None = None
        self.node: SimNode | None = None
        if settings.payments == "devnet":
            self.ledger = Ledger(world)
        else:
            self.node = SimNode(self.terms, now=world.true_s, tell=world.step)
            if world.random.random() < 0.1:
                del self.node.codes[MULTICALL]
        self.relayers = tuple(address_of(key) for key in settings.relayer_keys)
        for account in self.relayers:
            self._give_ether(account, ETHER_WEI)
        self.foreign_nonces: dict[str, int] = {}
        """How many nonces of a relayer others may have used."""
        self.wrong_until = 0
        """Until when (true seconds) who asks the node is sent to another chain's."""
        self.people: dict[str, None] = {}
        """Who was given money: customers, and who passes by."""
        self.seen: dict[tuple[str, str], ExactPayment] = {}
        """Authorizations that strangers saw, the newest last."""
        self.moved: list[Moved] = []
        """What is final, in the chain's order; see `look`."""
        self.by_transaction: dict[str, list[Moved]] = {}
        self.final_usdc = 0
        self._read = 0
        self._strangers = 0
        self._contracts = 0
        self._facilitators: dict[str, Facilitator] = {}

    # --- money ----------------------------------------------------------------------------------------------------

    def fund(self, address: str, usdc: int) -> None:
        """Give somebody so many micro-USDC."""
        self.people[address] = None
        if self.node is not None:
            self.node.fund(address, usdc)
        elif self.ledger is not None:
            at_once(self.ledger.mint(Address(address), Usdc(min(usdc, MAX_USDC))))

    def balance_usdc(self, address: str) -> int:
        """What the account has in the newest block."""
        if self.node is not None:
            return self.node.balance(address)
        return at_once(self._dev.balance_of(Address(address)))

    def give(self, sender: str, amount: int) -> None:
        """An ordinary transfer to us, as any wallet can make; nothing if it is not covered."""
        if self.node is not None:
            self.node.give(sender, self.terms.pay_to, amount)
        elif self.balance_usdc(sender) >= amount:
            at_once(self._dev.send(Address(sender), self.terms.pay_to, Usdc(amount)))
            self._world.step("chain: a transfer")

    def count_contract(self) -> int:
        """The number of the next wallet with code."""
        self._contracts += 1
        return self._contracts

    def spend(self, address: str, amount: int) -> None:
        """The account pays somebody else."""
        if self.node is not None:
            self.node.give(address, ELSEWHERE, amount)
        elif self.balance_usdc(address) >= amount:
            at_once(self._dev.send(Address(address), Address(ELSEWHERE), Usdc(amount)))
            self._world.step("chain: a transfer to somebody else")

    def stranger(self) -> str:
        """Somebody new, who has some money."""
        self._strangers += 1
        address = f"0x57{self._strangers:038x}"
        self.fund(address, 10_000_000)
        return address

    # --- authorizations ---------------------------------------------------------------------------------------------

    def saw(self, payment: ExactPayment) -> None:
        """Strangers see this authorization: in a pool, in a log, over a shoulder."""
        self.seen.pop((payment.payer, payment.nonce), None)
        self.seen[payment.payer, payment.nonce] = payment
        while len(self.seen) > SEEN_MAX:
            del self.seen[next(iter(self.seen))]

    def bring(self, payment: ExactPayment) -> str | None:
        """Submit it; the transaction's hash, None where the token refuses."""
        if self.node is not None:
            return self.node.bring(payment)
        outcome = at_once(self._dev.settle(payment))
        self._world.step(f"chain: an authorization, {type(outcome).__name__}")
        return outcome.transaction if isinstance(outcome, Settled) else None

    def cancel(self, payer: str, nonce: str) -> None:
        """The payer cancels an authorization."""
        if self.node is not None:
            self.node.annul(payer, nonce)
        else:
            at_once(self._dev.cancel(Address(payer), nonce))
            self._world.step("chain: a cancellation")

    def is_spent(self, payment: ExactPayment) -> bool:
        """Whether the nonce was used or cancelled, as the newest block has it."""
        return self.node is not None and self.node.is_spent(payment)

    def stands_by(self, payment: ExactPayment) -> bool:
        """Whether the token would take the signature."""
        return self.node is None or self.node.stands_by(payment)

    def facilitator(self, host: str) -> Facilitator:
        """The facilitator at this host."""
        return self._facilitators.setdefault(host, Facilitator(self._world, host))

    # --- the chain's own ----------------------------------------------------------------------------------------------

    def deploy(self, account: str, owner: str) -> bool:
        """Put code at an account that stands by what the owner's key signs; False where a chain knows no code."""
        if self.node is None:
            return False
        self.node.deploy(account, owner)
        return True

    @property
    def deepest_reorg(self) -> int:
        """How many blocks may be taken back without touching what has as many as we ask for."""
        if self.node is None:
            return 0
        return min(self._world.settings.confirmations - 1, self.node.height - 1)

    def use_key(self, random: Random) -> Address:
        """One of the relayers, whose nonce somebody else is going to use."""
        account = random.choice(self.relayers)
        self.foreign_nonces[account] = self.foreign_nonces.get(account, 0) + 1
        return account

    def fill_up(self) -> None:
        """Somebody sends ether to the relayers that have none."""
        for account in self.relayers:
            if self.node is not None and self.node.ether_wei(account) < ETHER_WEI // 2:
                self._give_ether(account, ETHER_WEI)

    def relax(self) -> None:
        """Calm: the chain does what it should."""
        self.wrong_until = 0
        self.fill_up()
        if self.node is not None:
            self.node.relax()

    # --- what is true -------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Bring `moved` up to what cannot be taken back now."""
        if self.node is None:
            for row in self._dev.moved(self._read):
                self._read = row["seq"]
                self._keep(row["sender"], row["nonce"], row["amount"], row["tx_hash"])
            return
        while self._read <= self.node.height - self._world.settings.confirmations + 1:
            for receipt in self.node.receipts_in(self._read):
                self._keep_receipt(receipt)
            self._read += 1

    @property
    def is_still(self) -> bool:
        """Whether everything that was submitted is final."""
        if self.node is None:
            return True
        deep = max(self._world.settings.confirmations, self._world.settings.suspense_depth)
        blocks = range(max(0, self.node.height - deep + 2), self.node.height + 1)
        return not self.node.pending and not any(self.node.receipts_in(number) for number in blocks)

    def _keep_receipt(self, receipt: Receipt) -> None:
        nonce: str | None = None
        for log in receipt.logs:
            if log.topics[0] == AUTHORIZATION_USED:
                nonce = "0x" + log.topics[2].hex()
                continue
            if log.topics[0] == TRANSFER and log.topics[2] == address_topic(self.terms.pay_to):
                payer, amount = "0x" + log.topics[1][12:].hex(), int.from_bytes(log.data, "big")
                if payer != self.terms.pay_to and amount > 0:
                    self._keep(payer, nonce, amount, receipt.transaction)
            nonce = None

    def _keep(self, payer: str, nonce: str | None, amount: int, transaction: str) -> None:
        number = len(self.moved)
        moved = Moved(number=number, payer=payer, nonce=nonce, amount=amount, transaction=transaction)
        self.moved.append(moved)
        self.by_transaction.setdefault(transaction, []).append(moved)
        self.final_usdc += amount

    # --- parts ----------------------------------------------------------------------------------------------------

    @property
    def _dev(self) -> Ledger:
        assert self.ledger is not None
        return self.ledger

    def _give_ether(self, account: str, wei: int) -> None:
        if self.node is not None:
            self.node.give_ether(account, wei)


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of what waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waits for something")
