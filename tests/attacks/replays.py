"""The same payment or signature again: it buys nothing more, for nobody, however it is dressed up."""

from tests.attacks.kit import NOT_YOURS, OTHER_REQUEST, Theme, refused, replayed, served, unpaid
from tests.attacks.scene import BUY, Scene, Wire
from tests.integration.paid_calls import PUBLIC_KEY
from tests.unit.bad_payments import ORDER as CURVE_ORDER
from tests.unit.bad_payments import Payment
from tests.wallets import encode

replay = Theme("replay")

LIST = ("GET", "/v1/servers?limit=25")


async def spent(scene: Scene) -> Payment:
    """A payment of the owner that has bought a list of servers."""
    payload = await scene.payload(scene.owner, *LIST)
    await scene.honest(scene.paid(payload, *LIST))
    return payload


def respelled(payload: Payment, *, signature: str | None = None, **changes: str) -> Payment:
    """The same authorization in other letters."""
    inner = payload["payload"]
    return payload | {
        "payload": {
            "signature": signature or inner["signature"],
            "authorization": inner["authorization"] | changes,
        }
    }


@replay("a payment sent twice", "#803: the answer is stored and given again", replayed())
async def _(scene: Scene) -> Wire:
    return scene.paid(await spent(scene), *LIST)


@replay("a payment sent fifty times", "#1805: every copy finds the first", replayed())
async def _(scene: Scene) -> list[Wire]:
    return [scene.paid(await spent(scene), *LIST)] * 50


for method, target, body in (
    ("GET", "/v1/servers?limit=26", None),
    ("GET", "/v1/servers", None),
    ("GET", "/v1/servers?limit=25&limit=25", None),
    ("GET", "/v1/servers?limit=25", {}),
    ("GET", "/v1/ssh-keys", None),
    ("GET", "/v1/balance", None),
    ("POST", "/v1/ssh-keys", {"name": "other", "public_key": PUBLIC_KEY.replace("fICEi", "fICEj")}),
):

    @replay(
        f"a spent payment at {method} {target}{' with a body' if body else ''}",
        "#2842: what is signed says nothing of method, path, query and body; the fingerprint does",
        OTHER_REQUEST,
    )
    async def _(scene: Scene, method: str = method, target: str = target, body: object = body) -> Wire:
        return scene.paid(await spent(scene), method, target, body)


@replay("a spent payment at the owner's server", "#2842, and the price is the same", OTHER_REQUEST)
async def _(scene: Scene) -> Wire:
    return scene.paid(await spent(scene), "PATCH", f"/v1/servers/{scene.server}", {"name": "renamed"})


@replay("the nonce in capitals", "hex has two spellings, a nonce only one", OTHER_REQUEST)
async def _(scene: Scene) -> Wire:
    payload = await scene.payload(scene.owner, *LIST, nonce=0xABCDEF01)
    await scene.honest(scene.paid(payload, *LIST))
    nonce = "0x" + payload["payload"]["authorization"]["nonce"][2:].upper()
    return scene.paid(respelled(payload, nonce=nonce), *LIST)


@replay("the payer in small letters", "addresses are compared as bytes", OTHER_REQUEST)
async def _(scene: Scene) -> Wire:
    payload = await spent(scene)
    return scene.paid(
        respelled(payload, **{"from": payload["payload"]["authorization"]["from"].lower()}), *LIST
    )


@replay(
    "the signature in capitals",
    "what is remembered is the nonce, never the text of a signature",
    OTHER_REQUEST,
)
async def _(scene: Scene) -> Wire:
    payload = await spent(scene)
    return scene.paid(respelled(payload, signature="0x" + payload["payload"]["signature"][2:].upper()), *LIST)


@replay(
    "the other signature of the same key",
    "EIP-2: (r, n - s) recovers to the payer too, and USDC refuses it",
    unpaid("invalid_exact_evm_payload_signature"),
)
async def _(scene: Scene) -> Wire:
    payload = await spent(scene)
    raw = bytes.fromhex(payload["payload"]["signature"][2:])
    s = CURVE_ORDER - int.from_bytes(raw[32:64], "big")
    return scene.paid(
        respelled(payload, signature="0x" + (raw[:32] + s.to_bytes(32, "big") + bytes([55 - raw[64]])).hex()),
        *LIST,
    )


@replay(
    "other JSON around a spent authorization",
    "the payment can be read on chain, the bytes that carried it cannot",
    OTHER_REQUEST,
)
async def _(scene: Scene) -> Wire:
    payload = await spent(scene)
    return scene.paid(payload | {"resource": {"url": "http://other.example/"}, "padding": "x"}, *LIST)


