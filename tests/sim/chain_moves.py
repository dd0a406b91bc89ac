"""What happens on the chain and at the facilitators while the service lives: weather, strangers, and changes of mind.

Invariant: nothing here breaks what a chain promises: no money appears by itself, and what is final stays.
"""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final

import msgspec

from spawn.payments.exact import ExactPayment
from tests.fake_node import GWEI
from tests.sim import contract_payers
from tests.sim.facilitators import Mood
from tests.sim.moves import Kind
from tests.sim.sim_node import SimNode

if TYPE_CHECKING:
    from tests.sim.world import World

RELAYERS_SPAN_S: Final = 255
GIFT_MAX_USDC: Final = 3_000_000
SELECT_OPEN: Final = (
    "SELECT payment FROM reservation WHERE state = 'reserved' AND payment IS NOT NULL ORDER BY id"
)
_payment: Final = msgspec.json.Decoder(ExactPayment)

Deed = Callable[["World", SimNode, Random], None]


def _on_node(deed: Deed) -> Callable[["World"], None]:
    """A move of chains that have blocks; on the development chain nothing happens."""

    def play(world: "World") -> None:
        if world.chain.node is not None:
            world.chain.node.catch_up()
            deed(world, world.chain.node, world.random)

    return play


def _span_s(world: "World", most: int) -> int:
    """How long a trouble lasts: rather short, and minutes where relayers of ours look twice a second what goes on."""
    most = min(most, RELAYERS_SPAN_S) if world.chain.relayers else most
    return int(2 ** world.random.uniform(1, most.bit_length()))


# --- blocks -----------------------------------------------------------------------------------------------------


def _mine(world: "World", node: SimNode, random: Random) -> None:
    """Blocks come a little early."""
    node.mine(random.randint(1, 3))
    world.step(f"chain: block {node.height}")


def _reorg(world: "World", node: SimNode, random: Random) -> None:
    depth = world.chain.deepest_reorg
    if depth > 0:
        depth, lose = random.randint(1, depth), random.random() < 0.3
        node.reorganise(depth, lose=lose)
        world.step(f"chain: {depth} blocks are undone{', their transactions lost' if lose else ''}")


def _stall(world: "World", node: SimNode, random: Random) -> None:
    """No blocks for a while, perhaps beyond a payment's life; those of the time in between come all at once."""
    node.stalled_until = world.true_s() + random.choice((_span_s(world, 7_200), 420))
    world.step("chain: no more blocks")


def _drop(world: "World", node: SimNode, random: Random) -> None:
    """What no block has is forgotten, or what comes next is."""
    if random.random() < 0.5:
        node.faults.swallow = random.randint(1, 3)
    world.step(f"chain: {len(node.forget())} transactions are forgotten")


# --- fees ---------------------------------------------------------------------------------------------------------


def _fee_spike(world: "World", node: SimNode, random: Random) -> None:
    """Gas is dear for a while, perhaps dearer than we pay; the next block knows."""
    node.dear_wei = int(GWEI * 10 ** random.uniform(-1.5, 1.3))
    node.dear_until = world.true_s() + _span_s(world, 3_600)
    world.step(f"chain: gas costs {node.dear_wei} wei")


def _wanted_tip(world: "World", node: SimNode, random: Random) -> None:
    """The pool takes no cheap transactions for a while."""
    node.faults.least_tip_wei = random.choice((0, 2 * node.tip_wei, 20 * node.tip_wei))
    node.choosy_until = world.true_s() + _span_s(world, 3_600)
    world.step(f"chain: tips from {node.faults.least_tip_wei} wei on")


def _empty_relayer(world: "World", node: SimNode, random: Random) -> None:
    for account in world.chain.relayers:
        if random.random() < 0.5:
            node.give_ether(account, -node.ether_wei(account) + random.choice((0, 10**12)))
            world.step("chain: a relayer has no ether")
            world.loop.call_later(_span_s(world, 3_600), world.chain.fill_up)


def _fill_relayer(world: "World", node: SimNode, random: Random) -> None:
    world.chain.fill_up()


def _share_key(world: "World", node: SimNode, random: Random) -> None:
    """Somebody who has the same key sends a transaction."""
    if world.chain.relayers:
        node.spend_nonce(world.chain.use_key(random))
        world.step("chain: somebody else uses a relayer's nonce")


# --- strangers ------------------------------------------------------------------------------------------------------


def _known(world: "World") -> ExactPayment | None:
    """An authorization that a stranger may have seen: one under way, or an old one."""
    open_ = [_payment.decode(row["payment"]) for row in world.rows(SELECT_OPEN)]
    if open_ and world.random.random() < 0.7:
        return world.random.choice(open_)
    seen = list(world.chain.seen.values())
    return world.random.choice(seen) if seen else None


