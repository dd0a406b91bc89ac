"""Webhooks of others, and webhooks that aim us at what only we can reach."""

from typing import Any

from tests.attacks.kit import BAD_REQUEST, NOT_YOURS, NOTHING_THERE, Theme, refused, replayed, unpaid
from tests.attacks.scene import Scene, Wire
from tests.attacks.sessions import bearer, signing_in, token_of

webhook = Theme("webhooks")

WEBHOOKS = "/v1/webhooks"
HOOK = {"url": "http://127.0.0.1:9/hooks"}
CALLS: tuple[tuple[str, str, Any], ...] = (
    ("GET", "", None),
    ("GET", "/deliveries", None),
    ("PATCH", "", {"url": "http://127.0.0.1:10/stolen"}),
    ("PATCH", "", {"enabled": False}),
    ("POST", "/test", None),
    ("POST", "/secret", None),
    ("DELETE", "", None),
)
"""Everything that can be done with a webhook: method, what follows its path, body."""


async def owned(scene: Scene) -> str:
    """The path of a webhook of the owner's."""
    found = await scene.honest(scene.sign(scene.owner, "GET", WEBHOOKS))
    if found["webhooks"]:
        return f"{WEBHOOKS}/{found['webhooks'][0]['id']}"
    made = await scene.honest(scene.sign(scene.owner, "POST", WEBHOOKS, HOOK))
    return f"{WEBHOOKS}/{made['webhook']['id']}"


for method, suffix, body in CALLS:
    what = f"{method} {suffix or 'webhook'}{' to ' + ', '.join(body) if body else ''}"

    @webhook(f"{what}, of another's", "promise 3: nobody touches what they do not own", NOT_YOURS)
    async def _(scene: Scene, method: str = method, suffix: str = suffix, body: Any = body) -> list[Wire]:
        target = await owned(scene) + suffix
        return [
            scene.sign(scene.thief, method, target, body),
            await scene.pay(scene.thief, method, target, body),
        ]

    @webhook(f"{what}, guessed", "what is not there is 404, before money is taken", NOTHING_THERE)
    async def _(scene: Scene, method: str = method, suffix: str = suffix, body: Any = body) -> list[Wire]:
        return [
            scene.sign(scene.thief, method, f"{WEBHOOKS}/{guess}{suffix}", body)
            for guess in ("wh_aaaaaaaaaaaaaaaaaaaaaaaaaa", "*", "wh_x'--", scene.server)
        ]


for what, url in (
    ("cloud metadata", "https://169.254.169.254/latest/meta-data/"),
    ("cloud metadata, IPv6", "https://[fd00:ec2::254]/latest/meta-data/"),
    ("cloud metadata by its name", "https://metadata.google.internal/"),
    ("a private network", "https://10.0.0.1/"),
    ("loopback in IPv6", "https://[::1]/"),
    ("loopback, IPv4-mapped", "https://[::ffff:127.0.0.1]/"),
    ("loopback in decimal", "http://2130706433/"),
    ("loopback in octal", "http://0177.0.0.1/"),
    ("localhost", "http://localhost/"),
    ("a host behind a user", "https://hooks.example.com@10.0.0.1/"),
    ("a header behind a line end", "https://hooks.example.com/\r\nx-evil: 1"),
    ("a file", "file:///etc/passwd"),
    ("this very service", "http://127.0.0.1:8402/v1/servers"),
    ("a name that nobody knows", "https://unknown.example.com/"),
):

    @webhook(f"{what}, registered", "SSRF (OWASP API7): refused before money is taken", BAD_REQUEST)
    async def _(scene: Scene, url: str = url) -> list[Wire]:
        good = await scene.payload(scene.thief, "POST", WEBHOOKS, HOOK)
        return [
            scene.sign(scene.thief, "POST", WEBHOOKS, {"url": url}),
            scene.paid(good, "POST", WEBHOOKS, {"url": url}),
        ]

    @webhook(f"{what}, by a change", "SSRF: a URL is checked whenever it is set", BAD_REQUEST)
    async def _(scene: Scene, url: str = url) -> Wire:
        return scene.sign(scene.owner, "PATCH", await owned(scene), {"url": url})


@webhook("one by a sign-in or a session", "they read, and a webhook is where events go", unpaid(), alone=True)
async def _(scene: Scene) -> list[Wire]:
    token = await token_of(scene, scene.owner)
    return [
        scene.ask("POST", WEBHOOKS, HOOK, signing_in(scene, scene.owner)),
        scene.ask("POST", WEBHOOKS, HOOK, bearer(token)),
    ]


@webhook(
    "a copy of the call that made one", "a secret is shown once: the stored answer has none", replayed(201)
)
async def _(scene: Scene) -> Wire:
    wire = await scene.pay(scene.thief, "POST", WEBHOOKS, HOOK)
    await scene.honest(wire)
    return wire


@webhook(
    "an eleventh",
    "each multiplies what an event costs: ten a wallet, also of many made at once",
    {refused(409, "conflict"): 3},
    alone=True,
)
async def _(scene: Scene) -> list[Wire]:
    for _ in range(10):
        await scene.honest(scene.sign(scene.thief, "POST", WEBHOOKS, HOOK))
    return [scene.sign(scene.thief, "POST", WEBHOOKS, HOOK) for _ in range(3)]
