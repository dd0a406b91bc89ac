"""Payments in the words of x402 version 1: the same authorizations, so the same rules and one effect."""

from spawn_schemas.x402 import Reason

from tests.attacks.kit import BAD_PAYMENT, OTHER_REQUEST, Theme, refused, replayed, served, unpaid
from tests.attacks.scene import BUY, LIST, Scene, Wire
from tests.unit.bad_payments import BadPayment, Payment, header
from tests.unit.bad_payments_v1 import BAD_PAYMENTS_V1, envelope

version1 = Theme("version 1")

ORDER = ("POST", "/v1/servers", BUY)


def spoken(scene: Scene, payload: Payment, method: str, target: str, body: object = None) -> Wire:
    """This call with the authorization of a version 2 payload, as version 1 sends it."""
    return scene.ask(method, target, body, ("X-PAYMENT", header(envelope(payload))))


for entry in BAD_PAYMENTS_V1:
    expected = unpaid(entry.expected.value) if isinstance(entry.expected, Reason) else BAD_PAYMENT

    @version1(entry.name, "x402 version 1, schemes/exact, EIP-3009, EIP-712, EIP-2", expected)
    async def _(scene: Scene, entry: BadPayment = entry) -> Wire:
        good = await scene.payload(scene.owner, *ORDER)
        return scene.ask(*ORDER, ("X-PAYMENT", entry.make(good)))


@version1("a payment sent twice", "#803 in the older dialect", replayed())
async def _(scene: Scene) -> Wire:
    wire = spoken(scene, await scene.payload(scene.owner, *LIST), *LIST)
    await scene.honest(wire)
    return wire


@version1(
    "spent as version 2, sent as version 1",
    "one authorization is one payment in every version",
    OTHER_REQUEST,
)
async def _(scene: Scene) -> Wire:
    payload = await scene.payload(scene.owner, *LIST)
    await scene.honest(scene.paid(payload, *LIST))
    return spoken(scene, payload, *LIST)


@version1("spent as version 1, sent as version 2", "the other way round", OTHER_REQUEST)
async def _(scene: Scene) -> Wire:
    payload = await scene.payload(scene.owner, *LIST)
    await scene.honest(spoken(scene, payload, *LIST))
    return scene.paid(payload, *LIST)


@version1(
    "spent as version 1, at another route as version 2", "bound to the request across versions", OTHER_REQUEST
)
async def _(scene: Scene) -> Wire:
    payload = await scene.payload(scene.owner, *LIST)
    await scene.honest(spoken(scene, payload, *LIST))
    return scene.paid(payload, "GET", "/v1/ssh-keys")


@version1(
    "the same authorization as both, at once",
    "#1805 across versions",
    {served(): 1, OTHER_REQUEST: 1},
    effect={"chain": 1_000, "fees": 1_000, "calls": 1},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    payload = await scene.payload(scene.thief, *LIST)
    return [scene.paid(payload, *LIST), spoken(scene, payload, *LIST)]


@version1(
    "both headers in one request", "two payments are no payment: nobody guesses which is meant", BAD_PAYMENT
)
async def _(scene: Scene) -> list[Wire]:
    payload = await scene.payload(scene.thief, *LIST)
    other = await scene.payload(scene.thief, *LIST)
    same = scene.paid(payload, *LIST).plus(("X-PAYMENT", header(envelope(payload))))
    return [same, scene.paid(payload, *LIST).plus(("X-PAYMENT", header(envelope(other))))]


@version1("two X-PAYMENT lines", "joined, they are no base64", BAD_PAYMENT)
async def _(scene: Scene) -> Wire:
    lines = [("X-PAYMENT", header(envelope(await scene.payload(scene.thief, *LIST)))) for _ in range(2)]
    return scene.ask(*LIST, None, *lines)


@version1("a version 1 payment in PAYMENT-SIGNATURE", "each header has its version", BAD_PAYMENT)
async def _(scene: Scene) -> Wire:
    return scene.paid(header(envelope(await scene.payload(scene.thief, *LIST))), *LIST)


@version1(
    "a smaller amount than v1's maxAmountRequired",
    "max is a name: the amount is exact",
    unpaid(Reason.VALUE_MISMATCH.value),
)
async def _(scene: Scene) -> Wire:
    payload = await scene.payload(scene.thief, *ORDER, value="6009999")
    return spoken(scene, payload, *ORDER)


@version1("fields of version 2 inside", "what is echoed binds nobody", unpaid(Reason.VALUE_MISMATCH.value))
async def _(scene: Scene) -> Wire:
    payload = await scene.payload(scene.thief, *ORDER, value="1")
    payload["accepted"]["amount"] = "1"
    mixed = envelope(payload) | {"accepted": payload["accepted"]}
    return scene.ask(*ORDER, ("X-PAYMENT", header(mixed)))


@version1(
    "the thief's payment at the owner's server", "promise 3 in every dialect", refused(403, "forbidden")
)
async def _(scene: Scene) -> Wire:
    target = f"/v1/servers/{scene.server}"
    payload = await scene.payload(scene.thief, "DELETE", target)
    return spoken(scene, payload, "DELETE", target)


@version1(
    "a cancelled nonce",
    "cancelAuthorization, in the older dialect",
    refused(402, "settlement_failed", "invalid_exact_evm_nonce_already_used"),
    effect={"calls": 1},
)
async def _(scene: Scene) -> Wire:
    payload = await scene.payload(scene.thief, *LIST)
    await scene.world.chain.cancel(scene.thief.address, payload["payload"]["authorization"]["nonce"])
    return spoken(scene, payload, *LIST)
