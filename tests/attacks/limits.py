"""Calls without end: an address that proves nothing and a wallet that pays have their rates, whatever they claim."""

from dataclasses import replace

from tests.attacks.kit import Theme, refused, replayed, served, unpaid
from tests.attacks.scene import DEPOSIT, LIST, Scene, Wire

limit = Theme("limit")

RATE = 5
ADDRESSES = {"rate_address_per_minute": RATE, "rate_wallet_per_minute": 0}
WALLETS = {"rate_address_per_minute": 0, "rate_wallet_per_minute": RATE}
PROXIED = ADDRESSES | {"trusted_proxies": "10.0.0.0/8"}
TOO_MANY = refused(429, "rate_limited")
ALL_BUT_FIVE = {unpaid(): RATE, TOO_MANY: 3}
CALLS = range(RATE + 3)


@limit(
    "an address that asks and asks",
    "per address for calls that prove nothing",
    ALL_BUT_FIVE,
    settings=ADDRESSES,
)
async def _(scene: Scene) -> list[Wire]:
    return [scene.ask(*LIST)] * len(CALLS)


for name in (
    "X-Forwarded-For",
    "X-Real-IP",
    "True-Client-IP",
    "CF-Connecting-IP",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "Client-IP",
):

    @limit(
        f"{name} names another each time",
        "a header counts only if a trusted proxy wrote it",
        ALL_BUT_FIVE,
        settings=ADDRESSES,
    )
    async def _(scene: Scene, name: str = name) -> list[Wire]:
        return [scene.ask(*LIST, None, (name, f"203.0.113.{number}")) for number in CALLS]


@limit("Forwarded names another each time", "RFC 7239: not read", ALL_BUT_FIVE, settings=ADDRESSES)
async def _(scene: Scene) -> list[Wire]:
    return [scene.ask(*LIST, None, ("Forwarded", f"for=203.0.113.{number}")) for number in CALLS]


@limit(
    "X-Forwarded-For behind a trusted proxy, forged on the left",
    "the list is read from its right end, and left of the first stranger is hearsay",
    ALL_BUT_FIVE,
    settings=PROXIED,
)
async def _(scene: Scene) -> list[Wire]:
    return [
        replace(
            scene.ask(*LIST, None, ("X-Forwarded-For", f"203.0.113.{number}, 198.51.100.7")),
            client="10.0.0.1",
        )
        for number in CALLS
    ]


@limit(
    "X-Forwarded-For in two lines behind a trusted proxy",
    "lines are joined in their order (RFC 9110 section 5.3): the proxy's own is the last",
    ALL_BUT_FIVE,
    settings=PROXIED,
)
async def _(scene: Scene) -> list[Wire]:
    lines = [("X-Forwarded-For", "198.51.100.7")]
    return [
        replace(scene.ask(*LIST, None, ("X-Forwarded-For", f"203.0.113.{number}"), *lines), client="10.0.0.1")
        for number in CALLS
    ]


@limit(
    "one IPv6 customer with many addresses",
    "a /64 is the least that one customer gets (RFC 6177)",
    ALL_BUT_FIVE,
    settings=ADDRESSES,
)
async def _(scene: Scene) -> list[Wire]:
    return [replace(scene.ask(*LIST), client=f"2001:db8::{number + 1:x}") for number in CALLS]


@limit(
    "broken proofs without end",
    "a proof that is none counts as none",
    {refused(400, "invalid_payment"): RATE, TOO_MANY: 3},
    settings=ADDRESSES,
)
async def _(scene: Scene) -> list[Wire]:
    return [scene.paid("e30=", *LIST)] * len(CALLS)


@limit(
    "paths that are not there without end",
    "looking for holes is counted as well",
    {refused(404, "not_found"): RATE, TOO_MANY: 3},
    settings=ADDRESSES,
)
async def _(scene: Scene) -> list[Wire]:
    return [scene.ask("GET", f"/v1/hole-{number}") for number in CALLS]


@limit(
    "a neighbour of many who pay nothing",
    "agents share addresses: a good payment passes",
    served(),
    settings=ADDRESSES,
    effect={"chain": 1_000, "fees": 1_000, "calls": 1},
)
async def _(scene: Scene) -> Wire:
    payment = await scene.pay(scene.thief, *LIST)
    for _ in CALLS:
        await scene.send(scene.ask(*LIST))
    return payment


@limit(
    "a wallet that asks and asks",
    "per wallet before anything is reserved: what is refused costs nothing",
    {served(): RATE, TOO_MANY: 3},
    settings=WALLETS,
    effect={"thief": -RATE * 1_000, "fees": RATE * 1_000, "calls": RATE},
)
async def _(scene: Scene) -> list[Wire]:
    scene.rest()
    return [scene.sign(scene.thief, *LIST) for _ in CALLS]


@limit(
    "a wallet that pays and pays",
    "as above: a payment that is refused is not settled",
    {served(): RATE, TOO_MANY: 3},
    settings=WALLETS,
    effect={"chain": RATE * 1_000, "fees": RATE * 1_000, "calls": RATE},
)
async def _(scene: Scene) -> list[Wire]:
    scene.rest()
    return [await scene.pay(scene.thief, *LIST) for _ in CALLS]


@limit(
    "a wallet from many addresses",
    "a wallet is one caller, wherever it calls from",
    {served(): RATE, TOO_MANY: 3},
    settings=WALLETS,
    effect={"thief": -RATE * 1_000, "fees": RATE * 1_000, "calls": RATE},
)
async def _(scene: Scene) -> list[Wire]:
    scene.rest()
    return [replace(scene.sign(scene.thief, *LIST), client=f"203.0.113.{number}") for number in CALLS]


async def used_up(scene: Scene) -> Wire:
    """All turns of the owner, and one of the calls that took them."""
    scene.rest()
    wires = [scene.sign(scene.owner, *LIST) for _ in range(RATE)]
    for wire in wires:
        await scene.honest(wire)
    return wires[0]


@limit(
    "an answer that is known, beyond the rate",
    "never after the reservation: what was paid for is answered",
    replayed(),
    settings=WALLETS,
)
async def _(scene: Scene) -> Wire:
    return await used_up(scene)


@limit(
    "DELETE beyond the rate",
    "destroying always works",
    served(),
    settings=WALLETS,
    effect={"owner": -5_000 - 6_250, "fees": 5_000, "calls": 1},
)
async def _(scene: Scene) -> Wire:
    await used_up(scene)
    return scene.sign(scene.owner, "DELETE", f"/v1/servers/{scene.server}")


@limit(
    "a deposit beyond the rate",
    "paying in always works",
    served(),
    settings=WALLETS,
    effect={"chain": 1_000_000, "owner": 1_000_000, "calls": 1},
)
async def _(scene: Scene) -> Wire:
    await used_up(scene)
    return await scene.pay(scene.owner, *DEPOSIT, {"amount": "1.00"})
