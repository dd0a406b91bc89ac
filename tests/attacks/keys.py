"""Idempotency keys: nobody reads an answer with a key alone, and a key is good for one request of one wallet."""

from tests.attacks.kit import (
    BAD_PAYMENT,
    BAD_REQUEST,
    OTHER_REQUEST,
    Theme,
    refused,
    replayed,
    served,
    unpaid,
)
from tests.attacks.scene import LIST, SMALL, Scene, Wire
from tests.unit import bad_payments
from tests.unit.bad_payments import Payment
from tests.wallets import encode

key = Theme("key")


def under(name: str) -> tuple[str, str]:
    return ("Idempotency-Key", name)


def identified(payload: Payment, identifier: object) -> Payment:
    return payload | {"extensions": {"payment-identifier": {"info": {"id": identifier}}}}


async def known(scene: Scene, name: str) -> None:
    """The owner's key, with a stored answer."""
    await scene.honest(scene.sign(scene.owner, *LIST, None, under(name)))


@key("known, without a proof", "a key is no secret: it opens nothing", unpaid())
async def _(scene: Scene) -> Wire:
    await known(scene, "bare")
    return scene.ask(*LIST, None, under("bare"))


@key(
    "known, with a forged payment of its owner",
    "proof comes before the key",
    unpaid("invalid_exact_evm_payload_signature"),
)
async def _(scene: Scene) -> Wire:
    await known(scene, "forged")
    payload = await scene.payload(scene.owner, *LIST)
    payload["payload"]["signature"] = bad_payments.sign(payload, scene.thief.account)
    return scene.paid(payload, *LIST).plus(under("forged"))


@key(
    "known, with a forged signature of its owner",
    "proof comes before the key",
    refused(401, "invalid_signature", "signature"),
)
async def _(scene: Scene) -> Wire:
    await known(scene, "forged-signature")
    return scene.sign(scene.owner, *LIST, None, under("forged-signature"), by=scene.thief.account)


@key(
    "of a stranger",
    "keys are scoped to their wallet: the same words are another key",
    served(),
    effect={"thief": -1_000, "fees": 1_000, "calls": 1, "keys": 1},
)
async def _(scene: Scene) -> Wire:
    await known(scene, "shared words")
    return scene.sign(scene.thief, *LIST, None, under("shared words"))


@key("for another body", "#2307: a key is bound to the request", OTHER_REQUEST, alone=True)
async def _(scene: Scene) -> Wire:
    await scene.honest(scene.sign(scene.owner, "POST", "/v1/servers", SMALL | {"name": "one"}, under("body")))
    return scene.sign(scene.owner, "POST", "/v1/servers", SMALL | {"name": "two"}, under("body"))


for name, target in (("path", "/v1/ssh-keys"), ("query", "/v1/servers?page=2")):

    @key(f"for another {name}", "#2307: a key is bound to the request", OTHER_REQUEST)
    async def _(scene: Scene, name: str = name, target: str = target) -> Wire:
        await known(scene, name)
        return scene.sign(scene.owner, "GET", target, None, under(name))


@key("for another method", "#2307, and the second call would destroy", OTHER_REQUEST)
async def _(scene: Scene) -> Wire:
    target = f"/v1/servers/{scene.server}"
    await scene.honest(scene.sign(scene.owner, "GET", target, None, under("method")))
    return scene.sign(scene.owner, "DELETE", target, None, under("method"))


@key(
    "for another body, paid anew",
    "a new payment does not open a key to another request",
    OTHER_REQUEST,
    alone=True,
)
async def _(scene: Scene) -> Wire:
    await scene.honest(scene.sign(scene.owner, "POST", "/v1/servers", SMALL | {"name": "one"}, under("anew")))
    wire = await scene.pay(scene.owner, "POST", "/v1/servers", SMALL | {"name": "two"})
    return wire.plus(under("anew"))


@key("again, paid otherwise", "#3438: the fresh payment beside a known key stays unspent", replayed())
async def _(scene: Scene) -> Wire:
    await known(scene, "rails")
    return (await scene.pay(scene.owner, *LIST)).plus(under("rails"))


@key("again, as a payment-identifier", "both are one name space", replayed())
async def _(scene: Scene) -> Wire:
    await known(scene, "key-as-an-identifier")
    payload = await scene.payload(scene.owner, *LIST)
    return scene.paid(identified(payload, "key-as-an-identifier"), *LIST)


@key("as a payment-identifier, for another path", "both are bound to the request", OTHER_REQUEST)
async def _(scene: Scene) -> Wire:
    await known(scene, "identifier-of-another-path")
    payload = await scene.payload(scene.owner, "GET", "/v1/ssh-keys")
    return scene.paid(identified(payload, "identifier-of-another-path"), "GET", "/v1/ssh-keys")


@key(
    "in the header beside another payment-identifier",
    "two keys are no key: nobody guesses which is meant",
    BAD_REQUEST,
)
async def _(scene: Scene) -> Wire:
    await known(scene, "two-keys")
    payload = await scene.payload(scene.owner, *LIST)
    return scene.paid(identified(payload, "another-identifier"), *LIST).plus(under("two-keys"))


for name, value in (
    ("empty", ""),
    ("of 256 characters", "k" * 256),
    ("with a line end", "a\nX-Evil: 1"),
    ("with a carriage return", "a\rb"),
    ("with a tab", "a\tb"),
    ("with a zero byte", "a\0b"),
    ("with an accent", "cl\xe9"),
):

    @key(name, "1 to 255 printable ASCII characters: it is stored, and may be logged", BAD_REQUEST)
    async def _(scene: Scene, value: str = value) -> list[Wire]:
        return [
            scene.sign(scene.owner, *LIST, None, under(value)),
            (await scene.pay(scene.owner, *LIST)).plus(under(value)),
        ]


@key("in two lines", "two keys are no key, and joined they would be a third", BAD_REQUEST)
async def _(scene: Scene) -> list[Wire]:
    await known(scene, "line")
    twice = (under("line"), under("line"))
    return [
        scene.sign(scene.owner, *LIST, None, *twice),
        (await scene.pay(scene.owner, *LIST)).plus(*twice),
    ]


for name, identifier in (
    ("too short", "k" * 15),
    ("too long", "k" * 129),
    ("with a space", "key with a space in it"),
    ("with a line end", "0123456789abcdef\n"),
    ("empty", ""),
    ("as a number", 1234567890123456),
    ("as a list", ["0123456789abcdef"]),
):

    @key(f"payment-identifier {name}", "the extension: 16 to 128 of A-Za-z0-9_-", BAD_PAYMENT)
    async def _(scene: Scene, identifier: object = identifier) -> Wire:
        return scene.paid(encode(identified(await scene.payload(scene.owner, *LIST), identifier)), *LIST)


@key(
    "of a call that was refused",
    "a key remembers only success: a refusal is no answer to keep",
    served(201),
    effect={"thief": -10_000, "fees": 10_000, "calls": 1, "keys": 1, "servers": 1, "machines": 1},
)
async def _(scene: Scene) -> Wire:
    order = SMALL | {"name": "mine", "deposit": "30.00"}
    refusal = await scene.send(scene.sign(scene.thief, "POST", "/v1/servers", order, under("again")))
    assert refusal.status_code == 422, refusal.text
    topped = await scene.world.pay(scene.thief, "POST", "/v1/balance/deposit", {"amount": "20.00"})
    assert topped.is_success, topped.text
    return scene.sign(scene.thief, "POST", "/v1/servers", order, under("again"))
