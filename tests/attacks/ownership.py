"""Another wallet's things: every verb and every way to name them."""

from typing import Any

from tests.attacks.kit import BAD_REQUEST, NOT_YOURS, NOTHING_THERE, Theme, refused, served
from tests.attacks.scene import SMALL, Scene, Wire
from tests.attacks.sessions import bearer, token_of

theft = Theme("ownership")

CALLS: tuple[tuple[str, str, Any], ...] = (
    ("GET", "", None),
    ("GET", "?wait=60", None),
    ("PATCH", "", {"name": "stolen"}),
    ("PATCH", "", {"auto_renew": False}),
    ("DELETE", "", None),
    ("POST", "/deposit", {"amount": "0.10"}),
    ("POST", "/start", None),
    ("POST", "/stop", None),
    ("POST", "/poweroff", None),
    ("POST", "/reboot", None),
    ("POST", "/resize", {"type": "medium"}),
    ("POST", "/rebuild", {"image": "ubuntu-24.04"}),
    ("GET", "/logs", None),
    ("POST", "/exec", {"argv": ["id"]}),
)
"""Everything that can be done with a server: method, what follows its path, body."""


for method, suffix, body in CALLS:
    what = f"{method} {suffix or 'server'}{' to ' + ', '.join(body) if body else ''}"

    @theft(f"{what}, signed", "promise 3: nobody touches what they do not own", NOT_YOURS)
    async def _(scene: Scene, method: str = method, suffix: str = suffix, body: Any = body) -> Wire:
        return scene.sign(scene.thief, method, f"/v1/servers/{scene.server}{suffix}", body)

    @theft(f"{what}, paid", "a doomed call is refused before its payment is settled", NOT_YOURS)
    async def _(scene: Scene, method: str = method, suffix: str = suffix, body: Any = body) -> Wire:
        return await scene.pay(scene.thief, method, f"/v1/servers/{scene.server}{suffix}", body)


@theft("DELETE the owner's SSH key", "promise 3", NOT_YOURS)
async def _(scene: Scene) -> list[Wire]:
    target = f"/v1/ssh-keys/{scene.ssh_key}"
    return [scene.sign(scene.thief, "DELETE", target), await scene.pay(scene.thief, "DELETE", target)]


@theft("the owner's SSH key on the thief's server", "a key id is a name, not a right", NOT_YOURS)
async def _(scene: Scene) -> list[Wire]:
    order = SMALL | {"name": "mine", "ssh_keys": [scene.ssh_key]}
    return [
        scene.sign(scene.thief, "POST", "/v1/servers", order),
        await scene.pay(scene.thief, "POST", "/v1/servers", order | {"fund": "0.50"}),
    ]


@theft("a server id in capitals", "an id is bytes", NOTHING_THERE)
async def _(scene: Scene) -> Wire:
    return scene.sign(scene.owner, "GET", f"/v1/servers/{scene.server.upper()}")


for name, server_id in (
    ("a guessed server", "srv_aaaaaaaaaaaaaaaaaaaaaaaaaa"),
    ("SQL for a server", "srv_x'--"),
    ("a pattern for a server", "*"),
    ("a list of servers", "srv_a,srv_b"),
    ("an action for a server", "act_aaaaaaaaaaaaaaaaaaaaaaaaaa"),
    ("a dot for a server", "."),
    ("two dots for a server", ".."),
    ("10 000 letters for a server", "s" * 10_000),
):

    @theft(name, "what is not there is 404, before money is taken", NOTHING_THERE)
    async def _(scene: Scene, server_id: str = server_id) -> list[Wire]:
        target = f"/v1/servers/{server_id}"
        return [
            scene.sign(scene.thief, "GET", target),
            scene.sign(scene.thief, "DELETE", target),
            await scene.pay(scene.thief, "POST", f"{target}/stop"),
        ]


