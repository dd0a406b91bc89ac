"""Whoever says that he is a lent machine, and machines that speak of what is another's."""

from base64 import b64encode
from typing import Any

from spawn_schemas import hosts as wire
from spawn_schemas import orders

from spawn.domain.hosts import TOKEN_S
from tests.attacks.kit import NOT_YOURS, Answer, Theme, refused, served
from tests.attacks.lent_scene import SETTINGS, encoded, new_token
from tests.attacks.scene import Scene, Wire
from tests.attacks.sessions import bearer, token_of
from tests.integration.hosts_world import TOKEN
from tests.integration.scripted_host import ScriptedHost

host = Theme("host")

UNPROVEN: Answer = refused(401, "invalid_signature")
FRESH = "spwn_reg_fresh"


def registering(scene: Scene, body: object) -> Wire:
    return scene.ask("POST", wire.REGISTER_PATH, body)


def called(
    scene: Scene, machine: ScriptedHost, path: str, body: object, *, sent: object = None, **instead: str
) -> Wire:
    """A plain call that `machine` signed; `sent` is the body that travels instead."""
    content = encoded(body)
    headers = machine.headers("POST", path, content, **instead)
    return scene.ask(
        "POST", path, content if sent is None else sent, *((name, value) for name, value in headers.items())
    )


def as_victim(scene: Scene, made: Wire) -> Wire:
    """The thief's call under the other host's name."""
    return made.edited(wire.HOST_HEADER, lambda _: scene.lent.host.host_id)


def key_change(scene: Scene) -> wire.ChangeKey:
    """To the thief's third key."""
    third = ScriptedHost("third", scene.world.clock.now_s)
    text = wire.registration_text(scene.lent.host.host_id, third.public_key)
    return wire.ChangeKey(public_key=third.public_key, proof=third.sign(text))


@host("a token that was used", "a token is good once", NOT_YOURS, settings=SETTINGS)
async def _(scene: Scene) -> Wire:
    return registering(scene, ScriptedHost("third", scene.world.clock.now_s).registration(TOKEN))


@host("a token that has expired", "a token is good for a day", NOT_YOURS, settings=SETTINGS)
async def _(scene: Scene) -> Wire:
    await new_token(scene.lent, "shed", FRESH)
    scene.world.clock.advance(TOKEN_S)
    return registering(scene, ScriptedHost("third", scene.world.clock.now_s).registration(FRESH))


@host(
    "tokens that nobody gave out",
    "256 random bits, and their hash finds nothing",
    NOT_YOURS,
    settings=SETTINGS,
)
async def _(scene: Scene) -> list[Wire]:
    third = ScriptedHost("third", scene.world.clock.now_s)
    rows = await scene.world.rows("SELECT hash FROM host_token")
    guesses = ("spwn_reg_" + "0" * 64, "", "'--", TOKEN.upper(), *(row["hash"] for row in rows))
    return [registering(scene, third.registration(guess)) for guess in guesses]


@host(
    "another machine's registration under one's own key",
    "the proof is over the token and the key",
    UNPROVEN,
    settings=SETTINGS,
)
async def _(scene: Scene) -> list[Wire]:
    await new_token(scene.lent, "shed", FRESH)
    third = ScriptedHost("third", scene.world.clock.now_s)
    seen, own = scene.lent.host.registration(FRESH), third.registration("spwn_reg_other")
    mine = {"public_key": third.public_key}
    forged = {"proof": b64encode(bytes(64)).decode()}
    return [registering(scene, seen | change) for change in (mine, mine | {"proof": own["proof"]}, forged)]


@host(
    "a heartbeat of another machine",
    "the signature is by the key that the named host registered",
    UNPROVEN,
    settings=SETTINGS,
)
async def _(scene: Scene) -> list[Wire]:
    signed = as_victim(scene, called(scene, scene.foreign_host, wire.HEARTBEAT_PATH, wire.Beat()))
    thief = scene.foreign_host
    thief.host_id, own = scene.lent.host.host_id, thief.host_id
    named = called(scene, thief, wire.HEARTBEAT_PATH, wire.Beat())
    thief.host_id = own
    return [signed, named, named.edited(wire.SIGNATURE_HEADER, lambda _: b64encode(bytes(64)).decode())]


@host("a key for another machine", "the call is the old key's", UNPROVEN, settings=SETTINGS)
async def _(scene: Scene) -> list[Wire]:
    change = key_change(scene)
    thief = scene.foreign_host
    thief.host_id, own = scene.lent.host.host_id, thief.host_id
    named = called(scene, thief, wire.KEY_PATH, change)
    thief.host_id = own
    return [named, as_victim(scene, called(scene, thief, wire.KEY_PATH, change))]


