"""The chain is public: strangers carry payments to it first, payers cancel and spend elsewhere, answers get lost."""

from spawn.payments.exact import ExactPayment
from tests.attacks.kit import Theme, refused, replayed, served
from tests.attacks.scene import BUY, DEPOSIT, LIST, Scene, Wire
from tests.wallets import Wallet

chain = Theme("chain")

ONE = {"amount": "1.00"}
CREATE = ("POST", "/v1/servers", BUY)
USED = refused(402, "settlement_failed", "invalid_exact_evm_nonce_already_used")
POOR = refused(402, "settlement_failed", "insufficient_funds")
PENDING = refused(503, "settlement_pending")


async def _submitted(scene: Scene, payment: ExactPayment) -> None:
    """Somebody carries this authorization to the chain."""
    await scene.world.chain.settle(payment)


@chain(
    "a stranger submits a deposit first",
    "front-running: payTo is paid all the same, so the payer is credited, once",
    served(),
    effect={"thief": 1_000_000, "calls": 1},
)
async def _(scene: Scene) -> Wire:
    wire = await scene.pay(scene.thief, *DEPOSIT, ONE)
    await _submitted(scene, scene.authorization(wire))
    return wire


@chain(
    "a stranger submits an order first",
    "front-running: our own transaction would revert, and the order is paid",
    served(201),
    effect={"thief": 6_000_000, "fees": 10_000, "calls": 1, "servers": 1, "machines": 1},
)
async def _(scene: Scene) -> Wire:
    wire = await scene.pay(scene.thief, *CREATE)
    await _submitted(scene, scene.authorization(wire))
    return wire


@chain(
    "a stranger submits, and the facilitator says no",
    "#1169: what the chain shows decides, not what a facilitator says",
    served(),
    effect={"thief": 1_000_000, "calls": 1},
)
async def _(scene: Scene) -> Wire:
    wire = await scene.pay(scene.thief, *DEPOSIT, ONE)
    await _submitted(scene, scene.authorization(wire))
    scene.world.chain_faults.refuse = 1
    return wire


@chain(
    "a payment the payer cancelled",
    "cancelAuthorization sets authorizationState too; only the log says which",
    USED,
    effect={"calls": 1},
)
async def _(scene: Scene) -> Wire:
    wire = await scene.pay(scene.thief, *CREATE)
    await scene.world.chain.cancel(scene.thief.address, scene.authorization(wire).nonce)
    return wire


@chain(
    "a nonce spent for less",
    "the transfer that used the nonce must be this one: payee and value",
    USED,
    effect={"calls": 1},
)
async def _(scene: Scene) -> Wire:
    less = await scene.pay(scene.thief, *LIST, nonce=0x51)
    await _submitted(scene, scene.authorization(less))
    return await scene.pay(scene.thief, *CREATE, nonce=0x51)


@chain(
    "money that left meanwhile",
    "#1169: a payer drains the wallet between verify and settle",
    POOR,
    effect={"calls": 1},
)
async def _(scene: Scene) -> Wire:
    drained = await scene.world.wallet("6.01")
    wire = await scene.pay(drained, *CREATE)
    elsewhere = await scene.pay(drained, *CREATE)
    await _submitted(scene, scene.authorization(elsewhere))
    return wire


@chain(
    "money that never was",
    "a signature is no money: nothing is served before it moved",
    POOR,
    effect={"calls": 1},
)
async def _(scene: Scene) -> Wire:
    return await scene.pay(Wallet.numbered(99), *CREATE)


@chain(
    "a facilitator that refuses",
    "#222, #676, #3060: success:false was read over, and content served free",
    refused(402, "settlement_failed", "unexpected_settle_error"),
    effect={"calls": 1},
)
async def _(scene: Scene) -> Wire:
    scene.world.chain_faults.refuse = 1
    return await scene.pay(scene.thief, *CREATE)


@chain(
    "a settlement whose answer is lost",
    "#1062, #2294: unclear is never a new challenge, a conforming client would pay twice",
    PENDING,
    effect={"chain": 6_010_000, "calls": 1},
)
async def _(scene: Scene) -> Wire:
    scene.world.chain_faults.lose_answer = 1
    return await scene.pay(scene.thief, *CREATE)


@chain(
    "a settlement whose request is lost",
    "as above, where nothing moved",
    PENDING,
    effect={"calls": 1},
)
async def _(scene: Scene) -> Wire:
    scene.world.chain_faults.lose_request = 1
    return await scene.pay(scene.thief, *CREATE)


@chain(
    "the same payment after its answer was lost",
    "#1062, #3438: the repeat finds the transfer, and one server is rented",
    {served(201): 1, replayed(201): 1},
    effect={"thief": 6_000_000, "fees": 10_000, "servers": 1, "machines": 1},
)
async def _(scene: Scene) -> list[Wire]:
    scene.world.chain_faults.lose_answer = 1
    wire = await scene.pay(scene.thief, *CREATE)
    assert (await scene.send(wire)).status_code == 503
    return [wire, wire]


@chain(
    "copies of a payment whose answer was lost",
    "#1805, #2294: whoever takes a claim over takes it alone",
    {served(201): 1, replayed(201): 19},
    effect={"thief": 6_000_000, "fees": 10_000, "servers": 1, "machines": 1},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    scene.world.chain_faults.lose_answer = 1
    wire = await scene.pay(scene.thief, *CREATE)
    assert (await scene.send(wire)).status_code == 503
    return [wire] * 20


@chain(
    "a fresh payment under the key of a lost one",
    "#3438: what the key stands for is settled, and the fresh payment stays unspent",
    served(201),
    effect={"thief": 6_000_000, "fees": 10_000, "servers": 1, "machines": 1},
)
async def _(scene: Scene) -> Wire:
    key = ("Idempotency-Key", "lost")
    scene.world.chain_faults.lose_answer = 1
    assert (await scene.send((await scene.pay(scene.thief, *CREATE)).plus(key))).status_code == 503
    return (await scene.pay(scene.thief, *CREATE)).plus(key)


@chain(
    "a payment that is lost and expires",
    "what cannot settle any more is given up, and nothing is served for it",
    refused(402, "settlement_failed", "invalid_exact_evm_payload_authorization_valid_before"),
    alone=True,
)
async def _(scene: Scene) -> Wire:
    scene.world.chain_faults.lose_request = 1
    wire = await scene.pay(scene.thief, *DEPOSIT, ONE)
    assert (await scene.send(wire)).status_code == 503
    scene.world.clock.advance(500)
    await scene.world.tick("settlements")
    return wire


@chain(
    "a lost payment used for another order",
    "#2842: a nonce that is under way is bound to its request as well",
    refused(409, "idempotency_conflict"),
    alone=True,
)
async def _(scene: Scene) -> Wire:
    scene.world.chain_faults.lose_answer = 1
    wire = await scene.pay(scene.thief, *CREATE)
    assert (await scene.send(wire)).status_code == 503
    return scene.paid(wire.value("PAYMENT-SIGNATURE"), *CREATE[:2], BUY | {"name": "other"})
