"""Payments that must not pass: the verifier's whole table over HTTP, and what only a whole request can be."""

import json
from base64 import b64encode

from spawn_schemas.x402 import Reason

from tests.attacks.kit import BAD_PAYMENT, Theme, served, unpaid
from tests.attacks.scene import BUY, LIST, Scene, Wire
from tests.unit import bad_payments
from tests.unit.bad_payments import BAD_PAYMENTS, BadPayment, Payment

payment = Theme("payment")

ORDER = ("POST", "/v1/servers", BUY)
WHY = "sections 1 and 2 of the x402 specification, EIP-3009, EIP-712, EIP-2"


for entry in BAD_PAYMENTS:
    expected = unpaid(entry.expected.value) if isinstance(entry.expected, Reason) else BAD_PAYMENT

    @payment(entry.name, WHY, expected)
    async def _(scene: Scene, entry: BadPayment = entry) -> Wire:
        return scene.paid(entry.make(await scene.payload(scene.owner, *ORDER)), *ORDER)


def raw(text: str, encoding: str = "utf-8") -> str:
    return b64encode(text.encode(encoding)).decode()


def trailing(good: Payment, name: str, last: str) -> str:
    """The authorization with one field twice: what was signed, and then `last`, which most readers keep."""
    field = f'"{name}": {json.dumps(good["payload"]["authorization"][name])}'
    return raw(json.dumps(good).replace(field, f'{field}, "{name}": {json.dumps(last)}', 1))


for name, last in (("value", "1"), ("to", bad_payments.STRANGER), ("from", bad_payments.STRANGER)):
    recipient = name == "to"

    @payment(
        f"{name} twice in the JSON",
        "RFC 8259 section 4: what is read is what is verified, whichever it is",
        unpaid((Reason.RECIPIENT_MISMATCH if recipient else Reason.SIGNATURE).value),
    )
    async def _(scene: Scene, name: str = name, last: str = last) -> Wire:
        return scene.paid(trailing(await scene.payload(scene.owner, *ORDER), name, last), *ORDER)


@payment("UTF-16", "RFC 8259 section 8.1: JSON on the wire is UTF-8", BAD_PAYMENT)
async def _(scene: Scene) -> Wire:
    good = await scene.payload(scene.owner, *LIST)
    return scene.paid(raw(json.dumps(good), "utf-16"), *LIST)


@payment("a byte order mark", "RFC 8259 section 8.1: none", BAD_PAYMENT)
async def _(scene: Scene) -> Wire:
    good = await scene.payload(scene.owner, *LIST)
    return scene.paid(raw("\ufeff" + json.dumps(good)), *LIST)


@payment("NaN for the version", "RFC 8259 knows no NaN", BAD_PAYMENT)
async def _(scene: Scene) -> Wire:
    good = await scene.payload(scene.owner, *LIST)
    return scene.paid(raw(json.dumps(good | {"x402Version": float("nan")})), *LIST)


for digits, answer in ((1_000, unpaid(Reason.INVALID_VERSION.value)), (5_000, BAD_PAYMENT)):

    @payment(f"a version of {digits} digits", "a number without bounds is no defect of ours", answer)
    async def _(scene: Scene, digits: int = digits) -> Wire:
        good = await scene.payload(scene.owner, *LIST)
        return scene.paid(
            raw(
                json.dumps(good | {"x402Version": 2}).replace(
                    '"x402Version": 2', '"x402Version": ' + "2" * digits
                )
            ),
            *LIST,
        )


@payment(
    "a smaller amount echoed and signed",
    "#2842: `accepted` is the caller's word; the price is ours",
    unpaid(Reason.VALUE_MISMATCH.value),
)
async def _(scene: Scene) -> Wire:
    offer = await scene.offer(*ORDER)
    return scene.paid(scene.thief.payload(offer | {"amount": "1"}, now=scene.now), *ORDER)


@payment(
    "a larger amount echoed and signed",
    "v1 refuses overpayment too: `exact` means that",
    unpaid(Reason.VALUE_MISMATCH.value),
)
async def _(scene: Scene) -> Wire:
    offer = await scene.offer(*ORDER)
    return scene.paid(scene.thief.payload(offer | {"amount": "7000000"}, now=scene.now), *ORDER)


