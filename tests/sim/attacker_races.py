"""Attacks by doing too much at once with what is one's own: spending it twice, ending it twice, at the last second.

Invariant: a balance, a name, a refund and an arrival are one, however many ask together; what is refused is refused in
words that say why.
"""

from collections.abc import Callable
from datetime import datetime
from itertools import count
from typing import Any, Final

from tests.sim.attacker_forgeries import UNPAID
from tests.sim.attacker_kit import CREATE, READ, Thief, attack, fresh, key_of, text_of
from tests.sim.client_types import Answer, Request
from tests.sim.moves import Kind
from tests.sim.owner_wishes import public_key

TOO_POOR: Final = "422 insufficient_deposit"
CONFLICT: Final = "409 conflict"
OVER_THE_CAP: Final = "422 deposit_limit"
UNSETTLED: Final = "402 settlement_failed"
FROM_PROVIDER: Final = ("503 out_of_capacity", "503 provider_failed", "400 invalid_request", CONFLICT)
"""How a provider's no is told."""
SERVERS_AT_ONCE: Final = 3
_ROOM: Final = 10**6
"""Keys from this number on are used for one attack each."""


def _newcomer(thief: Thief) -> None:
    """Be somebody whom nobody knows, whose balance nobody else moves."""
    thief.key = key_of.__wrapped__(_ROOM + thief.random.getrandbits(48))


def _received_usdc(thief: Thief) -> int:
    """All that ever came to the thief's wallet from outside."""
    (row,) = thief.world.rows(
        "SELECT COALESCE(SUM(amount), 0) AS usdc FROM transfer WHERE credit = :wallet "
        "AND code IN ('topup', 'claim', 'goodwill')",
        wallet=f"wallet:{thief.key.address}",
    )
    return int(row["usdc"])


async def overdraw(thief: Thief) -> None:
    """Many signed calls at once, which together cost more than there is."""
    _newcomer(thief)
    if not await thief.fund(thief.random.choice((10_000, 12_345))):
        return
    numbers = count(thief.random.randrange(10**6))
    calls = [
        thief.sign("POST", "/v1/ssh-keys", {"name": "k", "public_key": public_key(next(numbers))})
        if thief.random.random() < 0.5
        else thief.sign("GET", thief.random.choice(("/v1/servers", "/v1/webhooks", "/v1/ssh-keys")))
        for _ in range(18)
    ]
    answers = await thief.at_once(*calls, right=("200", "201", UNPAID, TOO_POOR))
    spent = len(fresh(answers)) * READ
    if spent > _received_usdc(thief):
        thief.world.violation(
            "books", f"{thief.name}: {spent} micro-USDC bought more than {_received_usdc(thief)}"
        )


async def cap(thief: Thief) -> None:
    """Deposits at once that break the daily cap together."""
    _newcomer(thief)
    cap_usdc = thief.world.settings.deposit_daily_cap_usdc
    amount = cap_usdc * 2 // 5
    thief.world.chain.fund(thief.key.address, amount * 4)
    body = {"amount": text_of(amount)}
    calls = [thief.paid(thief.payload(amount), "POST", "/v1/balance/deposit", body) for _ in range(4)]
    answers = await thief.at_once(*calls, right=("200", OVER_THE_CAP, UNSETTLED))
    if len(fresh(answers)) * amount > cap_usdc:
        thief.world.violation(
            "answers", f"{thief.name}: {len(fresh(answers))} times {amount} within the cap of a day"
        )


async def rent(thief: Thief) -> None:
    """A server of the thief's own, for what comes later; or several of one name."""
    if len(thief.my_servers()) >= SERVERS_AT_ONCE:
        return
    if thief.available_usdc() < 600_000 and not await thief.fund(2_000_000):
        return
    name = f"T{thief.random.getrandbits(40):x}"
    copies = thief.random.choice((1, 1, 4))
    calls = [
        thief.sign("POST", "/v1/servers", _order(thief.random.choice((name, name.lower(), name.upper()))))
        for _ in range(copies)
    ]
    await thief.at_once(*calls, right=("201", UNPAID, TOO_POOR, *FROM_PROVIDER))
    same = thief.my_servers(f"ended_at IS NULL AND LOWER(name) = '{name.lower()}'")
    if len(same) > 1:
        thief.world.violation("answers", f"{thief.name}: two living servers of one name: {same}")


def _order(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "small",
        "image": "debian-12",
        "location": "nbg1",
        "deposit": "0.20",
        "user_data": "#cloud-config\n# a thief's\n",
    }


