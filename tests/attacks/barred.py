"""A wallet that was barred comes all the same: by every proof, for everything it may not do."""

from typing import Any

from spawn.domain.barring import Barred
from spawn.store import wallets
from tests.attacks.kit import Theme, refused, served
from tests.attacks.scene import CREATE, DEPOSIT, SMALL, Scene, Wire
from tests.attacks.sessions import bearer, token_of

bar = Theme("barred")

BARRED = refused(403, "suspended")


async def barred(scene: Scene, to: Barred) -> None:
    """From now on the thief is."""
    await scene.world.parts.db.write(lambda tx: wallets.set_barred(tx, scene.thief.address, to))


for how in Barred:

    @bar(f"{how}, an order", "whoever is barred rents nothing, and pays nothing for it", BARRED, alone=True)
    async def _(scene: Scene, how: Barred = how) -> list[Wire]:
        wire = await scene.pay(scene.thief, *CREATE, SMALL | {"name": "mine", "fund": "0.50"})
        await barred(scene, how)
        return [wire, scene.sign(scene.thief, *CREATE, SMALL | {"name": "mine"})]

    @bar(f"{how}, a key", "nothing is changed", BARRED, alone=True)
    async def _(scene: Scene, how: Barred = how) -> Wire:
        await barred(scene, how)
        key: Any = {"name": "k", "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "B" * 42 + "B"}
        return scene.sign(scene.thief, "POST", "/v1/ssh-keys", key)

    @bar(
        f"{how}, twenty orders at once",
        "the bar is looked at in the transaction of each",
        BARRED,
        at_once=True,
    )
    async def _(scene: Scene, how: Barred = how) -> list[Wire]:
        await barred(scene, how)
        return [scene.sign(scene.thief, *CREATE, SMALL | {"name": f"n{n}"}) for n in range(20)]


@bar("blocked, paying in", "no payment is taken: the chain is not asked", BARRED, alone=True)
async def _(scene: Scene) -> Wire:
    wire = await scene.pay(scene.thief, *DEPOSIT, {"amount": "1.00"})
    await barred(scene, Barred.BLOCKED)
    return wire


@bar(
    "blocked, identifying itself by a payment",
    "a payment that is credited in full is one, too",
    BARRED,
    alone=True,
)
async def _(scene: Scene) -> Wire:
    wire = await scene.pay(scene.thief, "GET", "/v1/balance")
    await barred(scene, Barred.BLOCKED)
    return wire


@bar("blocked, a claim", "what it sent waits", BARRED, alone=True)
async def _(scene: Scene) -> Wire:
    await barred(scene, Barred.BLOCKED)
    return scene.sign(scene.thief, "POST", "/v1/suspense/claim")


@bar(
    "blocked, another wallet's servers with an open session",
    "a session reads its own wallet's things, barred or not",
    served(),
    effect={"calls": 1, "thief": -1_000, "fees": 1_000},
)
async def _(scene: Scene) -> Wire:
    token = await token_of(scene, scene.thief)
    await barred(scene, Barred.BLOCKED)
    return scene.ask("GET", "/v1/servers", None, bearer(token))


@bar(
    "suspended, paying in",
    "its money goes on being its own, and its servers go on costing",
    served(),
    effect={"calls": 1, "chain": 1_000_000, "thief": 1_000_000},
)
async def _(scene: Scene) -> Wire:
    await barred(scene, Barred.SUSPENDED)
    return await scene.pay(scene.thief, *DEPOSIT, {"amount": "1.00"})