@replay("a spent payment with a new key", "the nonce decides where the key is unknown", replayed())
async def _(scene: Scene) -> Wire:
    return scene.paid(await spent(scene), *LIST).plus(("Idempotency-Key", "replay-new-key"))


@replay("a spent payment with a new payment-identifier", "a key of a stranger opens no answer", OTHER_REQUEST)
async def _(scene: Scene) -> Wire:
    identifier = {"payment-identifier": {"info": {"id": "replay-new-identifier"}}}
    return scene.paid(await spent(scene) | {"extensions": identifier}, *LIST)


@replay("a spent payment after it expired", "a nonce is kept past its validBefore", replayed(), alone=True)
async def _(scene: Scene) -> Wire:
    payload = await spent(scene)
    scene.world.clock.advance(4_000)
    return scene.paid(payload, *LIST)


@replay(
    "a spent payment after it was swept",
    "what is forgotten cannot be settled any more",
    unpaid("invalid_exact_evm_payload_authorization_valid_before"),
    alone=True,
)
async def _(scene: Scene) -> Wire:
    payload = await spent(scene)
    scene.world.clock.advance(2 * 86_400)
    await scene.world.tick("sweep")
    return scene.paid(payload, *LIST)


@replay(
    "a refused payment again",
    "#222: a settlement that failed serves nothing, also the second time",
    refused(402, "settlement_failed", "insufficient_funds"),
    alone=True,
)
async def _(scene: Scene) -> Wire:
    poor = await scene.world.wallet("0")
    wire = await scene.pay(poor, *LIST)
    assert (await scene.send(wire)).status_code == 402
    return wire


@replay(
    "a stranger's nonce taken first",
    "EIP-3009 keeps nonces per payer: nobody can use up somebody else's",
    served(),
    effect={"chain": 1_000, "fees": 1_000, "calls": 1},
)
async def _(scene: Scene) -> Wire:
    theirs = await scene.pay(scene.thief, *LIST, nonce=0x77)
    await scene.honest(theirs)
    return await scene.pay(scene.owner, *LIST, nonce=0x77)


@replay("a signed request sent twice", "RFC 9421 section 7.2.2: a nonce is used once", replayed())
async def _(scene: Scene) -> Wire:
    wire = scene.sign(scene.owner, *LIST)
    await scene.honest(wire)
    return wire


@replay("a signed nonce for another path", "a nonce is the wallet's, not the route's", OTHER_REQUEST)
async def _(scene: Scene) -> Wire:
    await scene.honest(scene.sign(scene.owner, *LIST, nonce='"once-path"'))
    return scene.sign(scene.owner, "GET", "/v1/ssh-keys", nonce='"once-path"')


@replay("a signed nonce for another method", "as above, where the second call would destroy", OTHER_REQUEST)
async def _(scene: Scene) -> Wire:
    target = f"/v1/servers/{scene.server}"
    await scene.honest(scene.sign(scene.owner, "GET", target, nonce='"once-method"'))
    return scene.sign(scene.owner, "DELETE", target, nonce='"once-method"')


@replay("a signed nonce with a later expiry", "a nonce is not renewed by signing it again", replayed())
async def _(scene: Scene) -> Wire:
    await scene.honest(
        scene.sign(scene.owner, *LIST, nonce='"once-later"', created=scene.now - 10, expires=scene.now + 20)
    )
    return scene.sign(scene.owner, *LIST, nonce='"once-later"')


@replay("a signed nonce under another label", "the label is no part of what is used once", replayed())
async def _(scene: Scene) -> Wire:
    await scene.honest(scene.sign(scene.owner, *LIST, nonce='"once-label"'))
    return scene.sign(scene.owner, *LIST, nonce='"once-label"', label="other")


@replay(
    "a signed request after it expired",
    "its nonce may be forgotten then",
    refused(401, "invalid_signature", "expired"),
    alone=True,
)
async def _(scene: Scene) -> Wire:
    wire = scene.sign(scene.owner, *LIST)
    await scene.honest(wire)
    scene.world.clock.advance(61)
    return wire


@replay(
    "a payment for the owner's server, seen on its way and used by name only",
    "who pays is who signed, whatever the thief adds",
    NOT_YOURS,
)
async def _(scene: Scene) -> Wire:
    target = f"/v1/servers/{scene.server}"
    theirs = await scene.payload(scene.thief, "GET", target)
    return scene.paid(encode(theirs), "GET", target).plus(("X-Payer", scene.owner.address))


@replay(
    "an order paid once and sent again", "#3438: one authorization is one server", replayed(201), alone=True
)
async def _(scene: Scene) -> Wire:
    wire = await scene.pay(scene.owner, "POST", "/v1/servers", BUY)
    await scene.honest(wire)
    return wire
