"""Prices, amounts and balances: nobody gets more than was paid, and nobody is made to pay for somebody else."""

from typing import Any

from tests.attacks.kit import BAD_REQUEST, Answer, Theme, refused, served, unpaid
from tests.attacks.scene import BUY, CREATE, DEPOSIT, LIST, SMALL, Scene, Wire
from tests.harness import ORDER

money = Theme("money")

WRONG_VALUE = unpaid("invalid_exact_evm_payload_authorization_value_mismatch")
TOO_POOR = refused(422, "insufficient_deposit")

NO_AMOUNTS: tuple[tuple[str, Any], ...] = (
    ("-1.00", "-1.00"),
    ("-0", "-0"),
    ("+1.00", "+1.00"),
    ("1e9", "1e9"),
    ("1.0000001", "1.0000001"),
    ("1_000", "1_000"),
    ("1,00", "1,00"),
    (".5", ".5"),
    ("5.", "5."),
    ("0x10", "0x10"),
    ("NaN", "NaN"),
    ("Infinity", "Infinity"),
    ("nothing", ""),
    ("a space before it", " 1.00"),
    ("a line end behind it", "1.00\n"),
    ("Arabic digits", "\u0661\u0662"),
    ("fullwidth digits", "\uff11.00"),
    ("a number", 1.0),
    ("a whole number", 1),
    ("forty nines", "9" * 40),
    ("more than there is", "9999999999"),
    ("a list", ["1.00"]),
)
"""What is no amount, and what it is called."""

for name, amount in NO_AMOUNTS:
    # A whole number of zero or less is an amount in form only.
    @money(
        f"{name} for an amount",
        "an amount is a decimal string of at most six decimals, and not negative",
        BAD_REQUEST,
    )
    async def _(scene: Scene, amount: Any = amount) -> list[Wire]:
        order = await scene.payload(scene.thief, *CREATE, ORDER)
        deposit = await scene.payload(scene.thief, *DEPOSIT)
        fund = f"/v1/servers/{scene.server}/deposit"
        return [
            scene.ask(*CREATE, ORDER | {"fund": amount}),
            scene.paid(order, *CREATE, ORDER | {"fund": amount}),
            scene.sign(scene.thief, *CREATE, ORDER | {"deposit": amount}),
            scene.paid(deposit, *DEPOSIT, {"amount": amount}),
            scene.sign(scene.owner, "POST", fund, {"amount": amount}),
        ]


@money("a price paid for a cheaper route", "the price is the route's, not the payment's", WRONG_VALUE)
async def _(scene: Scene) -> list[Wire]:
    fee = await scene.payload(scene.owner, *LIST)
    server = f"/v1/servers/{scene.server}"
    return [
        scene.paid(fee, *CREATE, ORDER),
        scene.paid(fee, *CREATE, BUY),
        scene.paid(fee, *DEPOSIT, {"amount": "1.00"}),
        scene.paid(fee, "POST", f"{server}/stop"),
        scene.paid(fee, "POST", f"{server}/resize", {"type": "medium"}),
        scene.paid(fee, "POST", f"{server}/rebuild", {"image": "ubuntu-24.04"}),
        scene.paid(fee, "DELETE", server),
    ]


@money("a price paid for a dearer route", "#2842: overpaying is refused, not kept", WRONG_VALUE)
async def _(scene: Scene) -> list[Wire]:
    dear = await scene.payload(scene.owner, *CREATE, BUY)
    return [scene.paid(dear, *LIST), scene.paid(dear, "DELETE", f"/v1/servers/{scene.server}")]


@money("an order without fund, sent with it", "#2842: fund is part of the price", WRONG_VALUE)
async def _(scene: Scene) -> Wire:
    return scene.paid(await scene.payload(scene.thief, *CREATE, ORDER), *CREATE, BUY)


@money("an order with fund, sent without it", "#2842: the other way round", WRONG_VALUE)
async def _(scene: Scene) -> Wire:
    return scene.paid(await scene.payload(scene.thief, *CREATE, BUY), *CREATE, ORDER)


@money("fund with a signature", "a signature moves no money on chain: fund would be a gift", BAD_REQUEST)
async def _(scene: Scene) -> list[Wire]:
    return [scene.sign(scene.thief, *CREATE, ORDER | {"fund": amount}) for amount in ("6.00", "0", "0.00")]


@money("a deposit with a signature", "as above", unpaid())
async def _(scene: Scene) -> Wire:
    return scene.sign(scene.thief, *DEPOSIT, {"amount": "100.00"})


@money("a deposit of zero", "SPAWN_DEPOSIT_MINIMUM: dust costs more than it brings", BAD_REQUEST)
async def _(scene: Scene) -> list[Wire]:
    good = await scene.payload(scene.thief, *DEPOSIT, value="0")
    return [
        *(scene.ask(*DEPOSIT, {"amount": amount}) for amount in ("0", "0.00", "0.009999")),
        scene.paid(good, *DEPOSIT, {"amount": "0.00"}),
    ]


@money("a deposit over the cap", "SPAWN_DEPOSIT_DAILY_CAP", refused(422, "deposit_limit"))
async def _(scene: Scene) -> list[Wire]:
    return [
        scene.ask(*DEPOSIT, {"amount": "2000.01"}),
        scene.ask(*CREATE, ORDER | {"fund": "2000.01"}),
    ]


