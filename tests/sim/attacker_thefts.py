"""Attacks on what is another's: every verb and every way to name it.

Invariant: who signs or pays is who calls; a thing of somebody else's is refused before anything is read, written or
paid, and a list has only the caller's own.
"""

from typing import Any, Final

from tests.sim.attacker_kit import CREATE, READ, Thief, attack, text_of
from tests.sim.moves import Kind

ON_SERVERS: Final[tuple[tuple[str, str, str, Any, int], ...]] = (
    ("GET", "", "", None, READ),
    ("GET", "", "wait=60", None, READ),
    ("PATCH", "", "", {"name": "stolen"}, READ),
    ("PATCH", "", "", {"auto_renew": False}, READ),
    ("DELETE", "", "", None, 5_000),
    ("POST", "/deposit", "", {"amount": "0.10"}, READ),
    ("POST", "/start", "", None, 2_000),
    ("POST", "/stop", "", None, 2_000),
    ("POST", "/poweroff", "", None, 2_000),
    ("POST", "/reboot", "", None, 2_000),
    ("POST", "/resize", "", {"type": "medium"}, CREATE),
    ("POST", "/rebuild", "", {"image": "ubuntu-24.04"}, 5_000),
)
"""Everything that can be done with a server: method, what follows its path, query, body, price."""
ON_WEBHOOKS: Final[tuple[tuple[str, str, Any], ...]] = (
    ("GET", "", None),
    ("GET", "/deliveries", None),
    ("PATCH", "", {"enabled": False}),
    ("PATCH", "", {"description": "mine"}),
    ("POST", "/test", None),
    ("POST", "/secret", None),
    ("DELETE", "", None),
)
GUESSES: Final = ("srv_aaaaaaaaaaaaaaaaaaaaaaaaaa", "wh_x'--", "*", ".", "..", "s" * 2_000)
NOT_YOURS: Final = "403 forbidden"
NOTHING_THERE: Final = "404 not_found"
BROKE: Final = "402 payment_required"
"""A signed read is paid before it looks: whoever has no money at all hears of that."""


def _proven(thief: Thief, price: int, method: str, path: str, body: Any, query: str = "") -> Any:
    return (
        thief.prove(price, method, path, query=query)
        if body is None
        else thief.prove(price, method, path, body, query=query)
    )


async def server(thief: Thief) -> None:
    """A verb on somebody's server, alive or not."""
    theirs = thief.their("server")
    if theirs is None:
        return
    method, suffix, query, body, price = thief.random.choice(ON_SERVERS)
    request = _proven(thief, price, method, f"/v1/servers/{theirs['id']}{suffix}", body, query)
    # A tombstone is forgotten after a month.
    gone = () if theirs["ended_at"] is None else (NOTHING_THERE,)
    await thief.strike(request, NOT_YOURS, *gone, *((BROKE,) if method == "GET" else ()))


async def webhook(thief: Thief) -> None:
    """A verb on somebody's webhook, which may be deleted meanwhile."""
    theirs = thief.their("webhook")
    if theirs is None:
        return
    method, suffix, body = thief.random.choice(ON_WEBHOOKS)
    request = _proven(thief, READ, method, f"/v1/webhooks/{theirs['id']}{suffix}", body)
    await thief.strike(request, NOT_YOURS, NOTHING_THERE, *((BROKE,) if method == "GET" else ()))


async def ssh_key(thief: Thief) -> None:
    """Somebody's key: deleted, or put on a server of the thief's own."""
    theirs = thief.their("ssh_key")
    if theirs is None:
        return
    if thief.random.random() < 0.5:
        request = thief.prove(READ, "DELETE", f"/v1/ssh-keys/{theirs['id']}")
        await thief.strike(request, NOT_YOURS, NOTHING_THERE)
        return
    fund = thief.random.choice((0, 500_000))
    body = _order(thief) | {"ssh_keys": [theirs["id"]]} | ({"fund": text_of(fund)} if fund else {})
    request = (
        thief.pay(CREATE + fund, "POST", "/v1/servers", body)
        if fund
        else thief.prove(CREATE, "POST", "/v1/servers", body)
    )
    await thief.strike(request, NOT_YOURS, NOTHING_THERE)


