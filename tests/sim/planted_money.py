"""Bugs of the books: what is burnt, held, taken and given back."""

from typing import Final

from tests.sim.planted_bug import Bug

METERS: Final = "spawn/services/meters.py"
FUNDS: Final = "spawn/services/funds.py"
OUTCOMES: Final = "spawn/services/outcomes.py"
TRANSFERS: Final = "ledger/spawn_ledger/transfers.py"
BURNING: Final = "spawn/store/burning.py"
OF_MONEY: Final = ("books", "paid", "unpaid", "unwarned", "live", "answers")

IN_MONEY: Final = (
    Bug(
        name="double burn",
        file=METERS,
        before="        charged_until=after,\n        month_s=charged",
        after="        charged_until=after - 1,\n        month_s=charged",
        promises=OF_MONEY,
    ),
    Bug(
        name="the burn's remainder is dropped",
        file=METERS,
        before="        remainder=charged.meter.remainder,\n",
        after="        remainder=0,\n",
        promises=OF_MONEY,
    ),
    Bug(
        name="the burn's remainder is dropped where many are burnt at once",
        file=BURNING,
        before="owed / 86400, owed % 86400, cost_owed",
        after="owed / 86400, 0, cost_owed",
        promises=OF_MONEY,
    ),
    Bug(
        name="many are burnt at once beyond the end of a month",
        file=BURNING,
        before="CASE WHEN due.charged_until < :this_month THEN 0 ELSE month_s",
        after="CASE WHEN 1 = 0 THEN 0 ELSE month_s",
        promises=OF_MONEY,
    ),
    Bug(
        name="lost refund",
        file=METERS,
        before="        server = _minimum_charged(tx, server, now)\n    refund = funds.reserve_usdc(tx, server.id)",
        after="        server = _minimum_charged(tx, server, now)\n    refund = Usdc(0)",
        promises=OF_MONEY,
    ),
    Bug(
        name="a fee is refunded twice over",
        file=FUNDS,
        before='amount=Usdc(taken["amount"])',
        after='amount=Usdc(2 * taken["amount"])',
        promises=OF_MONEY,
    ),
    Bug(
        name="the minimum hour comes on top of the burn",
        file=METERS,
        before="accrual.minimum_due(server.charged_usdc, server.minimum_usdc)",
        after="server.minimum_usdc",
        promises=OF_MONEY,
    ),
    Bug(
        name="the minimum hour is never charged",
        file="ledger/spawn_ledger/accrual.py",
        before="return Usdc(max(0, minimum_usdc - charged_usdc))",
        after="return Usdc(0)",
        promises=OF_MONEY,
    ),
    Bug(
        name="a month's cap is ignored",
        file="ledger/spawn_ledger/accrual.py",
        before="    if meter.capped_s >= NO_CAP_S or meter.month_s + span_s <= meter.capped_s:",
        after="    if span_s >= 0:",
        promises=OF_MONEY,
    ),
    Bug(
        name="a transfer does not reach the account",
        file=TRANSFERS,
        before="        _give(tx, transfer.credit, transfer.amount)\n        return True",
        after="        return True",
        promises=OF_MONEY,
    ),
    Bug(
        name="a hold is never released after a refusal",
        file=OUTCOMES,
        before="        funds.release_holds(tx, operation.id, now)\n",
        after="",
        promises=OF_MONEY,
    ),
    Bug(
        name="a hold is posted twice",
        file=FUNDS,
        before="            post_hold(tx, pending.id, at)",
        after=(
            "            post_hold(tx, pending.id, at)\n"
            "            if code is Code.FEE and available_usdc(tx, Address(pending.debit[7:])) >= pending.amount:\n"
            "                charge_fee(tx, Address(pending.debit[7:]), pending.amount, f'{operation}|2', at)"
        ),
        promises=OF_MONEY,
    ),
    Bug(
        name="the deposit of a failed resize stays where it was to go",
        file=OUTCOMES,
        before="        funds.post_holds(tx, operation.id, TransferCode.FEE, now)\n        match operation.current:",
        after=(
            "        funds.post_holds(tx, operation.id, TransferCode.FEE, now)\n"
            "        funds.post_holds(tx, operation.id, TransferCode.DEPOSIT, now)\n"
            "        match operation.current:"
        ),
        promises=OF_MONEY,
    ),
    Bug(
        name="a refused operation's fee is kept",
        file=OUTCOMES,
        before="        funds.release_holds(tx, operation.id, now)\n",
        after=(
            "        funds.post_holds(tx, operation.id, TransferCode.FEE, now)\n"
            "        funds.release_holds(tx, operation.id, now)\n"
        ),
        promises=OF_MONEY,
    ),
    Bug(
        name="the fee of an operation that failed later is kept",
        file=OUTCOMES,
        before="        if operation.answered:\n            funds.refund_fee(",
        after="        if operation.answered and operation.id == server.id:\n            funds.refund_fee(",
        promises=OF_MONEY,
    ),
    Bug(
        name="what a smaller machine sets free comes back twice",
        file=OUTCOMES,
        before='funds.withdraw(tx, server, back, id=transfer_id("resize", operation.id), at=now)',
        after=(
            'funds.withdraw(tx, server, back, id=transfer_id("resize", operation.id), at=now)\n'
            "        left = funds.reserve_usdc(tx, server.id)\n"
            '        funds.withdraw(tx, server, min(back, left), id=transfer_id("again", operation.id), at=now)'
        ),
        promises=OF_MONEY,
    ),
    Bug(
        name="what the provider asks is not booked",
        file=METERS,
        before='    name = transfer_id("cost", server.id, meter.charged_until, until)',
        after='    name, amount = transfer_id("cost", server.id, meter.charged_until, until), Usdc(amount // 2)',
        promises=OF_MONEY,
    ),
    Bug(
        name="burn that was given back counts as charged",
        file=METERS,
        before="    _give_back(tx, server, amount, now)\n    name",
        after="    name",
        promises=OF_MONEY,
    ),
    Bug(
        name="what a server sent is charged twice",
        file="spawn/services/traffic.py",
        before="Usdc(server.traffic_owed_usdc + amount)",
        after="Usdc(server.traffic_owed_usdc + 2 * amount)",
        promises=OF_MONEY,
    ),
    Bug(
        name="what is included is forgotten",
        file="spawn/domain/traffic.py",
        before="counted.outgoing_bytes + outgoing - included_bytes)",
        after="counted.outgoing_bytes + outgoing)",
        promises=OF_MONEY,
    ),
    Bug(
        name="a late counter counts as a new period",
        file="spawn/domain/traffic.py",
        before="        if now - since < APART_S:",
        after="        if now < since:",
        promises=OF_MONEY,
    ),
    Bug(
        name="a counter that began anew counts as a fall below zero",
        file="spawn/domain/traffic.py",
        before="    outgoing = max(0, reading.outgoing_bytes - (0 if began_anew else before.last_outgoing))",
        after="    outgoing = reading.outgoing_bytes - before.last_outgoing",
        promises=OF_MONEY,
    ),
    Bug(
        name="what is owed for traffic is forgotten when money comes",
        file="spawn/services/overage.py",
        before="        if each.server.traffic_owed_usdc > 0\n    ]",
        after="        if each.server.traffic_owed_usdc > 0 and each.server.exhausted_at is None\n    ]",
        promises=OF_MONEY,
    ),
)
