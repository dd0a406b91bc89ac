"""What owners do with webhooks and feeds, and what happens to the machines that they lead to.

Invariant: an owner knows of its webhooks what answers told it; the URL of each is its own, so that what arrives there
can be judged.
"""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final

from tests.sim import owner_wishes as wishes
from tests.sim.client_types import Answer
from tests.sim.feed_readers import PAGES, Reader
from tests.sim.moves import Kind
from tests.sim.owner_wishes import Customer, Wish
from tests.sim.receivers import Hook, Mood, Names, Receiver

if TYPE_CHECKING:
    from tests.sim.world import World

PATTERNS: Final = (
    ("*",),
    ("*",),
    ("server.*",),
    ("deposit.low", "deposit.exhausted"),
    ("deposit.*", "operation.*"),
    ("payment.settled", "server.running", "webhook.disabled"),
)
FEEDS: Final = ("*", "*", "server.*", "deposit.low", "operation.*", "payment.settled")
NO_WEBHOOK: Final = "wh_aaaaaaaaaaaaaaaaaaaaaaaaaa"
FORBIDDEN: Final = (
    "http://r1.hooks.example.org/hooks",
    "https://localhost/hooks",
    "https://169.254.169.254/latest/meta-data",
    "https://0x7f000001/hooks",
    "https://[::1]/hooks",
    "https://user:secret@r1.hooks.example.org/",
    "https://nobody.example.net/hooks",
    "https://spawn.test/v1/balance",
)
_DAY_S: Final = 86_400


def _create(world: "World") -> None:
    """Register one, at a machine of its own or at one that is there."""
    customer = world.random.choice(world.town.customers)
    hook = Hook(customer.address)
    url = world.receivers.open_url(hook, _machine(world))
    body = {"url": url, "types": list(world.random.choice(PATTERNS)), "description": "a hook"}
    number = hook.ask(world.true_s())

    def then(answer: Answer) -> None:
        told = answer.json()
        hook.id = told["webhook"]["id"]
        hook.learn(number, told["secret"], world.true_s())

    world.town.pursue(customer, _write("POST", "/v1/webhooks", body), then=then)


def _machine(world: "World") -> Receiver:
    machines = world.receivers.machines
    if not machines or world.random.random() < 0.3:
        return world.receivers.open()
    return world.random.choice(machines)


def _forbidden(world: "World") -> None:
    """URLs where we never go."""
    customer = world.random.choice(world.town.customers)
    world.town.pursue(customer, _write("POST", "/v1/webhooks", {"url": world.random.choice(FORBIDDEN)}))


def _list(world: "World") -> None:
    """See which there are: so an owner finds what a lost answer would have told."""
    customer = world.random.choice(world.town.customers)

    def then(answer: Answer) -> None:
        for view in answer.json()["webhooks"]:
            hook = world.receivers.hooks.get(view["url"])
            if hook is not None and hook.wallet == customer.address:
                hook.id = view["id"]

    world.town.pursue(customer, wishes.read("/v1/webhooks"), then=then)


def _rotate(world: "World") -> None:
    found = _known(world)
    if found is None:
        return
    customer, hook = found
    number = hook.ask(world.true_s())

    def then(answer: Answer) -> None:
        hook.learn(number, answer.json()["secret"], world.true_s())

    world.town.pursue(customer, _write("POST", f"/v1/webhooks/{hook.id}/secret"), then=then)


def _of_one(wanted: Callable[["World", Hook], Wish]) -> Callable[["World"], None]:
    """The move in which an owner does this with one of its webhooks."""

    def play(world: "World") -> None:
        found = _known(world)
        if found is not None:
            customer, hook = found
            world.town.pursue(customer, wanted(world, hook))

    return play


def _known(world: "World") -> tuple[Customer, Hook] | None:
    """A webhook whose owner knows its id."""
    hooks = list(dict.fromkeys(hook for hook in world.receivers.hooks.values() if hook.id is not None))
    if not hooks:
        return None
    hook = world.random.choice(hooks)
    (customer,) = (one for one in world.town.customers if one.address == hook.wallet)
    return customer, hook