async def own_server(thief: Thief) -> None:
    """Everything at once with one server of one's own; it is ended once, and refunded once."""
    mine = thief.my_servers()
    if not mine:
        return
    path = f"/v1/servers/{thief.random.choice(mine)['id']}"
    thief.world.chain.fund(thief.key.address, 1_000_000)
    makers: tuple[Callable[[], Request], ...] = (
        lambda: thief.sign("DELETE", path),
        lambda: thief.pay(5_000, "DELETE", path),
        lambda: thief.sign("POST", f"{path}/deposit", {"amount": "0.05"}),
        lambda: thief.sign(
            "POST", f"{path}/resize", {"type": thief.random.choice(("medium", "large", "small"))}
        ),
        lambda: thief.sign("PATCH", path, {"auto_renew": thief.random.random() < 0.5}),
        lambda: thief.sign("POST", f"{path}/{thief.random.choice(('start', 'poweroff', 'reboot'))}"),
        lambda: thief.sign("POST", f"{path}/rebuild", {"image": "debian-12"}),
        lambda: thief.sign("GET", path),
    )
    ends = thief.random.random() < 0.5
    calls = [thief.random.choice(makers if ends else makers[2:])() for _ in range(thief.random.randint(2, 8))]
    await _all_at_once(thief, calls)


async def last_second(thief: Thief) -> None:
    """Money, or the end, exactly when the money ends."""
    mine = thief.my_servers("ended_at IS NULL AND charged_until IS NOT NULL")
    if not mine:
        return
    server = thief.random.choice(mine)
    path = f"/v1/servers/{server['id']}"
    shown = await thief.strike(thief.sign("GET", path), "200", UNPAID)
    if shown is None or shown.status != 200:
        return
    ends_at = shown.json()["server"]["deposit_expires_at"]
    if ends_at is None:
        return
    wait_s = datetime.fromisoformat(ends_at).timestamp() - thief.now
    if not 0 < wait_s < 3 * 86_400:
        return
    await thief.rest(max(0.0, wait_s + thief.random.choice((-1.0, -0.02, 0.0, 0.5, 1.0, 2.0, 7_200.0))))
    thief.world.chain.fund(thief.key.address, 1_000_000)
    calls = [
        thief.sign("POST", f"{path}/deposit", {"amount": "0.01"}),
        thief.pay(READ, "PATCH", path, {"auto_renew": True}),
        thief.sign("DELETE", path),
        thief.paid(thief.payload(50_000), "POST", "/v1/balance/deposit", {"amount": "0.05"}),
        thief.sign("GET", path),
    ]
    await _all_at_once(thief, thief.random.sample(calls, thief.random.randint(1, 4)))


async def _all_at_once(thief: Thief, calls: list[Request]) -> None:
    answers = await thief.at_once(
        *calls,
        right=("200", UNPAID, UNSETTLED, "404 not_found", TOO_POOR, OVER_THE_CAP, *FROM_PROVIDER),
    )
    ended = [answer for answer in fresh(answers) if _refund_of(answer) is not None]
    if len(ended) > 1:
        told = [_refund_of(answer) for answer in ended]
        thief.world.violation(
            "books", f"{thief.name}: one server was ended {len(ended)} times: {told}, {calls[0]}"
        )


def _refund_of(answer: Answer) -> str | None:
    told: str | None = answer.json().get("deposit_refunded")
    return told


async def claim_twice(thief: Thief) -> None:
    """One arrival of the thief's own, claimed many times at once."""
    thief.world.chain.fund(thief.key.address, 1_000_000)
    thief.world.chain.give(thief.key.address, thief.random.randint(1, 200_000))
    await thief.rest(thief.random.choice((60.0, 900.0)))
    calls = [thief.sign("POST", "/v1/suspense/claim") for _ in range(6)]
    answers = await thief.at_once(*calls, right=("200",))
    claimed = [told for told in (answer.json()["claimed"] for answer in fresh(answers)) if float(told) > 0]
    arrivals = thief.world.rows("SELECT id FROM arrival WHERE sender = :me", me=thief.key.address)
    if len(claimed) > len(arrivals):
        thief.world.violation("books", f"{thief.name}: {len(arrivals)} arrivals were claimed as {claimed}")


async def overspend(thief: Thief) -> None:
    """More than there is, asked for in one call; and what only a payment may do."""
    mine = thief.my_servers()
    path = f"/v1/servers/{mine[0]['id']}" if mine else None
    body = _order(f"t{thief.random.getrandbits(40):x}")
    calls: list[tuple[Request, tuple[str, ...]]] = [
        (thief.sign("POST", "/v1/servers", body | {"deposit": "99999.00"}), (TOO_POOR, UNPAID)),
        (thief.sign("POST", "/v1/servers", body | {"fund": "5.00"}), ("400 invalid_request",)),
        (thief.sign("POST", "/v1/balance/deposit", {"amount": "5.00"}), (UNPAID,)),
        (thief.pay(CREATE, "POST", "/v1/servers", body | {"deposit": "99999.00"}), (TOO_POOR,)),
    ]
    if path is not None:
        far_too_much = thief.sign("POST", f"{path}/deposit", {"amount": "99999.00"})
        calls.append((far_too_much, (TOO_POOR, UNPAID, CONFLICT, "404 not_found")))
    request, right = thief.random.choice(calls)
    await thief.strike(request, *right)


MOVES: Final[tuple[Kind, ...]] = (
    attack("overdraw", 0.4, overdraw),
    attack("cap", 0.15, cap),
    attack("rent", 1.5, rent),
    attack("own_server", 1.5, own_server),
    attack("last_second", 0.5, last_second),
    attack("claim_twice", 0.4, claim_twice),
    attack("overspend", 0.5, overspend),
)