async def events(thief: Thief) -> None:
    """Lists that are asked, in words, for what is somebody else's; the oracle reads the answers."""
    theirs = thief.their("server")
    if theirs is None:
        return
    path, query = thief.random.choice(
        (
            ("/v1/events", "after=evt_0&limit=100"),
            ("/v1/events", f"resource={theirs['id']}&limit=100"),
            ("/v1/events", f"resource={theirs['wallet']}"),
            ("/v1/events", f"wallet={theirs['wallet']}&owner={theirs['wallet']}"),
            ("/v1/servers", f"wallet={theirs['wallet']}&status=running"),
            ("/v1/servers", f"owner={theirs['wallet']}&limit=100"),
            ("/v1/balance/transactions", f"wallet={theirs['wallet']}&cursor=c999999"),
            ("/v1/balance", f"wallet={theirs['wallet']}"),
            ("/v1/suspense", f"sender={theirs['wallet']}"),
        )
    )
    signs_in = thief.random.random() < 0.3
    request = (
        thief.ask("GET", path, query=query, headers={"SIGN-IN-WITH-X": thief.sign_in()})
        if signs_in
        else thief.sign("GET", path, query=query)
    )
    await thief.strike(request, "200", BROKE)


async def guess(thief: Thief) -> None:
    """Ids that are nobody's, or of something else; what is seen of others is tried where it does not belong."""
    theirs = thief.their("server")
    known = () if theirs is None else (theirs["id"].upper(), theirs["id"][:-1], theirs["wallet"])
    text = thief.random.choice((*GUESSES, *known))
    match thief.random.randrange(4):
        case 0:
            await thief.strike(thief.ask("GET", f"/v1/actions/{text}"), NOTHING_THERE)
        case 1:
            await thief.strike(thief.prove(5_000, "DELETE", f"/v1/servers/{text}"), NOTHING_THERE)
        case 2:
            await thief.strike(thief.prove(READ, "DELETE", f"/v1/ssh-keys/{text}"), NOTHING_THERE)
        case _:
            await thief.strike(thief.prove(READ, "POST", f"/v1/webhooks/{text}/secret"), NOTHING_THERE)


async def claim(thief: Thief) -> None:
    """What somebody else sent outside a call, claimed by naming its sender."""
    theirs = thief.pick(
        "SELECT * FROM arrival WHERE state = 'suspense' AND sender <> :me ORDER BY id", me=thief.key.address
    )
    sender = "0x" + "57" * 20 if theirs is None else theirs["sender"]
    named = {"sender": sender, "wallet": sender}
    path = "/v1/suspense/claim"
    request = thief.random.choice(
        (
            lambda: thief.sign("POST", path, named),
            lambda: thief.sign("POST", path, query=f"sender={sender}"),
            lambda: thief.pay(READ, "POST", path, named),
        )
    )()
    await thief.strike(request, "200", "402 settlement_failed")


async def claim_by(thief: Thief) -> None:
    """The same in the sender's own name: nothing but its signature is enough."""
    theirs = thief.pick("SELECT * FROM arrival WHERE state = 'suspense' ORDER BY id")
    sender = "0x" + "57" * 20 if theirs is None else theirs["sender"]
    path = "/v1/suspense/claim"
    if sender == thief.key.address:
        return
    await thief.strike(thief.sign("POST", path, keyid=sender), "401 signature")
    await thief.strike(
        thief.ask("POST", path, headers={"SIGN-IN-WITH-X": thief.sign_in(address=sender)}), BROKE
    )


def _order(thief: Thief) -> dict[str, Any]:
    return {
        "name": f"t{thief.random.getrandbits(40):x}",
        "type": "small",
        "image": "ubuntu-24.04",
        "location": "nbg1",
    }


MOVES: Final[tuple[Kind, ...]] = (
    attack("server", 3.0, server),
    attack("webhook", 1.0, webhook),
    attack("ssh_key", 1.0, ssh_key),
    attack("events", 1.5, events),
    attack("guess", 0.7, guess),
    attack("claim", 0.6, claim),
    attack("claim_by", 0.3, claim_by),
)
