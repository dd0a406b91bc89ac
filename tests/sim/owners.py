"""Customers: who they are, what they want next, and what they learn from the answers.

Invariant: a customer knows what the service told it and nothing else, and it outlives every crash of the service.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime
from random import Random
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tests.sim import owner_wishes as wishes
from tests.sim.client import Calls, Client, Intent, Manner, Way
from tests.sim.client_types import Answer
from tests.sim.moves import Kind
from tests.sim.owner_wishes import Customer, Wish, Wishing
from tests.sim.wallets import Wallet

if TYPE_CHECKING:
    from tests.sim.world import World

SESSION_S: Final = 900
_KEPT: Final = 30
"""Ids of each kind that an owner remembers."""
_SELECT_DUE: Final = """
SELECT id, wallet, due_at, exhausted_at, auto_renew FROM server
WHERE due_at > :now AND due_at < :soon AND (exhausted_at IS NOT NULL OR warned_s IS NOT NULL) ORDER BY id
"""
_SOON_S: Final = 2 * 86_400
"""How long ahead an owner sets an alarm."""


class Town:
    """All the customers of one world, and what they are about."""

    def __init__(self, world: "World") -> None:
        random = world.random
        self._world = world
        self.calls = Calls()
        self.client = Client(world, self.calls)
        self.wanted = random.randint(5, 25)
        """About how many servers live here at a time."""
        self.customers = [
            Customer(
                wallet=Wallet(number, world.settings),
                heeds=random.random() < 0.5,
                means_usdc=random.choice((2, 5, 10, 10, 40, 100)) * 1_000_000,
            )
            for number in range(1, random.randint(3, 9))
        ]
        for customer in self.customers:
            world.chain.fund(customer.address, customer.means_usdc)

    @property
    def living(self) -> int:
        """Servers that their owners believe alive."""
        return sum(len(customer.servers) for customer in self.customers)

    def pursue(
        self,
        customer: Customer,
        wish: Wish,
        *,
        then: Callable[[Answer], None] | None = None,
        random: Random | None = None,
    ) -> None:
        """Let the customer go about it from now on, in its own time. `then` hears of the first good answer."""
        random = random or self._world.random
        intent, manner = self._intent(customer, wish, random), Manner.drawn(random)
        self.calls.add(intent)
        _ = self._world.spawn(
            self._pursue(customer, intent, manner, then), name=f"{wish.what} {intent.number}"
        )

    def repeat(self, intent: Intent) -> None:
        """Let the customer ask for what it has asked before."""
        manner = Manner.drawn(self._world.random)
        _ = self._world.spawn(self.client.ask_again(intent, manner), name=f"again {intent.number}")

    def _intent(self, customer: Customer, wish: Wish, random: Random) -> Intent:
        number = len(self.calls.intents)
        ways = [(way, often) for way, often in wish.ways if way is not Way.SESSION or customer.session]
        (way,) = random.choices([way for way, _ in ways], [often for _, often in ways])
        keyed = way is not Way.NOTHING and random.random() < (0.1 if wish.is_read else 0.6)
        return Intent(
            number=number,
            what=wish.what,
            wallet=customer.wallet,
            way=way,
            method=wish.method,
            path=wish.path,
            query=wish.query,
            body=wish.body,
            # Of each customer's own counting: the same key means another thing in each wallet.
            key=f"intent-{customer.keyed():012d}" if keyed else None,
            is_read=wish.is_read,
        )

    async def _pursue(
        self, customer: Customer, intent: Intent, manner: Manner, then: Callable[[Answer], None] | None
    ) -> None:
        await self.client.carry_out(intent, manner, session=customer.session)
        answer = intent.succeeded
        if answer is not None:
            learn(customer, intent, answer)
            if then is not None:
                then(answer)
        elif intent.answer is not None and intent.answer.status in {403, 404}:
            _forget(customer, intent.path)
        await self.client.repeat(intent, manner)

    # --- what they do by themselves ------------------------------------------------------------------------------

    def heed(self, customer: Customer, random: Random) -> None:
        """Read the events, and pay in where one of them warns."""

        def act(answer: Answer) -> None:
            warned = [event for event in answer.json()["events"] if event["type"] == "deposit.low"]
            if warned and customer.heeds and not self._world.calm:
                self.pursue(customer, wishes.deposit(random, customer), random=random)
                self.pursue(customer, wishes.fund(random, customer), random=random)

        self.pursue(customer, wishes.events(random, customer), then=act)

    def wait_for_the_end(self, customer: Customer, server: str, random: Random) -> None:
        """Ask when the money ends, and pay just about then."""

        def act(answer: Answer) -> None:
            told = answer.json()["server"]["deposit_expires_at"]
            if told is not None and not self._world.calm:
                # Or when the grace ends that every server has.
                later_s = random.choice((0, self._world.settings.grace_s)) + random.choice((0, 0, 30, 300))
                end = int(datetime.fromisoformat(told).timestamp()) + later_s
                _ = self._world.spawn(self._at_the_end(customer, server, end, random), name=f"alarm {server}")

        self.pursue(customer, wishes.read(f"/v1/servers/{server}"), then=act)

    def wait_for_the_last_second(self, customer: Customer, server: str, due_at: int, random: Random) -> None:
        """Pay when the service itself is about to look: before, after, or in between."""
        _ = self._world.spawn(self._saved(customer, due_at, random), name=f"last second {server}")

    async def _saved(self, customer: Customer, due_at: int, random: Random) -> None:
        """Money from elsewhere, just in time for whatever lives from the wallet."""
        await asyncio.sleep(max(0.0, due_at - self._world.true_s() + random.uniform(-3, 3)))
        if not self._world.calm:
            self._world.chain.fund(customer.address, customer.means_usdc)
            self.pursue(customer, wishes.deposit(random, customer), random=random)

    def spend_all(self, customer: Customer, server: str, random: Random) -> None:
        """Put nearly all that there is into one server, whatever the others live from."""

        def act(answer: Answer) -> None:
            whole, _, decimals = answer.json()["available"].partition(".")
            rest = int(whole) * 1_000_000 + int(decimals.ljust(6, "0")) - random.randint(10_000, 60_000)
            if rest > 0 and not self._world.calm:
                amount = {"amount": wishes.usdc(rest)}
                path = f"/v1/servers/{server}/deposit"
                self.pursue(
                    customer, wishes.write("fund", "POST", path, amount, ways=wishes.SIGNED), random=random
                )

        self.pursue(customer, wishes.read("/v1/balance"), then=act)

    async def _at_the_end(self, customer: Customer, server: str, end: int, random: Random) -> None:
        wait_s = end - self._world.true_s() + random.uniform(-5, 5)
        if not 0 <= wait_s <= _SOON_S:
            return
        await asyncio.sleep(wait_s)
        if self._world.calm:
            return
        amount = {"amount": wishes.usdc(customer.amount(random))}
        to_server = wishes.write("fund", "POST", f"/v1/servers/{server}/deposit", amount)
        to_balance = wishes.deposit(random, customer)
        destroying = wishes.write("destroy", "DELETE", f"/v1/servers/{server}")
        self.pursue(customer, random.choice((to_server, to_balance, to_balance, destroying)), random=random)


_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


def learn(customer: Customer, intent: Intent, answer: Answer) -> None:
    """What an owner takes from a good answer to its own call."""
    if not answer.headers.get("content-type", "").startswith("application/json"):
        return
    told = _decode(answer.body)
    _remember(customer.actions, told.get("action"))
    match intent.what:
        case "create":
            _remember(customer.servers, told["server"])
        case "destroy":
            _forget(customer, intent.path)
        case "resize":
            _remember(customer.resized, {"id": intent.path.split("/")[3]})
        case "key":
            _remember(customer.keys, told["ssh_key"])
        case "forget_key":
            customer.keys = [key for key in customer.keys if not intent.path.endswith(key)]
        case "session" if told["session"]["token"] is not None:
            until = int(datetime.fromisoformat(told["session"]["expires_at"]).timestamp())
            customer.session = customer.wallet.show(told["session"]["token"], until=until)
        case "read":
            _learn_from_read(customer, intent, told)
        case _:
            pass  # it says nothing that has to be known later


def _learn_from_read(customer: Customer, intent: Intent, told: dict[str, Any]) -> None:
    if intent.path == "/v1/servers" and not intent.query:
        alive = [server["id"] for server in told["servers"]]
        customer.gone = [*customer.gone, *(old for old in customer.servers if old not in alive)][-_KEPT:]
        customer.servers = alive
        customer.running = [server["id"] for server in told["servers"] if server["status"] == "running"]
    elif intent.path == "/v1/events":
        customer.events_after = told["next_cursor"]
    elif intent.path == "/v1/balance/transactions":
        customer.statement_after = told["next_cursor"]
    elif "server" in told:
        _learn_of_server(customer, told["server"])


def _learn_of_server(customer: Customer, server: dict[str, Any]) -> None:
    customer.running = [known for known in customer.running if known != server["id"]]
    if server["status"] == "running":
        _remember(customer.running, server)
    elif server["status"] in {"destroyed", "failed"}:
        _forget(customer, server["id"])


def _remember(known: list[str], thing: Any) -> None:
    """Note its id, unless there is none or it is known."""
    if isinstance(thing, dict) and thing["id"] not in known:
        known.append(thing["id"])
        del known[:-_KEPT]


def _forget(customer: Customer, path: str) -> None:
    """The server that this path is about is not what it was thought to be."""
    gone = [server for server in customer.servers if server in path]
    customer.servers = [server for server in customer.servers if server not in gone]
    customer.running = [server for server in customer.running if server not in gone]
    customer.gone = [*customer.gone, *gone][-_KEPT:]


# --- moves ------------------------------------------------------------------------------------------------------


def _wanting(wishing: Wishing) -> Callable[["World"], None]:
    """The move in which some customer wants this."""

    def play(world: "World") -> None:
        customer = world.random.choice(world.town.customers)
        world.town.pursue(customer, wishing(world.random, customer))

    return play


def _wanting_of_a_server(wishing: Wishing) -> Callable[["World"], None]:
    """The same, mostly of one who believes to have a server."""

    def play(world: "World") -> None:
        owners = [customer for customer in world.town.customers if customer.servers]
        if owners and world.random.random() < 0.95:
            customer = world.random.choice(owners)
            world.town.pursue(customer, wishing(world.random, customer))
        else:
            _wanting(wishes.create if world.random.random() < 0.9 else wishing)(world)

    return play


def _create(world: "World") -> None:
    """Somebody rents a server, and mostly waits until it runs."""
    town, random = world.town, world.random
    if town.living >= town.wanted and random.random() < 0.8:
        _wanting_of_a_server(wishes.destroy)(world)
        return
    customer = random.choice(town.customers)
    waits, own = random.random() < 0.7, Random(random.getrandbits(64))

    def wait(answer: Answer) -> None:
        if waits:
            server = answer.json()["server"]["id"]
            town.pursue(customer, wishes.read(f"/v1/servers/{server}", "wait=60"), random=own)

    town.pursue(customer, wishes.create(random, customer), then=wait)


def _faucet(world: "World") -> None:
    """Money of its own comes to a customer from elsewhere."""
    customer = world.random.choice(world.town.customers)
    world.chain.fund(customer.address, max(1, int(customer.means_usdc * world.random.uniform(0.1, 1.0))))


def _repeat(world: "World") -> None:
    """Mostly what was lately sent, sometimes what was long ago."""
    intents = world.town.calls.intents
    if intents:
        recent = intents[-20:] if world.random.random() < 0.7 else intents
        world.town.repeat(world.random.choice(recent))


def _heed(world: "World") -> None:
    world.town.heed(world.random.choice(world.town.customers), Random(world.random.getrandbits(64)))


def _last_moment(world: "World") -> None:
    customer = world.random.choice(world.town.customers)
    if customer.servers:
        server = world.random.choice(customer.servers)
        world.town.wait_for_the_end(customer, server, Random(world.random.getrandbits(64)))


def _last_second(world: "World") -> None:
    """Somebody whose server is due soon, or whose money has ended already."""
    now = world.clock.now_s()
    due = world.rows(_SELECT_DUE, now=now, soon=now + _SOON_S)
    by_address = {customer.address: customer for customer in world.town.customers}
    due = [row for row in due if row["wallet"] in by_address]
    if due:
        ended = [one for one in due if one["exhausted_at"] is not None]
        row = world.random.choice([one for one in ended if one["auto_renew"]] or ended or due)
        own = Random(world.random.getrandbits(64))
        due_at = row["due_at"] - world.clock.wrong_by_s + own.choice((0, 3, 30, 300))
        world.town.wait_for_the_last_second(by_address[row["wallet"]], row["id"], due_at, own)


def _spend_all(world: "World") -> None:
    owners = [customer for customer in world.town.customers if len(customer.servers) > 1]
    if owners:
        customer = world.random.choice(owners)
        own = Random(world.random.getrandbits(64))
        world.town.spend_all(customer, world.random.choice(customer.servers), own)


def _any(name: str, weight: float, wishing: Wishing) -> Kind:
    return Kind(name=f"owner.{name}", weight=weight, play=_wanting(wishing))


def _of_server(name: str, weight: float, wishing: Wishing) -> Kind:
    return Kind(name=f"owner.{name}", weight=weight, play=_wanting_of_a_server(wishing))


MOVES: Final = (
    Kind(name="owner.create", weight=12.0, play=_create),
    Kind(name="owner.faucet", weight=1.5, play=_faucet),
    Kind(name="owner.repeat", weight=3.0, play=_repeat),
    Kind(name="owner.heed", weight=2.5, play=_heed),
    Kind(name="owner.last_moment", weight=3.0, play=_last_moment),
    Kind(name="owner.last_second", weight=3.0, play=_last_second),
    Kind(name="owner.spend_all", weight=1.5, play=_spend_all),
    _any("deposit", 5.0, wishes.deposit),
    _of_server("fund", 2.0, wishes.fund),
    _of_server("update", 1.5, wishes.update),
    _of_server("power", 2.5, wishes.power),
    _of_server("resize", 6.0, wishes.resize),
    _of_server("rebuild", 2.5, wishes.rebuild),
    _of_server("destroy", 2.5, wishes.destroy),
    _any("list", 1.5, wishes.list_servers),
    _of_server("show", 2.0, wishes.show),
    _of_server("action", 1.0, wishes.action),
    _any("balance", 1.5, wishes.balance),
    _any("statement", 1.0, wishes.statement),
    _any("key", 1.0, wishes.ssh_key),
    _any("session", 0.7, wishes.session),
    _any("suspense", 1.5, wishes.suspense),
    _any("page", 0.5, wishes.page),
    _any("mistake", 1.5, wishes.mistake),
)
