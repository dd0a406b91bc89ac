"""Signed requests that must not pass: the verifier's whole table over HTTP, and what only a whole request can be."""

import msgspec

from tests.attacks.kit import NOT_OFFERED, NOT_YOURS, NOTHING_THERE, Answer, Theme, refused, unpaid
from tests.attacks.scene import LIST, SMALL, Scene, Wire, from_call
from tests.harness import CHAIN_ID, ORDER
from tests.unit import bad_signatures
from tests.unit.bad_signatures import BAD_CALLS, BadCall, Call

signature = Theme("signature")

WHY = "RFC 9421, RFC 9530 and the ERC-8128 profile"

OTHERWISE: dict[str, Answer] = {
    # A signature that does not name a wallet of ours is none for us: the call is unpaid.
    "no Signature-Input": unpaid(),
    "no parameters": unpaid(),
    "no keyid": unpaid(),
    "keyid of another kind": unpaid(),
    "keyid as a token": unpaid(),
    # What cannot be called at all is refused before anybody looks at the signature.
    "another method": NOT_OFFERED,
    "a path spelled otherwise": NOTHING_THERE,
    "another path": NOTHING_THERE,
}
ELSEWHERE = {"another server"}
"""About what the receiver knows of itself; the host attacks below are its counterpart."""


def broken(reason: str) -> Answer:
    return refused(401, "invalid_signature", reason)


for entry in BAD_CALLS:
    if entry.name not in ELSEWHERE:

        @signature(entry.name, WHY, OTHERWISE.get(entry.name) or broken(entry.reason))
        async def _(scene: Scene, entry: BadCall = entry) -> Wire:
            good = Call(
                body=msgspec.json.encode(ORDER),
                authority=scene.world.settings.authority,
                chain_id=CHAIN_ID,
                now=scene.now,
            )
            return from_call(entry.make(good))


for name, headers in (
    ("alone", ()),
    ("and Host says so", (("Host", "other.example"),)),
    ("and X-Forwarded-Host says so", (("X-Forwarded-Host", "other.example"),)),
    ("and Forwarded says so", (("Forwarded", "host=other.example;proto=http"),)),
    ("and X-Original-Host says so", (("X-Original-Host", "other.example"),)),
):

    @signature(
        f"for another host, {name}",
        "@authority is compared with SPAWN_PUBLIC_URL; no header of the caller's decides who we are",
        broken("signature"),
    )
    async def _(scene: Scene, headers: tuple[tuple[str, str], ...] = headers) -> Wire:
        return scene.sign(scene.owner, *LIST, None, *headers, authority="other.example")


for authority in ("SPAWN.TEST", "spawn.test:80", "spawn.test.", "user@spawn.test", "spawn.test:443"):

    @signature(f"for {authority}", "RFC 9421 section 2.2.3: normalized, or not ours", broken("signature"))
    async def _(scene: Scene, authority: str = authority) -> Wire:
        return scene.sign(scene.owner, *LIST, authority=authority)


@signature("body swapped for another good one", "RFC 9530: the digest covers the body", broken("digest"))
async def _(scene: Scene) -> Wire:
    wire = scene.sign(scene.owner, "POST", "/v1/servers", SMALL | {"name": "signed"})
    return Wire(
        method=wire.method,
        target=wire.target,
        headers=wire.headers,
        body=msgspec.json.encode(SMALL | {"name": "swapped"}),
    )


@signature("body and digest swapped together", "RFC 9421: the digest is covered", broken("signature"))
async def _(scene: Scene) -> Wire:
    wire = scene.sign(scene.owner, "POST", "/v1/servers", SMALL | {"name": "signed"})
    swapped = msgspec.json.encode(SMALL | {"name": "swapped"})
    wire = wire.edited("content-digest", lambda _: bad_signatures.digest(swapped))
    return Wire(method=wire.method, target=wire.target, headers=wire.headers, body=swapped)


@signature("server swapped in the path", "the path is covered", broken("signature"))
async def _(scene: Scene) -> Wire:
    wire = scene.sign(scene.owner, "DELETE", "/v1/servers/srv_other")
    return Wire(method="DELETE", target=f"/v1/servers/{scene.server}", headers=wire.headers)


@signature("GET turned into DELETE", "the method is covered", broken("signature"))
async def _(scene: Scene) -> Wire:
    target = f"/v1/servers/{scene.server}"
    return Wire(method="DELETE", target=target, headers=scene.sign(scene.owner, "GET", target).headers)


@signature(
    "GET turned into DELETE, without @method", "what must be covered is ours to say", broken("coverage")
)
async def _(scene: Scene) -> Wire:
    target = f"/v1/servers/{scene.server}"
    return scene.sign(scene.owner, "DELETE", target, components='"@authority" "@path"')