@money(
    "the cap in two deposits",
    "the cap is for 24 hours, not for one payment",
    refused(422, "deposit_limit"),
    alone=True,
)
async def _(scene: Scene) -> Wire:
    await scene.world.chain.mint(scene.thief.address, 3_000_000_000)  # type: ignore[arg-type]  # micro-USDC
    await scene.honest(await scene.pay(scene.thief, *DEPOSIT, {"amount": "1500.00"}))
    return await scene.pay(scene.thief, *DEPOSIT, {"amount": "500.00"})


@money("a server for less than a day", "a deposit covers a day at least", BAD_REQUEST)
async def _(scene: Scene) -> list[Wire]:
    return [
        scene.sign(scene.thief, *CREATE, ORDER | {"deposit": deposit}) for deposit in ("0", "0.00", "0.01")
    ]


@money("a server without the money", "the deposit is held before a machine is ordered", TOO_POOR)
async def _(scene: Scene) -> list[Wire]:
    order = SMALL | {"name": "dream", "deposit": "1000.00"}
    return [scene.sign(scene.thief, *CREATE, order), await scene.pay(scene.thief, *CREATE, order)]


@money("a server's deposit raised without the money", "out of the balance, and no further", TOO_POOR)
async def _(scene: Scene) -> Wire:
    return scene.sign(scene.owner, "POST", f"/v1/servers/{scene.server}/deposit", {"amount": "1000.00"})


@money("a server's deposit raised by nothing", "zero moves nothing and would be recorded", BAD_REQUEST)
async def _(scene: Scene) -> Wire:
    return scene.sign(scene.owner, "POST", f"/v1/servers/{scene.server}/deposit", {"amount": "0.00"})


@money("a call without the fee", "a signed caller short of the fee is told the price", unpaid(), alone=True)
async def _(scene: Scene) -> list[Wire]:
    poor = await scene.world.wallet("0")
    return [
        scene.sign(poor, *LIST),
        scene.sign(poor, "GET", "/v1/ssh-keys"),
        scene.sign(poor, *CREATE, ORDER),
    ]


DOOMED: tuple[tuple[str, str, str, Any, Answer], ...] = (
    ("a name that is taken", *CREATE, SMALL | {"name": "owned"}, refused(409, "conflict")),
    ("a server that is not there", "POST", "/v1/servers/srv_x/stop", None, refused(404, "not_found")),
    (
        "a key that is not there",
        *CREATE,
        SMALL | {"name": "a", "ssh_keys": ["key_x"]},
        refused(404, "not_found"),
    ),
    ("a key that is registered", "POST", "/v1/ssh-keys", None, refused(409, "conflict")),
    ("too little money", *CREATE, SMALL | {"name": "b", "deposit": "900.00"}, TOO_POOR),
)

for name, method, target, body, answer in DOOMED:

    @money(f"a payment for {name}", "#853: what is bound to fail is refused before it is settled", answer)
    async def _(scene: Scene, method: str = method, target: str = target, body: Any = body) -> Wire:
        if target == "/v1/ssh-keys":
            known = await scene.world.rows("SELECT public_key FROM ssh_key WHERE id = :id", id=scene.ssh_key)
            body = {"name": "again", "public_key": known[0]["public_key"]}
        return await scene.pay(scene.owner, method, target, body)


@money(
    "an identifying payment",
    "free routes credit all of it: nobody loses money by saying who they are",
    served(),
    effect={"chain": 1_000, "thief": 1_000, "calls": 1},
)
async def _(scene: Scene) -> Wire:
    return await scene.pay(scene.thief, "GET", "/v1/balance")


@money("an identifying payment that is larger", "exact means exact, also where it is credited", WRONG_VALUE)
async def _(scene: Scene) -> Wire:
    return await scene.pay(scene.thief, "GET", "/v1/balance", value="100000")


@money(
    "the bare price where the minimum is more",
    "SPAWN_MINIMUM_CHARGE: a settlement costs more than a read brings",
    WRONG_VALUE,
    settings={"minimum_charge": "0.05"},
)
async def _(scene: Scene) -> list[Wire]:
    return [
        await scene.pay(scene.thief, *LIST, value="1000"),
        await scene.pay(scene.thief, "GET", "/v1/balance", value="1000"),
        await scene.pay(scene.thief, *CREATE, ORDER | {"fund": "0.03"}, value="40000"),
    ]


@money(
    "a deposit below the minimum charge",
    "SPAWN_MINIMUM_CHARGE: a deposit is a payment like any other",
    BAD_REQUEST,
    settings={"minimum_charge": "0.05"},
)
async def _(scene: Scene) -> list[Wire]:
    good = await scene.payload(scene.thief, *DEPOSIT, value="20000")
    return [
        scene.ask(*DEPOSIT, {"amount": "0.02"}),
        scene.paid(good, *DEPOSIT, {"amount": "0.02"}),
    ]


@money(
    "an order for 4 GB paid as one for 2",
    "#2842: the body is bound by the price and the fingerprint",
    WRONG_VALUE,
)
async def _(scene: Scene) -> Wire:
    small = await scene.payload(scene.thief, *CREATE, BUY)
    return scene.paid(small, *CREATE, BUY | {"type": "medium", "fund": "12.00"})