def _change(world: "World", hook: Hook) -> Wish:
    random = world.random
    body: dict[str, Any] = {}
    if random.random() < 0.3:
        body["types"] = list(random.choice(PATTERNS))
    if random.random() < 0.2:
        body["url"] = world.receivers.open_url(hook, _machine(world))
    if random.random() < 0.2:
        body["description"] = f"number {random.randrange(10)}"
    if random.random() < 0.5 or not body:
        body["enabled"] = random.random() < 0.75
    return _write("PATCH", f"/v1/webhooks/{hook.id}", body)


def _test(_: "World", hook: Hook) -> Wish:
    return _write("POST", f"/v1/webhooks/{hook.id}/test")


def _delete(_: "World", hook: Hook) -> Wish:
    return _write("DELETE", f"/v1/webhooks/{hook.id}")


def _show(world: "World", hook: Hook) -> Wish:
    shown = hook.id if world.random.random() < 0.95 else NO_WEBHOOK
    if world.random.random() < 0.4:
        return wishes.read(f"/v1/webhooks/{shown}")
    asked = [f"limit={world.random.choice((1, 5, 100))}"] if world.random.random() < 0.7 else []
    asked += [f"cursor=c{world.random.randrange(1, 500)}"] if world.random.random() < 0.3 else []
    return wishes.read(f"/v1/webhooks/{shown}/deliveries", "&".join(asked))


def _write(method: str, path: str, body: object = None) -> Wish:
    return wishes.write("webhook", method, path, body)


# --- the machines ---


def _fall(world: "World") -> None:
    """One is down, for minutes or for days."""
    if world.receivers.machines:
        receiver = world.random.choice(world.receivers.machines)
        receiver.down_until_s = world.true_s() + int(2 ** world.random.uniform(5, 19))
        world.step(f"{receiver.host} is down")


def _behave(world: "World") -> None:
    """One answers in another way from now on."""
    if world.receivers.machines:
        receiver = world.random.choice(world.receivers.machines)
        moods = [mood for mood in Mood if mood is not Mood.GONE or world.random.random() < 0.3]
        receiver.mood = Mood.WELL if world.random.random() < 0.4 else world.random.choice(moods)
        world.step(f"{receiver.host} is {receiver.mood}")


def _rename(world: "World") -> None:
    """The name of one leads elsewhere, or home again."""
    if world.receivers.machines:
        receiver = world.random.choice(world.receivers.machines)
        receiver.names = Names.RIGHT if world.random.random() < 0.5 else world.random.choice(list(Names))
        world.step(f"the name of {receiver.host} is {receiver.names}")


def _heal(world: "World") -> None:
    """Somebody looks after all machines."""
    for receiver in world.receivers.machines:
        receiver.mood, receiver.names, receiver.down_until_s = Mood.WELL, Names.RIGHT, 0


# --- feeds ---


def _follow(world: "World") -> None:
    """A reader goes on, or a new one begins."""
    readers, random = world.receivers.readers, world.random
    if not readers or (len(readers) < 2 * len(world.town.customers) and random.random() < 0.3):
        readers.append(Reader(random.choice(world.town.customers), random.choice(FEEDS)))
    reader = random.choice(readers)
    wait_s = random.choice((0, 0, 1, 20, 60))
    reading = reader.follow(
        world, Random(random.getrandbits(64)), pages=random.choice((1, 3, PAGES)), wait_s=wait_s
    )
    _ = world.spawn(reading, name="feed")


MOVES: Final = (
    Kind(name="webhook.create", weight=1.5, play=_create),
    Kind(name="webhook.forbidden", weight=0.3, play=_forbidden),
    Kind(name="webhook.list", weight=0.4, play=_list),
    Kind(name="webhook.show", weight=0.6, play=_of_one(_show)),
    Kind(name="webhook.change", weight=0.8, play=_of_one(_change)),
    Kind(name="webhook.test", weight=0.5, play=_of_one(_test)),
    Kind(name="webhook.rotate", weight=0.5, play=_rotate),
    Kind(name="webhook.delete", weight=0.2, play=_of_one(_delete)),
    Kind(name="receiver.fall", weight=0.6, play=_fall),
    Kind(name="receiver.behave", weight=0.8, play=_behave),
    Kind(name="receiver.rename", weight=0.4, play=_rename),
    Kind(name="receiver.heal", weight=0.5, play=_heal),
    Kind(name="feed.follow", weight=1.5, play=_follow),
)