@signature("a query where none was signed", "a query must be covered where there is one", broken("coverage"))
async def _(scene: Scene) -> Wire:
    return Wire(method="GET", target="/v1/servers?limit=1", headers=scene.sign(scene.owner, *LIST).headers)


@signature("the only query dropped", "@query is covered", broken("signature"))
async def _(scene: Scene) -> Wire:
    wire = scene.sign(scene.owner, "GET", "/v1/servers?limit=1")
    return Wire(method="GET", target="/v1/servers", headers=wire.headers)


@signature("query in another order", "@query is bytes", broken("signature"))
async def _(scene: Scene) -> Wire:
    wire = scene.sign(scene.owner, "GET", "/v1/servers?limit=1&page=2")
    return Wire(method="GET", target="/v1/servers?page=2&limit=1", headers=wire.headers)


@signature("@request-target instead of method and path", "it leaves the authority out", broken("coverage"))
async def _(scene: Scene) -> Wire:
    return scene.sign(scene.owner, *LIST, components='"@request-target"')


@signature("@target-uri instead of its parts", "one way to say it", broken("coverage"))
async def _(scene: Scene) -> Wire:
    return scene.sign(scene.owner, *LIST, components='"@target-uri" "@method"')


@signature(
    "of the owner's address by the thief's key",
    "the keyid is a claim, the signature is the proof",
    broken("signature"),
)
async def _(scene: Scene) -> Wire:
    return scene.sign(scene.owner, "DELETE", f"/v1/servers/{scene.server}", by=scene.thief.account)


@signature(
    "the owner's name beside the thief's good signature", "who is checked first is who calls", NOT_YOURS
)
async def _(scene: Scene) -> Wire:
    target = f"/v1/servers/{scene.server}"
    mine = scene.sign(scene.thief, "DELETE", target)
    forged = scene.sign(scene.owner, "DELETE", target, by=scene.thief.account, label="b")
    return Wire(
        method="DELETE",
        target=target,
        headers=tuple((name, f"{value}, {forged.value(name)}") for name, value in mine.headers),
    )


@signature(
    "the owner's name before the thief's good signature",
    "the next signature does not mend the first",
    broken("signature"),
)
async def _(scene: Scene) -> Wire:
    target = f"/v1/servers/{scene.server}"
    mine = scene.sign(scene.thief, "DELETE", target)
    forged = scene.sign(scene.owner, "DELETE", target, by=scene.thief.account, label="b")
    return Wire(
        method="DELETE",
        target=target,
        headers=tuple((name, f"{forged.value(name)}, {value}") for name, value in mine.headers),
    )


@signature(
    "input and signature under each other's label",
    "RFC 9421 section 4: labels tie them together",
    broken("signature"),
)
async def _(scene: Scene) -> Wire:
    target = f"/v1/servers/{scene.server}"
    mine = scene.sign(scene.thief, "DELETE", target, label="b")
    forged = scene.sign(scene.owner, "DELETE", target, by=scene.thief.account, label="a")
    swapped = forged.value("signature").replace("a=", "b="), mine.value("signature").replace("b=", "a=")
    return Wire(
        method="DELETE",
        target=target,
        headers=(
            ("signature-input", f"{forged.value('signature-input')}, {mine.value('signature-input')}"),
            ("signature", ", ".join(swapped)),
        ),
    )


@signature(
    "of a contract wallet that says yes to all", "#2658: EIP-1271 is not in this version", broken("signature")
)
async def _(scene: Scene) -> Wire:
    return scene.sign(scene.owner, *LIST, signature=lambda made: made + b"\x64\x92" * 16)


@signature("over the payment of another", "a signature is no payment: a deposit wants x402", unpaid())
async def _(scene: Scene) -> Wire:
    return scene.sign(scene.thief, "POST", "/v1/balance/deposit", {"amount": "5.00"})


for name, kind in (("Basic", "Basic b3duZXI6"), ("Bearer", "Bearer 0x0"), ("X402", "X402 owner")):

    @signature(f"in Authorization: {name}", "no password, no key: it proves nothing", unpaid())
    async def _(scene: Scene, kind: str = kind) -> Wire:
        return scene.ask(*LIST, None, ("Authorization", kind))


for header in ("X-Wallet", "X-Forwarded-User", "X-Payer", "From", "Cookie", "X-Real-IP", "X-API-Key"):

    @signature(f"in {header}", "a claim is no proof", unpaid())
    async def _(scene: Scene, header: str = header) -> Wire:
        return scene.ask(*LIST, None, (header, scene.owner.address))
