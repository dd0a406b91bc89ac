"""Attacks by form: bodies that are no bodies, other spellings of a path, targets that only we can reach, floods.

Invariant: what is not understood is refused before it costs anybody anything, and whoever makes noise is asked to
wait, alone.
"""

from dataclasses import replace
from typing import Any, Final

from tests.sim.attacker_forgeries import UNPAID
from tests.sim.attacker_kit import CREATE, READ, Thief, attack, word
from tests.sim.moves import Kind

BAD: Final = "400 invalid_request"
TOO_LARGE: Final = "413 request_too_large"
ORDER: Final = b'{"name":"web","type":"small","image":"ubuntu-24.04","location":"nbg1"}'
BODIES: Final[tuple[tuple[bytes, str], ...]] = (
    (b" ", BAD),
    (ORDER[:-1], BAD),
    (ORDER * 2, BAD),
    (ORDER + b"\0", BAD),
    (ORDER.replace(b"web", b"w\xffb"), BAD),
    (ORDER.replace(b"web", b"w\\ud800b"), BAD),
    (ORDER.replace(b"web", b"web\\n"), BAD),
    (ORDER.replace(b'"web"', b"NaN"), BAD),
    (ORDER.replace(b'"web"', b"9" * 5_000), BAD),
    (b'{"ssh_keys":' + b"[" * 3_000 + b"]" * 3_000 + b"}", BAD),
    (b'{"ssh_keys":' + b"[" * 60_000, BAD),
    (ORDER[:-1] + b',"wallet":"0x' + b"00" * 20 + b'"}', BAD),
    (ORDER[:-1] + b',"fund":"-1.00"}', BAD),
    (ORDER[:-1] + b',"fund":"1e3"}', BAD),
    (ORDER[:-1] + b',"fund":"0.0000001"}', BAD),
    (ORDER[:-1] + b',"deposit":5}', BAD),
    (ORDER[:-1] + b',"user_data":"' + b"x" * 40_000 + b'"}', BAD),
    (ORDER + b" " * 131_072, TOO_LARGE),
    (b"\x1f\x8b\x08\x00" + bytes(40), BAD),
)
PATHS: Final = (
    "/v1/servers/",
    "//v1/servers",
    "/v1//servers",
    "/v1/servers%2F",
    "/v1%2Fservers",
    "/v1/%73ervers",
    "/v1/servers%00",
    "/v1/servers;a=1",
    "/v1/./servers",
    "/v1/catalog/../servers",
    "/V1/servers",
    "/v1/Servers",
    "/v1/servers.json",
    "/v1/servers/{}/",
    "/v1/servers//{}",
    "/v1/servers%2F{}",
    "/v1/servers/x/../{}",
    "/v1/servers/{}%00",
    "/v1/servers/{}/stop/now",
)
QUERIES: Final = (
    "limit=0",
    "limit=101",
    "limit=-1",
    "page=99999999999999999999",
    "status=running'--",
    "limit=%D9%A1",
)
CURSORS: Final = (
    "after=c1",
    "after=evt_1'--",
    "after=evt_" + "9" * 4_000,
    "type=%25",
    "resource=" + "r" * 129,
)
TARGETS: Final = (
    "https://169.254.169.254/latest/meta-data/",
    "https://[fd00:ec2::254]/",
    "https://metadata.google.internal/",
    "https://10.0.0.1/",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "http://2130706433/",
    "http://0177.0.0.1/",
    "http://localhost/",
    "https://hooks.example.com@10.0.0.1/",
    "https://hooks.example.com/\r\nx-evil: 1",
    "file:///etc/passwd",
    "https://nobody.invalid/",
)


async def body(thief: Thief) -> None:
    """An order that is none, unpaid, signed or paid."""
    text, reason = thief.random.choice(BODIES)
    path = "/v1/servers"
    request = thief.random.choice(
        (
            lambda: thief.ask("POST", path, text),
            lambda: thief.sign("POST", path, text),
            lambda: thief.pay(CREATE, "POST", path, text),
        )
    )()
    await thief.strike(request, reason)


async def path(thief: Thief) -> None:
    """A path by another name, also of somebody's server."""
    theirs = thief.their("server")
    spelled = thief.random.choice(PATHS).format("srv_a" if theirs is None else theirs["id"])
    method = thief.random.choice(("GET", "POST", "DELETE"))
    await thief.strike(thief.prove(READ, method, spelled), "404 not_found", "405 method_not_allowed")


async def query(thief: Thief) -> None:
    """Parameters that are none, on every rail."""
    where, texts = thief.random.choice((("/v1/servers", QUERIES), ("/v1/events", CURSORS)))
    text = thief.random.choice(texts)
    ask = thief.random.choice((thief.ask("GET", where, query=text), thief.sign("GET", where, query=text)))
    await thief.strike(ask, BAD)


async def target(thief: Thief) -> None:
    """A webhook that would have us call where only we can."""
    wanted: Any = {"url": thief.random.choice(TARGETS)}
    await thief.strike(thief.prove(READ, "POST", "/v1/webhooks", wanted), BAD)


async def flood(thief: Thief) -> None:
    """More calls than an address may make without a proof; neighbours, and whoever proves something, notice nothing."""
    limit = thief.world.settings.rate_address_per_minute
    began, process = thief.world.loop.time(), thief.world.process
    calls = [thief.ask("GET", "/v1/servers", query="limit=3")] * (limit + 60)
    answers = await thief.at_once(*calls, right=(UNPAID,))
    told = [word(answer) for answer in answers].count("429 rate_limited")
    in_a_second = thief.world.loop.time() - began < 1.0 and process is thief.world.process
    if in_a_second and len(answers) > limit + 30 and told == 0:
        thief.world.violation(
            "answers", f"{thief.name}: {len(answers)} calls without proof, and none too many"
        )
    neighbour = await thief.send(
        replace(calls[0], address=f"198.18.{thief.random.randrange(256)}.{thief.random.randrange(256)}")
    )
    proven = await thief.send(thief.sign("GET", "/v1/balance"))
    for answer in (neighbour, proven):
        if answer is not None and word(answer) == "429 rate_limited":
            thief.world.violation("answers", f"{thief.name}: another caller is told to wait: {answer.body!r}")


MOVES: Final[tuple[Kind, ...]] = (
    attack("body", 0.8, body),
    attack("path", 0.8, path),
    attack("query", 0.4, query),
    attack("target", 0.5, target),
    attack("flood", 0.05, flood),
)