@payment(
    "another token name echoed and signed",
    "#961, #3102: the domain is the contract's, not the echo's",
    unpaid(Reason.SIGNATURE.value),
)
async def _(scene: Scene) -> Wire:
    offer = await scene.offer(*ORDER)
    forged = offer | {"extra": offer["extra"] | {"name": "USD Coin"}}
    return scene.paid(scene.thief.payload(forged, now=scene.now), *ORDER)


@payment(
    "the thief as payee, echoed and signed",
    "paying oneself is no payment",
    unpaid(Reason.RECIPIENT_MISMATCH.value),
)
async def _(scene: Scene) -> Wire:
    offer = await scene.offer(*ORDER)
    return scene.paid(
        scene.thief.payload(offer | {"payTo": scene.thief.account.address}, now=scene.now), *ORDER
    )


@payment(
    "a worthless token, echoed and signed",
    "only the configured contract's money is money",
    unpaid(Reason.INVALID_REQUIREMENTS.value),
)
async def _(scene: Scene) -> Wire:
    offer = await scene.offer(*ORDER)
    return scene.paid(scene.thief.payload(offer | {"asset": bad_payments.STRANGER}, now=scene.now), *ORDER)


@payment(
    "the same token on a chain of play money, echoed and signed",
    "the chain is part of what is signed",
    unpaid(Reason.NETWORK_MISMATCH.value),
)
async def _(scene: Scene) -> Wire:
    offer = await scene.offer(*ORDER)
    return scene.paid(scene.thief.payload(offer | {"network": "eip155:31337"}, now=scene.now), *ORDER)


for name, changes, reason in (
    ("validAfter is now", {"validAfter": 0}, Reason.VALID_AFTER),
    ("validAfter is a second ahead", {"validAfter": 1}, Reason.VALID_AFTER),
    ("validBefore is now", {"validBefore": 0}, Reason.VALID_BEFORE),
    ("five seconds are left", {"validBefore": 5}, Reason.VALID_BEFORE),
    ("an hour and a second are left", {"validBefore": 3_601}, Reason.VALID_BEFORE),
):

    @payment(
        name,
        "USDC asks validAfter < now < validBefore; six seconds to settle, an hour at most",
        unpaid(reason.value),
    )
    async def _(scene: Scene, changes: dict[str, int] = changes) -> Wire:
        moments = {field: str(scene.now + after) for field, after in changes.items()}
        return await scene.pay(scene.thief, *ORDER, **moments)


for name, changes in (
    ("validAfter was a second ago", {"validAfter": -1}),
    ("six seconds are left", {"validBefore": 6}),
    ("an hour is left", {"validBefore": 3_600}),
):

    @payment(
        name,
        "the other side of each edge: an honest clock is not refused",
        served(),
        effect={"chain": 1_000, "fees": 1_000, "calls": 1},
    )
    async def _(scene: Scene, changes: dict[str, int] = changes) -> Wire:
        moments = {field: str(scene.now + after) for field, after in changes.items()}
        return await scene.pay(scene.thief, *LIST, **moments)


@payment("held back until it expired", "a price has a time", unpaid(Reason.VALID_BEFORE.value), alone=True)
async def _(scene: Scene) -> Wire:
    wire = await scene.pay(scene.thief, *ORDER)
    scene.world.clock.advance(295)
    return wire


@payment(
    "of the payee to itself",
    "the chain would say success, and nobody would have paid",
    unpaid(Reason.RECIPIENT_MISMATCH.value),
)
async def _(scene: Scene) -> Wire:
    good = await scene.payload(scene.thief, *ORDER)
    good["payload"]["authorization"]["from"] = good["accepted"]["payTo"].lower()
    return scene.paid(good, *ORDER)


@payment("for a wallet that signed nothing", "a forger names a rich wallet", unpaid(Reason.SIGNATURE.value))
async def _(scene: Scene) -> Wire:
    good = await scene.payload(scene.thief, *ORDER)
    good["payload"]["authorization"]["from"] = scene.owner.account.address
    return scene.paid(good, *ORDER)