def _front_run(world: "World") -> None:
    """A stranger brings somebody's authorization to the chain."""
    payment = _known(world)
    if payment is not None:
        world.chain.bring(payment)


def _stalk(world: "World") -> None:
    """For a while a stranger brings whatever it sees under way, sooner than we do or at the same time."""
    until, brought = world.true_s() + int(2 ** world.random.uniform(5, 11)), dict[tuple[str, str], None]()

    def look() -> None:
        if world.calm or world.true_s() >= until:
            return
        for row in world.rows(SELECT_OPEN):
            payment = _payment.decode(row["payment"])
            if (payment.payer, payment.nonce) not in brought:
                brought[payment.payer, payment.nonce] = None
                world.chain.bring(payment)
        world.loop.call_later(world.random.uniform(0.05, 1.0), look)

    look()


def _cancel(world: "World") -> None:
    """A payer cancels what it has signed."""
    payment = _known(world)
    if payment is not None:
        world.chain.cancel(payment.payer, payment.nonce)


def _gift(world: "World") -> None:
    """Somebody sends us USDC without a call: a customer by mistake, or anybody."""
    random, people = world.random, list(world.chain.people)
    sender = random.choice(people) if people and random.random() < 0.6 else world.chain.stranger()
    amount = random.choice((0, 1, random.randint(1, GIFT_MAX_USDC)))
    world.chain.give(sender, min(amount, world.chain.balance_usdc(sender)))


def _spend(world: "World") -> None:
    """A customer spends its money elsewhere, while it pays us or before; sooner or later it gets more."""
    people = [person for person in world.chain.people if world.chain.balance_usdc(person) > 0]
    if people:
        person = world.random.choice(people)
        amount = world.chain.balance_usdc(person)
        world.chain.spend(person, amount)
        later_s = 2 ** world.random.uniform(3, 12)
        world.loop.call_later(later_s, world.chain.fund, person, amount)


def _delegate(world: "World", node: SimNode, random: Random) -> None:
    """An account with a key gets code beside it (EIP-7702), or code that burns whatever gas it is given."""
    # Customers: what the code of a thief's own account stands by, is no theft.
    people = [customer.address for customer in world.town.customers]
    if people:
        account = random.choice(people)
        node.deploy(account, account)
        if random.random() < 0.3:
            random.choice((node.greedy, node.hungry)).add(account)
        world.step("chain: an account has code")


# --- nodes and facilitators -------------------------------------------------------------------------------------------


def _outage(world: "World") -> None:
    port = world.random.choice(("chain", "facilitator"))
    world.weather.outages[port] = world.true_s() + _span_s(world, 6 * 3_600)
    world.step(f"{port}: nobody answers")


def _wrong_chain(world: "World", node: SimNode, random: Random) -> None:
    """The service is started anew, with a node of another chain behind its address for a while."""
    world.chain.wrong_until = world.true_s() + _span_s(world, 600)
    world.step("chain: a node of another chain")
    world.crash("it moves to another node")


def _mood(world: "World") -> None:
    """A facilitator becomes somebody else for a while."""
    urls = world.settings.facilitator_urls
    if urls:
        random = world.random
        host = random.choice(urls).split("/")[2]
        mood = random.choice(list(Mood))
        world.chain.facilitator(host).turn(mood, until=world.true_s() + _span_s(world, 7_200))
        world.step(f"facilitator {host}: {mood}")


def _kinds(**moves: tuple[float, Any]) -> tuple[Kind, ...]:
    return tuple(
        Kind(name=f"chain.{name}", weight=weight, play=play) for name, (weight, play) in moves.items()
    )


MOVES: Final = _kinds(
    mine=(1.0, _on_node(_mine)),
    reorg=(2.0, _on_node(_reorg)),
    stall=(0.5, _on_node(_stall)),
    drop=(1.0, _on_node(_drop)),
    fee_spike=(0.7, _on_node(_fee_spike)),
    tip=(0.5, _on_node(_wanted_tip)),
    empty_relayer=(0.4, _on_node(_empty_relayer)),
    fill_relayer=(0.8, _on_node(_fill_relayer)),
    key_shared=(0.4, _on_node(_share_key)),
    front_run=(2.0, _front_run),
    stalk=(0.7, _stalk),
    cancel=(1.0, _cancel),
    gift=(1.0, _gift),
    spend=(0.5, _spend),
    contract=(0.7, contract_payers.come),
    delegate=(0.4, _on_node(_delegate)),
    outage=(0.7, _outage),
    wrong_chain=(0.2, _on_node(_wrong_chain)),
    mood=(2.0, _mood),
)