@host("another body, path or time under a signature", "all of it is signed", UNPROVEN, settings=SETTINGS)
async def _(scene: Scene) -> list[Wire]:
    victim, beat = scene.lent.host, wire.HEARTBEAT_PATH
    drained = encoded(wire.Beat(status="drained"))
    moved = called(scene, victim, beat, key_change(scene))
    later = str(scene.now + 30)
    return [
        called(scene, victim, beat, wire.Beat(), sent=drained),
        Wire(method="POST", target=wire.KEY_PATH, headers=moved.headers, body=moved.body),
        Wire(method="POST", target=f"{beat}?x=1", headers=moved.headers, body=moved.body),
        called(scene, victim, beat, wire.Beat()).edited(wire.TIMESTAMP_HEADER, lambda _: later),
        called(scene, victim, beat, wire.Beat()).edited(wire.NONCE_HEADER, lambda nonce: nonce + "x"),
    ]


@host("a signed call again", "its nonce is used", UNPROVEN, settings=SETTINGS)
async def _(scene: Scene) -> list[Wire]:
    call = called(scene, scene.lent.host, wire.HEARTBEAT_PATH, wire.Beat())
    await scene.honest(call)
    scene.world.clock.advance(30)
    return [call, call]


@host("a signed call that was kept back", "what is older than a minute is late", UNPROVEN, settings=SETTINGS)
async def _(scene: Scene) -> Wire:
    call = called(scene, scene.lent.host, wire.HEARTBEAT_PATH, wire.Beat())
    scene.world.clock.advance(wire.CLOCK_SKEW_S + 1)
    return call


@host(
    "an answer to another machine's order",
    "a host ends its own commands, whatever ids it names",
    served(),
    settings=SETTINGS,
    effect={"host_calls": 1},
)
async def _(scene: Scene) -> Wire:
    """The owner's command is under way; the thief says what it wrote."""
    target = f"/v1/servers/{scene.server}/exec?wait=0"
    waiting = await scene.send(scene.sign(scene.owner, "POST", target, {"argv": ["id"]}))
    assert waiting.status_code == 200, waiting.text
    command = waiting.json()["ran"]["id"]
    ack = orders.Ack(command_id=command, state="succeeded", result={"stdout": "forged"})
    return called(scene, scene.foreign_host, wire.HEARTBEAT_PATH, wire.Beat(acks=(ack,)))


CALLS: tuple[tuple[str, str, Any], ...] = (
    ("GET", "/logs?wait=0", None),
    ("POST", "/exec?wait=0", {"argv": ["id"]}),
)

for method, suffix, body in CALLS:

    @host(
        f"{method} {suffix.partition('?')[0]} of another's server",
        "promise 3: nobody looks into what is not his",
        NOT_YOURS,
        settings=SETTINGS,
    )
    async def _(scene: Scene, method: str = method, suffix: str = suffix, body: Any = body) -> list[Wire]:
        target = f"/v1/servers/{scene.server}{suffix}"
        wires = [
            scene.sign(scene.thief, method, target, body),
            await scene.pay(scene.thief, method, target, body),
        ]
        if method == "GET":
            wires.append(scene.ask(method, target, None, bearer(await token_of(scene, scene.thief))))
        return wires


@host(
    "GET /commands of another's server",
    "promise 3: nobody looks into what is not his",
    NOT_YOURS,
    settings=SETTINGS,
)
async def _(scene: Scene) -> list[Wire]:
    run = f"/v1/servers/{scene.server}/exec?wait=0"
    ran = await scene.send(scene.sign(scene.owner, "POST", run, {"argv": ["id"]}))
    target = f"/v1/commands/{ran.json()['ran']['id']}?wait=0"
    return [
        scene.sign(scene.thief, "GET", target, None),
        await scene.pay(scene.thief, "GET", target, None),
        scene.ask("GET", target, None, bearer(await token_of(scene, scene.thief))),
    ]


@host(
    "what another's command wrote",
    "an answer is for who paid it: a copy of the call is another's call",
    NOT_YOURS,
    settings=SETTINGS,
    hidden=lambda _: ("cmd_",),
)
async def _(scene: Scene) -> Wire:
    target, key = f"/v1/servers/{scene.server}/exec?wait=0", ("Idempotency-Key", "theirs")
    await scene.send(scene.sign(scene.owner, "POST", target, {"argv": ["id"]}, key))
    return scene.sign(scene.thief, "POST", target, {"argv": ["id"]}, key)
