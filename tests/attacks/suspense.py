"""What was sent outside a call is its sender's: nobody else gets it, and nobody gets it twice."""

from spawn_schemas.money import parse_usdc

from spawn.jobs.suspense import Suspense
from tests.attacks.kit import Theme, refused, replayed, served, unpaid
from tests.attacks.scene import DEPOSIT, Scene, Wire
from tests.attacks.sessions import bearer, signing_in, token_of
from tests.wallets import Wallet

suspense = Theme("suspense")

CLAIM = ("POST", "/v1/suspense/claim")
WAITING = ("GET", "/v1/suspense")
ONE = {"amount": "1.00"}


async def watched(scene: Scene) -> None:
    """The watcher has read the chain."""
    await Suspense(scene.world.parts.db, scene.world.chain).tick(scene.now)


async def sent(scene: Scene, wallet: Wallet, amount: str = "1.00") -> None:
    """This waits for the wallet."""
    await scene.world.chain.send(wallet.address, scene.world.settings.pay_to, parse_usdc(amount))
    await watched(scene)


@suspense(
    "a claim of another's",
    "what is claimed is what the signer sent, and no field says whose",
    served(),
    effect={"calls": 1},
)
async def _(scene: Scene) -> Wire:
    await sent(scene, scene.owner)
    return scene.sign(scene.thief, *CLAIM)


@suspense(
    "a claim of another's, named in the body and the query",
    "there is nothing to name: the signer is the sender",
    served(),
    effect={"calls": 2},
)
async def _(scene: Scene) -> list[Wire]:
    await sent(scene, scene.owner)
    owner = scene.owner.address
    return [
        scene.sign(scene.thief, *CLAIM, {"sender": owner, "wallet": owner}),
        scene.sign(scene.thief, CLAIM[0], f"{CLAIM[1]}?sender={owner}"),
    ]


@suspense(
    "a claim that is paid for",
    "a payment says who calls as well, and is credited; it brings its payer's own",
    served(),
    effect={"calls": 1, "chain": 1_000, "thief": 1_000},
)
async def _(scene: Scene) -> Wire:
    await sent(scene, scene.owner)
    return await scene.pay(scene.thief, *CLAIM)


@suspense(
    "a claim without a proof", "money is given to nobody who has not signed for it", unpaid(), alone=True
)
async def _(scene: Scene) -> Wire:
    await sent(scene, scene.owner)
    return scene.ask(*CLAIM)


@suspense("a claim by a sign-in or a session", "they read, and a claim moves money", unpaid(), alone=True)
async def _(scene: Scene) -> list[Wire]:
    await sent(scene, scene.owner)
    token = await token_of(scene, scene.owner)
    return [
        scene.ask(*CLAIM, None, signing_in(scene, scene.owner)),
        scene.ask(*CLAIM, None, bearer(token)),
    ]


@suspense(
    "a claim signed by another key",
    "the address in keyid is a claim: the signature decides",
    refused(401, "invalid_signature", "signature"),
    alone=True,
)
async def _(scene: Scene) -> Wire:
    await sent(scene, scene.owner)
    return scene.sign(scene.owner, *CLAIM, by=scene.thief.account)


@suspense(
    "a look turned into a claim",
    "method and path are signed",
    refused(401, "invalid_signature", "signature"),
    alone=True,
)
async def _(scene: Scene) -> Wire:
    await sent(scene, scene.owner)
    seen = scene.sign(scene.owner, *WAITING)
    return Wire(method=CLAIM[0], target=CLAIM[1], headers=seen.headers)


@suspense(
    "a claim sent again when more has arrived",
    "a signature is good once: the second arrival waits for a claim of its own",
    replayed(),
    alone=True,
)
async def _(scene: Scene) -> Wire:
    await sent(scene, scene.owner)
    wire = scene.sign(scene.owner, *CLAIM)
    await scene.honest(wire)
    await sent(scene, scene.owner, "2.00")
    return wire


@suspense(
    "twenty claims at once",
    "an arrival leaves suspense by compare-and-set, in the transaction that credits it",
    served(),
    effect={"calls": 20, "thief": 1_000_000},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    await sent(scene, scene.thief)
    return [scene.sign(scene.thief, *CLAIM) for _ in range(20)]


@suspense(
    "a payment that a stranger submitted and the watcher saw first",
    "front-running: the money waits in suspense, and the call takes it from there, once",
    served(),
    effect={"calls": 1, "thief": 1_000_000},
)
async def _(scene: Scene) -> Wire:
    wire = await scene.pay(scene.thief, *DEPOSIT, ONE)
    await scene.world.chain.settle(scene.authorization(wire))
    await watched(scene)
    return wire


@suspense(
    "a payment that its payer claimed first",
    "one authorization, one credit: as a deposit it brings nothing more",
    served(),
    effect={"calls": 1},
)
async def _(scene: Scene) -> Wire:
    wire = await scene.pay(scene.thief, *DEPOSIT, ONE)
    await scene.world.chain.settle(scene.authorization(wire))
    await watched(scene)
    await scene.honest(scene.sign(scene.thief, *CLAIM))
    return wire


@suspense(
    "a claim of what a call was paid with",
    "what a call accounts for is no arrival",
    served(),
    effect={"calls": 1},
)
async def _(scene: Scene) -> Wire:
    await scene.honest(await scene.pay(scene.thief, *DEPOSIT, ONE))
    await watched(scene)
    return scene.sign(scene.thief, *CLAIM)


@suspense(
    "a transfer of nothing, and one of ours to ourselves",
    "anybody may send zero in anybody's name; neither raises what we hold",
    served(),
    effect={"calls": 1},
)
async def _(scene: Scene) -> Wire:
    pay_to = scene.world.settings.pay_to
    for sender, amount in ((scene.thief.address, "0.00"), (pay_to, "1.00")):
        await scene.world.chain.send(sender, pay_to, parse_usdc(amount))
    await watched(scene)
    return scene.sign(scene.thief, *CLAIM)
