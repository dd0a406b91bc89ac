"""What a machine may tell of itself: by a token that only it has, once, and of nobody else."""

from typing import Final

from spawn_schemas.ids import ServerId

from spawn.store import secrets
from tests.attacks.kit import BAD_REQUEST, NOTHING_THERE, Theme, refused, served
from tests.attacks.scene import Scene, Wire

boot = Theme("boot")

DONE: Final = {"cloud_init": "done", "log": "finished\n"}
FAILED: Final = {"cloud_init": "failed", "log": "\x1b[2Jrm -rf /\n"}
SSH: Final = {"ssh": True}
RATE: Final = {"rate_address_per_minute": 5}


def of_the_owner(scene: Scene) -> tuple[str, ...]:
    """What would tell whose machine it is."""
    return (scene.server, scene.owner.address, "owned")


async def token_of(scene: Scene) -> str:
    """What the owner's machine reports under: whoever is on it can read that."""
    vault = scene.world.service.services.shop.vault
    server = ServerId(scene.server)
    token = await scene.world.parts.db.write(lambda tx: vault.find(tx, server, secrets.CALLBACK))
    assert token is not None
    return token


def report(scene: Scene, token: str, body: object) -> Wire:
    return scene.ask("POST", f"/v1/boots/{token}", body)


@boot("guessed tokens", "256 random bits, and the same answer to each", NOTHING_THERE, hidden=of_the_owner)
async def _(scene: Scene) -> list[Wire]:
    token = await token_of(scene)
    near = (
        token[:-1],
        token + "0",
        token.upper(),
        token[::-1],
        "0" * 64,
        scene.server,
        "*",
        "%25",
        "x" * 4_000,
    )
    return [report(scene, guess, FAILED) for guess in near if guess != token]


@boot("guesses without end", "they count against their address", {NOTHING_THERE: 5, refused(429, "rate_limited"): 3},
      settings=RATE)  # fmt: skip
async def _(scene: Scene) -> list[Wire]:
    return [report(scene, f"{number:064x}", DONE) for number in range(8)]


@boot("the hash of a token", "what the table has finds nothing", NOTHING_THERE)
async def _(scene: Scene) -> list[Wire]:
    rows = await scene.world.rows("SELECT token_hash FROM boot")
    return [report(scene, row["token_hash"], FAILED) for row in rows]


@boot(
    "another end after the first",
    "each part is told once, and a log that was shown stays",
    NOTHING_THERE,
    alone=True,
    hidden=of_the_owner,
)
async def _(scene: Scene) -> list[Wire]:
    token = await token_of(scene)
    for body in (SSH, DONE):
        await scene.honest(report(scene, token, body))
    return [report(scene, token, body) for body in (FAILED, DONE | {"log": "other"}, {"cloud_init": "done"})]


@boot("a repeated report", "a repetition is answered, and nothing comes of it", served(), alone=True)
async def _(scene: Scene) -> list[Wire]:
    token = await token_of(scene)
    for body in (SSH, DONE):
        await scene.honest(report(scene, token, body))
    scene.rest()
    return [report(scene, token, body) for body in (DONE, SSH, DONE)]


@boot("a report for a server that goes", "a machine that is being destroyed has nothing to tell", NOTHING_THERE,
      alone=True)  # fmt: skip
async def _(scene: Scene) -> list[Wire]:
    token = await token_of(scene)
    await scene.honest(scene.sign(scene.owner, "DELETE", f"/v1/servers/{scene.server}"))
    return [report(scene, token, body) for body in (SSH, DONE)]


@boot("a report for a server that is gone", "its token went with it", NOTHING_THERE, alone=True)
async def _(scene: Scene) -> list[Wire]:
    token = await token_of(scene)
    await scene.honest(scene.sign(scene.owner, "DELETE", f"/v1/servers/{scene.server}"))
    await scene.world.run_for(60, step_s=10)
    return [report(scene, token, body) for body in (SSH, DONE)]


@boot(
    "a report of the system before a rebuild",
    "a rebuild ends what was planted before",
    NOTHING_THERE,
    alone=True,
)
async def _(scene: Scene) -> list[Wire]:
    token = await token_of(scene)
    await scene.honest(
        scene.sign(scene.owner, "POST", f"/v1/servers/{scene.server}/rebuild", {"image": "debian-12"})
    )
    return [report(scene, token, body) for body in (SSH, FAILED)]


@boot("reports that are none", "a report says what it may, in as many letters as it may", BAD_REQUEST)
async def _(scene: Scene) -> list[Wire]:
    token = await token_of(scene)
    bodies: tuple[object, ...] = (
        {},
        {"ssh": False},
        {"ssh": 1},
        {"cloud_init": "done", "log": "x" * 16_385},
        {"cloud_init": "done", "server": scene.server},
        {"cloud_init": ["done"]},
        {"log": "only"},
        b'{"cloud_init": "done", "log": "\xff\xfe"}',
        b"[" * 10_000,
        b"",
    )
    return [report(scene, token, body) for body in bodies]


@boot("a log of 120 KiB", "a log has 16 KiB", BAD_REQUEST)
async def _(scene: Scene) -> Wire:
    return report(scene, await token_of(scene), DONE | {"log": "x" * 120_000})


@boot("a report of 200 KiB", "no body is larger than the setting says", refused(413, "request_too_large"))
async def _(scene: Scene) -> Wire:
    return report(scene, await token_of(scene), DONE | {"log": "x" * 200_000})
