"""Sign-ins and sessions: they say who reads, once or for a quarter of an hour, and never what is wanted.

Sessions of another service are made with the product's own code and another key; everything else goes over HTTP.
"""

from typing import Any

from spawn.payments.sessions import PREFIX, Sessions
from spawn.payments.sign_in import STALE
from tests.attacks.kit import BAD_REQUEST, NOT_YOURS, Answer, Theme, refused, replayed, served, unpaid
from tests.attacks.scene import BUY, LIST, SMALL, Scene, Wire
from tests.harness import BASE_URL, CHAIN_ID
from tests.integration.paid_calls import PUBLIC_KEY
from tests.unit import bad_sign_ins
from tests.unit.bad_sign_ins import BAD_SIGN_INS, BadSignIn, at
from tests.wallets import Wallet

sign_in = Theme("sign-in")
session = Theme("session")

BALANCE = ("GET", "/v1/balance")
SESSIONS = ("POST", "/v1/sessions")


def broken(reason: str) -> Answer:
    return refused(401, "invalid_signature", reason)


def party(scene: Scene) -> bad_sign_ins.Scene:
    """Who is signed in to, and when."""
    return bad_sign_ins.Scene(
        domain=scene.world.settings.authority, origin=BASE_URL, chain_id=CHAIN_ID, now=scene.now
    )


def signing_in(scene: Scene, wallet: Wallet, **options: Any) -> tuple[str, str]:
    """The header that says: this wallet reads."""
    nonce = options.pop("nonce", None) or scene.fresh_nonce()
    ours: dict[str, Any] = {"by": wallet.account, "address": wallet.account.address, "nonce": nonce}
    return ("SIGN-IN-WITH-X", bad_sign_ins.sign(party(scene), **(ours | options)))


async def token_of(scene: Scene, wallet: Wallet) -> str:
    """A session of this wallet."""
    opened = await scene.honest(scene.ask(*SESSIONS, None, signing_in(scene, wallet)))
    token: str = opened["session"]["token"]
    return token


