"""What the tests of moving books share: a service that has lived, and everything that can be asked of it afterwards.

Invariant: the questions are the same wherever the books are, down to their nonces, so that the answers must be, too,
but for numbers given out since: PostgreSQL leaves some out, and they say no more than an order.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from spawn_providers.simulated_faults import Outage
from spawn_schemas.money import Usdc

from spawn.store import leases
from tests.harness import ORDER, START_S, VirtualClock, World, open_world
from tests.integration import arriving
from tests.integration.moving_books import FEE
from tests.integration.server_steps import drive, rent
from tests.wallets import Wallet

CLOUD_INIT: Final = "#cloud-config\n# sealed until the cloud takes it"
DEPOSIT: Final = ("POST", "/v1/balance/deposit", {"amount": "7.00"})
KEY: Final = {"name": "laptop", "public_key": "ssh-ed25519 " + "AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43 + " me"}
LISTS: Final = (
    "/v1/servers",
    "/v1/ssh-keys",
    "/v1/balance",
    "/v1/balance/transactions?limit=2",
    "/v1/suspense",
    "/v1/events?limit=2",
    "/v1/webhooks",
)
NUMBERED: Final = "SELECT MAX(seq) AS transfer, (SELECT MAX(seq) FROM event) AS event FROM transfer"
SHOWN: Final = ("Spawn-Fee", "Spawn-Balance", "Spawn-Runway", "Idempotent-Replayed", "PAYMENT-RESPONSE")


class Lived(msgspec.Struct, kw_only=True):
    """What is remembered of a service's first life, by those who called it."""

    servers: list[str]
    actions: list[str]
    hook: str
    payment: str
    cursor: str
    stopped_at: int


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder}/spawn.db"


async def live(folder: Path) -> Lived:
    """Two customers and their things; the service ends with work in flight."""
    clock = VirtualClock(START_S)
    async with open_world(folder, clock=clock, database_url=sqlite_url(folder)) as world:
        ann, bob = await world.customer("50.00"), await world.customer("50.00")
        made = await world.sign(ann, "POST", "/v1/webhooks", {"url": "http://127.0.0.1:9/", "types": ["*"]})
        assert made.status_code == 201, made.text
        gone, kept = await rent(world, ann), await rent(world, ann, name="kept")
        bobs = await rent(world, bob, name="bobs")
        for _ in range(3):
            await world.burn_until(world.clock.now_s() + 86_400)
        assert (await world.sign(bob, "POST", "/v1/ssh-keys", KEY, key="old")).status_code == 201
        payment = await world.payment(bob, *DEPOSIT)
        assert (await world.send_payment(payment, *DEPOSIT)).status_code == 200
        assert (await world.sign(ann, "DELETE", f"/v1/servers/{gone}", key="end")).status_code == 200
        await drive(world)
        await world.tick("deliveries")
        await arriving.send(world, bob, "2.50")
        await arriving.watch(world)
        # In flight: one that the provider has not taken, with its secret; and one that it is at.
        world.cloud_faults.plan("create", *[Outage()] * 3)
        sealed = await world.sign(
            bob, "POST", "/v1/servers", ORDER | {"name": "sealed", "user_data": CLOUD_INIT}
        )
        rebuilt = await world.sign(ann, "POST", f"/v1/servers/{kept}/rebuild", {"image": "debian-12"})
        assert (sealed.status_code, rebuilt.status_code) == (201, 200), sealed.text + rebuilt.text
        # Only one writing process may take the claims of another for stale; where there may be several, they run out.
        await world.service.operator.idle()
        assert (
            await world.rows("SELECT 1 FROM operation WHERE status = 'running' AND claim IS NOT NULL") == []
        )
        events = await world.sign(ann, "GET", "/v1/events?limit=3")
        for table in ("secret", "delivery", "event", "arrival", "lease", "idempotency", "hold", "watch"):
            assert await world.rows(f"SELECT 1 FROM {table}") != [], table
        assert len(await world.rows("SELECT 1 FROM operation WHERE status = 'running'")) == 2
        assert await world.rows("SELECT 1 FROM delivery WHERE state = 'pending'") != []
        # As a service does that ends in order; one that was killed is followed 50 seconds later.
        await world.parts.db.write(lambda tx: tx.execute(leases.RELEASE_LEASES))
        return Lived(
            servers=[gone, kept, bobs, sealed.json()["server"]["id"]],
            actions=[sealed.json()["action"]["id"], rebuilt.json()["action"]["id"]],
            hook=made.json()["webhook"]["id"],
            payment=payment,
            cursor=events.json()["next_cursor"],
            stopped_at=clock.now_s(),
        )


