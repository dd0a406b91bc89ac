"""Many requests at once: one payment, one signature, one key and one balance stay one."""

from dataclasses import replace

from tests.attacks.kit import OTHER_REQUEST, Theme, refused, replayed, served, unpaid
from tests.attacks.scene import BUY, CREATE, DEPOSIT, LIST, SMALL, Scene, Wire
from tests.harness import ORDER

race = Theme("race")

COPIES = 30
SOLD = {"fees": 10_000, "servers": 1, "machines": 1, "calls": 1}


@race(
    "copies of one payment",
    "#1805: five copies of one proof all passed verification and all ran the handler",
    {served(): 1, replayed(): COPIES - 1},
    effect={"chain": 1_000, "fees": 1_000, "calls": 1},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    return [await scene.pay(scene.thief, *LIST)] * COPIES


@race(
    "copies of one paid order",
    "#1805, where each copy would rent a machine",
    {served(201): 1, replayed(201): COPIES - 1},
    effect=SOLD | {"chain": 6_010_000, "thief": 6_000_000},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    return [await scene.pay(scene.thief, *CREATE, BUY)] * COPIES


@race(
    "copies of one signed order",
    "RFC 9421 section 7.2.2: the nonce is taken in the transaction of its effect",
    {served(201): 1, replayed(201): COPIES - 1},
    effect=SOLD | {"thief": -10_000},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    return [scene.sign(scene.thief, *CREATE, ORDER)] * COPIES


@race(
    "one key on many payments",
    "#3438: a client signs a fresh nonce for each attempt; the key holds them together",
    {served(201): 1, replayed(201): 9},
    effect=SOLD | {"chain": 6_010_000, "thief": 6_000_000, "keys": 1},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    key = ("Idempotency-Key", "race")
    return [(await scene.pay(scene.thief, *CREATE, BUY)).plus(key) for _ in range(10)]


@race(
    "one key on both rails",
    "a key is one, however the call is paid",
    {served(): 1, replayed(): 1},
    effect={"chain": 1_000, "fees": 1_000, "calls": 1, "keys": 1},
    or_effect={"thief": -1_000, "fees": 1_000, "calls": 1, "keys": 1},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    key = ("Idempotency-Key", "rails")
    paid = (await scene.pay(scene.thief, *LIST)).plus(key)
    return [paid, scene.sign(scene.thief, *LIST, None, key)]


@race(
    "one payment at two routes",
    "#1805 with #2842: one of the two, never both",
    {served(): 1, OTHER_REQUEST: 1},
    effect={"chain": 1_000, "fees": 1_000, "calls": 1},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    payload = await scene.payload(scene.thief, *LIST)
    return [scene.paid(payload, *LIST), scene.paid(payload, "GET", "/v1/ssh-keys")]


@race(
    "one payment under two keys",
    "the nonce is taken once, whatever the keys are",
    {served(): 1, replayed(): 1},
    effect={"chain": 1_000, "fees": 1_000, "calls": 1, "keys": 1},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    wire = await scene.pay(scene.thief, *LIST)
    return [wire.plus(("Idempotency-Key", key)) for key in ("one", "two")]


@race(
    "one signed nonce at two routes",
    "as above on the other rail",
    {served(): 1, OTHER_REQUEST: 1},
    effect={"thief": -1_000, "fees": 1_000, "calls": 1},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    targets = ("/v1/servers", "/v1/ssh-keys")
    return [scene.sign(scene.thief, "GET", target, nonce='"race"') for target in targets]


@race(
    "one key with two bodies",
    "#2307 under load",
    {served(201): 1, OTHER_REQUEST: 1},
    effect=SOLD | {"thief": -10_000, "keys": 1},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    key = ("Idempotency-Key", "bodies")
    return [scene.sign(scene.thief, *CREATE, SMALL | {"name": name}, key) for name in ("a", "b")]


@race(
    "two orders, money for one",
    "the balance is checked in the transaction that takes it",
    {served(201): 1, refused(422, "insufficient_deposit"): 1},
    effect=SOLD | {"thief": -10_000},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    order = SMALL | {"deposit": "15.00"}
    return [scene.sign(scene.thief, *CREATE, order | {"name": name}) for name in ("a", "b")]


@race(
    "twenty orders of one name",
    "a name is unique per wallet, in the transaction that takes it",
    {served(201): 1, refused(409, "conflict"): 19},
    effect=SOLD | {"thief": -10_000},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    return [scene.sign(scene.thief, *CREATE, SMALL | {"name": "same"}) for _ in range(20)]


@race(
    "twenty DELETEs of one server",
    "one destruction and one refund",
    {served(): 1, refused(409, "conflict"): 19},
    # The fee, and the rest of the first hour.
    effect={"owner": -5_000 - 6_250, "fees": 5_000, "calls": 1},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    return [scene.sign(scene.owner, "DELETE", f"/v1/servers/{scene.server}") for _ in range(20)]


@race(
    "deposits that break the cap together",
    "SPAWN_DEPOSIT_DAILY_CAP: payments on their way count",
    {served(): 1, refused(422, "deposit_limit"): 4},
    effect={"chain": 1_500_000_000, "thief": 1_500_000_000, "calls": 1},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    await scene.world.chain.mint(scene.thief.address, 8_000_000_000)  # type: ignore[arg-type]  # micro-USDC
    return [await scene.pay(scene.thief, *DEPOSIT, {"amount": "1500.00"}) for _ in range(5)]


@race(
    "calls beyond the balance",
    "no account goes below zero, however many ask at once",
    {served(): 5, unpaid(): 15},
    effect={"fees": 5_000, "calls": 5},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    poor = await scene.world.customer("0.01")
    # Five of the ten cents that a deposit has at least are gone already.
    for _ in range(5):
        await scene.honest(scene.sign(poor, *LIST))
    return [scene.sign(poor, *LIST) for _ in range(20)]


@race(
    "a copy of an order from elsewhere",
    "whoever sees a payment on its way gets the answer of the one it was for, and never its secret",
    {served(201): 1, replayed(201): 1},
    effect=SOLD | {"chain": 6_010_000, "thief": 6_000_000},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    wire = await scene.pay(scene.thief, *CREATE, BUY)
    return [wire, replace(wire, client="203.0.113.9")]