def bearer(token: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {token}")


def writes(scene: Scene) -> tuple[tuple[str, str, Any], ...]:
    """Every call of the owner that changes something."""
    server = f"/v1/servers/{scene.server}"
    return (
        ("POST", "/v1/servers", SMALL | {"name": "stolen"}),
        ("PATCH", server, {"auto_renew": False}),
        ("DELETE", server, None),
        ("POST", f"{server}/deposit", {"amount": "0.10"}),
        *(("POST", f"{server}/{verb}", None) for verb in ("start", "stop", "poweroff", "reboot")),
        ("POST", f"{server}/resize", {"type": "medium"}),
        ("POST", f"{server}/rebuild", {"image": "ubuntu-24.04"}),
        ("POST", f"{server}/exec", {"argv": ["id"]}),
        ("POST", "/v1/ssh-keys", {"name": "thief", "public_key": PUBLIC_KEY.replace("fICEi", "fICEj")}),
        ("DELETE", f"/v1/ssh-keys/{scene.ssh_key}", None),
        ("POST", "/v1/suspense/claim", None),
    )


for entry in BAD_SIGN_INS:
    # Whoever comes too late is asked again, as anybody is, with a text that is fresh.
    answer = unpaid() if entry.reason == STALE else broken(entry.reason)

    @sign_in(entry.name, "EIP-4361 and the x402 extension sign-in-with-x", answer)
    async def _(scene: Scene, entry: BadSignIn = entry) -> list[Wire]:
        header = ("SIGN-IN-WITH-X", entry.make(party(scene)).encode().decode("latin-1"))
        return [scene.ask(*BALANCE, None, header), scene.ask(*SESSIONS, None, header)]


@sign_in("on every write", "the text covers neither method nor body", unpaid())
async def _(scene: Scene) -> list[Wire]:
    return [
        scene.ask(method, target, body, signing_in(scene, scene.owner))
        for method, target, body in writes(scene)
    ]


@sign_in("that is stale, where a read costs money", "it is asked again, and told the price", unpaid())
async def _(scene: Scene) -> Wire:
    return scene.ask(*LIST, None, signing_in(scene, scene.owner, issuedAt=at(scene.now - 301)))


@sign_in("with two keys", "two keys are no key, whoever sends them", BAD_REQUEST)
async def _(scene: Scene) -> Wire:
    keys = (("Idempotency-Key", "one"), ("Idempotency-Key", "two"))
    return scene.ask(*BALANCE, None, signing_in(scene, scene.owner), *keys)


@sign_in(
    "used again for the same read",
    "it binds no request: whoever shows it again need not be who was answered",
    broken("nonce_used"),
)
async def _(scene: Scene) -> Wire:
    header = signing_in(scene, scene.owner)
    await scene.honest(scene.ask(*BALANCE, None, header))
    return scene.ask(*BALANCE, None, header)


@sign_in("used again for another read", "each nonce is accepted once", broken("nonce_used"))
async def _(scene: Scene) -> Wire:
    header = signing_in(scene, scene.owner)
    await scene.honest(scene.ask(*BALANCE, None, header))
    return scene.ask(*LIST, None, header)


@sign_in("used for a session after a read", "each nonce is accepted once, wherever", broken("nonce_used"))
async def _(scene: Scene) -> Wire:
    header = signing_in(scene, scene.owner)
    await scene.honest(scene.ask(*BALANCE, None, header))
    return scene.ask(*SESSIONS, None, header)


@sign_in("used for a read after a session", "the other way round", broken("nonce_used"))
async def _(scene: Scene) -> Wire:
    header = signing_in(scene, scene.owner)
    await scene.honest(scene.ask(*SESSIONS, None, header))
    return scene.ask(*BALANCE, None, header)


@sign_in("used for a second session", "one sign-in, one session", broken("nonce_used"))
async def _(scene: Scene) -> Wire:
    header = signing_in(scene, scene.owner)
    await scene.honest(scene.ask(*SESSIONS, None, header))
    return scene.ask(*SESSIONS, None, header)


@sign_in("signed anew over a used nonce", "the nonce counts, not the signature", broken("nonce_used"))
async def _(scene: Scene) -> Wire:
    nonce = scene.fresh_nonce()
    await scene.honest(scene.ask(*BALANCE, None, signing_in(scene, scene.owner, nonce=nonce)))
    again = signing_in(scene, scene.owner, nonce=nonce, issuedAt=at(scene.now - 1))
    return scene.ask(*BALANCE, None, again)


@sign_in("of the owner's address by the thief's key", "the address is a claim", broken("signature"))
async def _(scene: Scene) -> Wire:
    return scene.ask(*BALANCE, None, signing_in(scene, scene.owner, by=scene.thief.account))


@sign_in("for another host that proxies to us", "the configured origin decides, never Host", broken("domain"))
async def _(scene: Scene) -> list[Wire]:
    header = signing_in(scene, scene.owner, domain="other.example", uri="http://other.example/")
    return [
        scene.ask(*BALANCE, None, header),
        scene.ask(*BALANCE, None, header, ("Host", "other.example")),
        scene.ask(*BALANCE, None, header, ("X-Forwarded-Host", "other.example")),
    ]


@sign_in("in two lines", "joined, they are no base64", broken("malformed"))
async def _(scene: Scene) -> Wire:
    return scene.ask(*BALANCE, None, signing_in(scene, scene.owner), signing_in(scene, scene.owner))


@sign_in("of the thief at the owner's server", "who signs in is who reads", NOT_YOURS)
async def _(scene: Scene) -> Wire:
    return scene.ask("GET", f"/v1/servers/{scene.server}", None, signing_in(scene, scene.thief))


@sign_in("beside the thief's payment", "a payment decides over a sign-in: who pays is who calls", NOT_YOURS)
async def _(scene: Scene) -> Wire:
    wire = await scene.pay(scene.thief, "GET", f"/v1/servers/{scene.server}")
    return wire.plus(signing_in(scene, scene.owner))


@sign_in(
    "beside the thief's signature", "a signature decides over a sign-in: it binds the request", NOT_YOURS
)
async def _(scene: Scene) -> Wire:
    target = f"/v1/servers/{scene.server}"
    return scene.sign(scene.thief, "DELETE", target, None, signing_in(scene, scene.owner))


@sign_in(
    "fifty copies at once",
    "the nonce is inserted in one transaction: one of them is let in",
    {served(): 1, broken("nonce_used"): 49},
    effect={"calls": 1},
    at_once=True,
)
async def _(scene: Scene) -> list[Wire]:
    return [scene.ask(*BALANCE, None, signing_in(scene, scene.owner, nonce="a" * 16))] * 50


@session("on every write", "read-only: a stolen session cannot cost anything but a read", unpaid())
async def _(scene: Scene) -> list[Wire]:
    token = await token_of(scene, scene.owner)
    return [scene.ask(method, target, body, bearer(token)) for method, target, body in writes(scene)]


@session(
    "opened again by whoever saw it opened",
    "a token is handed out once: the stored answer has none (`seen` looks for it)",
    replayed(201),
)
async def _(scene: Scene) -> list[Wire]:
    signed = scene.sign(scene.owner, *SESSIONS)
    paid = await scene.pay(scene.owner, *SESSIONS)
    for wire in (signed, paid):
        await scene.honest(wire)
    return [signed, paid]


@session("in two lines of Authorization", "joined, they are no token", broken("session_invalid"))
async def _(scene: Scene) -> Wire:
    lines = [bearer(await token_of(scene, scene.owner)) for _ in range(2)]
    return scene.ask(*BALANCE, None, *lines)


@session("for a deposit", "a deposit is paid by x402", unpaid())
async def _(scene: Scene) -> Wire:
    token = await token_of(scene, scene.owner)
    return scene.ask("POST", "/v1/balance/deposit", {"amount": "1.00"}, bearer(token))


@session("for another session", "a session does not renew itself", unpaid())
async def _(scene: Scene) -> Wire:
    return scene.ask(*SESSIONS, None, bearer(await token_of(scene, scene.owner)))


@session("that expired", "15 minutes", broken("session_expired"), alone=True)
async def _(scene: Scene) -> Wire:
    token = await token_of(scene, scene.owner)
    scene.world.clock.advance(900)
    return scene.ask(*BALANCE, None, bearer(token))


@session("of a service with another key", "an HMAC under our secret key", broken("session_invalid"))
async def _(scene: Scene) -> Wire:
    forged = Sessions(b"k" * 32).issue(scene.owner.address, entropy=bytes(16), now=scene.now)
    return scene.ask(*BALANCE, None, bearer(forged))


@session("of a service with no key", "a key that somebody forgot to set is no key", broken("session_invalid"))
async def _(scene: Scene) -> list[Wire]:
    keys = (b"", bytes(32), b"5a" * 32)
    return [
        scene.ask(
            *BALANCE,
            None,
            bearer(Sessions(key).issue(scene.owner.address, entropy=bytes(16), now=scene.now)),
        )
        for key in keys
    ]


@session(
    "with the owner's address in the thief's", "the address is under the HMAC", broken("session_invalid")
)
async def _(scene: Scene) -> Wire:
    mine, theirs = await token_of(scene, scene.thief), await token_of(scene, scene.owner)
    # 20 bytes of address are 26 letters of base64 and a part of the next.
    return scene.ask(*BALANCE, None, bearer(theirs[: len(PREFIX) + 27] + mine[len(PREFIX) + 27 :]))


for name, change in (
    ("a letter changed", lambda token: token[:-2] + ("A" if token[-2] != "A" else "B") + token[-1]),
    ("cut short", lambda token: token[:-1]),
    ("padded", lambda token: token + "="),
    ("with more behind it", lambda token: token + "AAAA"),
    ("in capitals", lambda token: PREFIX + token[len(PREFIX) :].upper()),
    ("in the standard alphabet", lambda token: PREFIX + "/" + token[len(PREFIX) + 1 :]),
    ("empty", lambda _: PREFIX),
    ("of 8 KiB", lambda _: PREFIX + "A" * 8_192),
    ("in other letters", lambda _: PREFIX + "\xe9" * 20),
):

    @session(name, "a token has one spelling", broken("session_invalid"))
    async def _(scene: Scene, change: Any = change) -> Wire:
        return scene.ask(*BALANCE, None, bearer(change(await token_of(scene, scene.owner))))


@session("in the query", "a token in a URL is in every log: it is not looked for there", unpaid())
async def _(scene: Scene) -> Wire:
    return scene.ask("GET", f"/v1/balance?access_token={await token_of(scene, scene.owner)}")


for name in ("Cookie", "X-Auth-Token", "Proxy-Authorization"):

    @session(f"in {name}", "one header carries it", unpaid())
    async def _(scene: Scene, name: str = name) -> Wire:
        return scene.ask(*BALANCE, None, (name, await token_of(scene, scene.owner)))


@session("without its scheme", "RFC 6750: Bearer and a space", unpaid())
async def _(scene: Scene) -> list[Wire]:
    token = await token_of(scene, scene.owner)
    return [
        scene.ask(*BALANCE, None, ("Authorization", value))
        for value in (token, f"Basic {token}", f"Bearer{token}", f"Token {token}")
    ]


@session("of the owner beside the thief's signed request", "a signature decides over a session", NOT_YOURS)
async def _(scene: Scene) -> list[Wire]:
    target, token = f"/v1/servers/{scene.server}", await token_of(scene, scene.owner)
    return [scene.sign(scene.thief, method, target, None, bearer(token)) for method in ("GET", "DELETE")]


@session("of the owner beside the thief's payment", "a payment decides over a session", NOT_YOURS)
async def _(scene: Scene) -> Wire:
    target, token = f"/v1/servers/{scene.server}", await token_of(scene, scene.owner)
    return (await scene.pay(scene.thief, "GET", target)).plus(bearer(token))


@session("of the thief at the owner's server", "who opened it is who reads", NOT_YOURS)
async def _(scene: Scene) -> Wire:
    token = await token_of(scene, scene.thief)
    return scene.ask("GET", f"/v1/servers/{scene.server}", None, bearer(token))


@session("opened by nobody", "a session needs a proof", unpaid())
async def _(scene: Scene) -> Wire:
    return scene.ask(*SESSIONS)


@session(
    "with a key that holds a stored order",
    "a key opens nothing to a proof that may not write",
    unpaid(),
    alone=True,
)
async def _(scene: Scene) -> Wire:
    key = ("Idempotency-Key", "order")
    token = await token_of(scene, scene.owner)
    await scene.honest((await scene.pay(scene.owner, "POST", "/v1/servers", BUY)).plus(key))
    return scene.ask("POST", "/v1/servers", BUY, bearer(token), key)


@session("of an owner without money, reading", "a read has its price on every rail", unpaid(), alone=True)
async def _(scene: Scene) -> Wire:
    poor = await scene.world.wallet("0")
    return scene.ask(*LIST, None, bearer(await token_of(scene, poor)))