async def ask_everything(
    folder: Path, lived: Lived, database_url: str, *, beyond_the_chain: int = 0
) -> list[str]:
    """Open the service again, ask whatever can be asked, repeat what was asked before, and let it end its work."""
    clock = VirtualClock(lived.stopped_at)
    async with open_world(folder, clock=clock, database_url=database_url) as world:
        (moved,) = await world.rows(NUMBERED)
        with _nonces_in_order():
            answers = [answer async for answer in _reads(world, lived)]
            answers += [answer async for answer in _repeats(world, lived)]
            await drive(world)
            await world.tick()
            answers += [answer async for answer in _ends(world, lived)]
        kept = "SELECT kind FROM secret WHERE owner = :owner ORDER BY kind"
        (sealed,) = await world.rows("SELECT owner FROM secret WHERE kind = 'user_data'")
        kinds = [row["kind"] for row in await world.rows(kept, owner=sealed["owner"])]
        assert kinds == ["callback", "host_key", "user_data"]
        # Books that were filled in bulk say that the chain holds more than it was ever paid.
        await world.chain.mint(world.settings.pay_to, Usdc(beyond_the_chain))
        await world.check_books()
        return [_without_new_numbers(answer, moved) for answer in answers]


def _without_new_numbers(answer: object, moved: Mapping[str, int]) -> str:
    def number(found: re.Match[str]) -> str:
        last = moved["event" if found[1] == "evt_" else "transfer"]
        return found[0] if int(found[2]) <= last else f"{found[1]}new"

    told = re.sub(r"\breq_[0-9a-f]{20}\b", "req_new", msgspec.json.encode(answer).decode())
    return re.sub(r"\b(txn_|evt_|c)([0-9]+)\b", number, told)


def bulk_usdc(transfers: int) -> int:
    """What books that were filled with this many transfers say that the chain holds of them."""
    return transfers // 2 * 2 * FEE


@contextmanager
def _nonces_in_order() -> Iterator[None]:
    numbers = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signing.secrets.token_urlsafe", lambda _: f"nonce-{next(numbers):020}")
        yield


async def _reads(world: World, lived: Lived) -> Any:
    for wallet in (Wallet.numbered(1), Wallet.numbered(2), Wallet.numbered(3)):
        one_by_one = [f"/v1/servers/{server}" for server in lived.servers]
        hooks = [f"/v1/webhooks/{lived.hook}", f"/v1/webhooks/{lived.hook}/deliveries?limit=2"]
        for path in (*LISTS, f"/v1/events?after={lived.cursor}", *one_by_one, *hooks):
            async for answer in _pages(world, wallet, path):
                yield answer
    for path in ("/v1/catalog", *(f"/v1/actions/{action}" for action in lived.actions)):
        yield path, (await world.ask("GET", path)).json()


async def _ends(world: World, lived: Lived) -> Any:
    """What became of the work that was in flight, and everything once more."""
    for action in lived.actions:
        done = (await world.ask("GET", f"/v1/actions/{action}")).json()["action"]
        assert (done["status"], done["error"]) == ("success", None)
        yield done["command"]
    for wallet, server in ((Wallet.numbered(1), lived.servers[1]), (Wallet.numbered(2), lived.servers[3])):
        shown = (await world.sign(wallet, "GET", f"/v1/servers/{server}")).json()["server"]
        assert shown["status"] == "running"
        yield shown["name"], shown["image"], shown["root_password"] is None
    async for path, *answer in _reads(world, lived):
        # Which of several deliveries to a dead receiver is tried first, is chance.
        if "/deliveries" not in path:
            yield path, answer


async def _pages(world: World, wallet: Wallet, path: str) -> Any:
    cursor, ended = None, False
    while not ended:
        name = "after" if path.startswith("/v1/events") else "cursor"
        asked = path if cursor is None else f"{path}&{name}={cursor}"
        answer = await world.sign(wallet, "GET", asked)
        body = answer.json()
        yield asked, answer.status_code, body, {name: answer.headers.get(name) for name in SHOWN}
        before, cursor = cursor, body.get("next_cursor") if "limit=" in path else None
        ended = cursor is None or cursor == before or body.get("events") == []


async def _repeats(world: World, lived: Lived) -> Any:
    ann, bob = Wallet.numbered(1), Wallet.numbered(2)
    key = await world.sign(bob, "POST", "/v1/ssh-keys", KEY, key="old")
    ended = await world.sign(ann, "DELETE", f"/v1/servers/{lived.servers[0]}", key="end")
    paid = await world.send_payment(lived.payment, *DEPOSIT)
    for answer, status in ((key, 201), (ended, 200), (paid, 200)):
        assert (answer.status_code, answer.headers["Idempotent-Replayed"]) == (status, "true"), answer.text
        yield answer.json()
    other = await world.sign(bob, "POST", "/v1/ssh-keys", KEY | {"name": "other"}, key="old")
    yield other.status_code, other.json()
    claimed = await world.sign(bob, *arriving.CLAIM)
    assert claimed.json()["claimed"] == "2.50"
    yield claimed.json()
    yield (await world.sign(ann, "POST", f"/v1/webhooks/{lived.hook}/test")).status_code