@theft("a guessed SSH key", "what is not there is 404", NOTHING_THERE)
async def _(scene: Scene) -> Wire:
    return scene.sign(scene.thief, "DELETE", "/v1/ssh-keys/key_aaaaaaaaaaaaaaaaaaaaaaaaaa")


@theft("a guessed action", "an action id is a 128-bit capability: guessing finds nothing", NOTHING_THERE)
async def _(scene: Scene) -> list[Wire]:
    return [scene.ask("GET", f"/v1/actions/{guess}") for guess in ("act_" + "a" * 26, "1", "%", scene.server)]


@theft("another wallet's SSH key for the owner's server", "promise 3, the other way round", NOT_YOURS)
async def _(scene: Scene) -> Wire:
    mine = await scene.honest(
        scene.sign(
            scene.caller,
            "POST",
            "/v1/ssh-keys",
            {"name": "spy", "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "B" * 42 + "B"},
        )
    )
    order = SMALL | {"name": "trap", "ssh_keys": [mine["ssh_key"]["id"]]}
    return scene.sign(scene.owner, "POST", "/v1/servers", order)


@theft("a server that was destroyed", "nothing is left of it to act on", NOTHING_THERE, alone=True)
async def _(scene: Scene) -> list[Wire]:
    target = f"/v1/servers/{scene.server}"
    await scene.honest(scene.sign(scene.owner, "DELETE", target))
    await scene.world.run_for(60, step_s=10)
    return [scene.sign(scene.owner, "DELETE", target), await scene.pay(scene.owner, "DELETE", target)]


@theft("a second DELETE", "one destruction, one refund", refused(409, "conflict"), alone=True)
async def _(scene: Scene) -> list[Wire]:
    target = f"/v1/servers/{scene.server}"
    await scene.honest(scene.sign(scene.owner, "DELETE", target))
    return [scene.sign(scene.owner, "DELETE", target), await scene.pay(scene.owner, "DELETE", target)]


EVENTS = "/v1/events"


def of_the_owner(scene: Scene) -> tuple[str, ...]:
    """What only an event of the owner's would say."""
    return (scene.server, scene.ssh_key, scene.owner.address)


for name, query in (
    ("from the first on", "?after=evt_0&limit=100"),
    ("after a guessed one", "?after=evt_1&limit=100"),
    ("of a type", "?type=server.*"),
    ("of everything, twice", "?type=*&type=*"),
    ("of a wallet that the query names", "?wallet={owner}&owner={owner}"),
    ("of what happened to the owner's wallet", "?resource={owner}"),
    ("of what happened to the owner's server", "?resource={server}"),
    ("of what happened to the owner's key", "?resource={key}"),
):

    @theft(
        f"the owner's events {name}",
        "promise 3: who signs hears of his own things, and no query says whose",
        served(),
        effect={"calls": 2},
        hidden=of_the_owner,
    )
    async def _(scene: Scene, query: str = query) -> list[Wire]:
        owner, key = scene.owner.address, scene.ssh_key
        target = EVENTS + query.format(owner=owner, server=scene.server, key=key)
        by_session = scene.ask("GET", target, None, bearer(await token_of(scene, scene.thief)))
        return [scene.sign(scene.thief, "GET", target), by_session]


for name, query in (
    ("SQL for a cursor", "?after=evt_1%27--"),
    ("another list's cursor", "?after=c1"),
    ("a cursor of 4000 digits", "?after=evt_" + "9" * 4_000),
    ("a pattern for a type", "?type=%25"),
    ("half a type", "?type=server"),
):

    @theft(f"{name} in a list of events", "what is asked for is one of a list", BAD_REQUEST)
    async def _(scene: Scene, query: str = query) -> Wire:
        return scene.sign(scene.thief, "GET", EVENTS + query)


@theft("a resource that is SQL", "a value is data", served(), effect={"calls": 1}, hidden=of_the_owner)
async def _(scene: Scene) -> Wire:
    return scene.sign(scene.thief, "GET", EVENTS + "?resource=%27%20OR%201=1--")
