"""What servers sent beyond what was included, as money: paid as soon as there is any, else owed, else our loss.

Invariant: what a server owes is paid before anything else that its money could pay for, and never by a wallet that it
does not renew from; a server that has ended owes nothing.
"""

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace
from spawn_ledger.accounts import (
    COST_PROVIDER,
    EXP_OVERRUN,
    OWED_PROVIDER,
    REV_TRAFFIC,
    AccountId,
    server_account,
    wallet_account,
)
from spawn_ledger.transfers import Code, Transfer, TransferId, post, transfer_id
from spawn_ledger.tx import Tx
from spawn_schemas.ids import ServerId
from spawn_schemas.money import Usdc

from spawn.domain import traffic
from spawn.domain.servers import Server
from spawn.store import traffic as rows
from spawn.store.servers import Billed
from spawn.store.traffic import Metered

_NOTHING: Final = Usdc(0)


def pay(tx: Tx, billed: Sequence[Billed], available: Usdc, now: int) -> tuple[list[Billed], Usdc]:
    """Pay what the wallet's servers owe for traffic, as far as there is money; answers both as they are then."""
    debtors = [
        traffic.Debtor(
            server_id=each.server.id,
            owed_usdc=each.server.traffic_owed_usdc,
            reserve_usdc=each.reserve_usdc,
            auto_renew=each.server.auto_renew,
        )
        for each in billed
        if each.server.traffic_owed_usdc > 0
    ]
    if not debtors:
        return list(billed), available
    paid = traffic.paid(debtors, available)
    left = available - sum(each.from_wallet for each in paid.values())
    return [_paid(tx, each, paid.get(each.server.id), now) for each in billed], Usdc(left)


def _paid(tx: Tx, billed: Billed, paid: traffic.Paid | None, now: int) -> Billed:
    if paid is None or paid.total_usdc == 0:
        return billed
    server, metered = billed.server, _metered(tx, billed.server.id)
    since, until = metered.charged_usdc, Usdc(metered.charged_usdc + paid.total_usdc)
    for leg, account, amount in (
        ("reserve", server_account(server.id), paid.from_reserve),
        ("wallet", wallet_account(server.wallet), paid.from_wallet),
    ):
        name = transfer_id("traffic", server.id, since, until, leg)
        _post(tx, name, (account, REV_TRAFFIC), amount, server.id, now)
    rows.put(tx, server.id, replace(metered, charged_usdc=until))
    return Billed(
        server=replace(server, traffic_owed_usdc=Usdc(server.traffic_owed_usdc - paid.total_usdc)),
        reserve_usdc=Usdc(billed.reserve_usdc - paid.from_reserve),
    )


def cost(
    tx: Tx, server: Server, metered: Metered, amount: Usdc, now: int, *, is_lost: bool = False
) -> Metered:
    """Book what its provider asks for what it sent; lost, nobody is asked to pay for it."""
    until = Usdc(metered.cost_usdc + amount)
    name = transfer_id("traffic", server.id, metered.cost_usdc, until, "cost")
    _post(tx, name, (EXP_OVERRUN if is_lost else COST_PROVIDER, OWED_PROVIDER), amount, server.id, now)
    return replace(metered, cost_usdc=until)


def write_off(tx: Tx, server: Server, now: int) -> Server:
    """The server ends: what it owes is nobody's any more, and what that costs us is our loss."""
    if server.traffic_owed_usdc == 0:
        return server
    unpaid(tx, server, server.traffic_owed_usdc, now, "unpaid")
    return replace(server, traffic_owed_usdc=_NOTHING)


def unpaid(tx: Tx, server: Server, amount: Usdc, now: int, why: str) -> None:
    """Nobody will pay this much of what it sent; `why` is a word of its own for each way to here."""
    name = transfer_id("traffic", server.id, why)
    loss = traffic.unpaid_cost(amount, server.pin)
    _post(tx, name, (EXP_OVERRUN, COST_PROVIDER), loss, server.id, now)


def _metered(tx: Tx, server_id: ServerId) -> Metered:
    metered = rows.find(tx, server_id)
    if metered is None:
        raise RuntimeError(f"{server_id} owes for traffic that was never counted")
    return metered


def _post(
    tx: Tx, name: TransferId, way: tuple[AccountId, AccountId], amount: Usdc, server_id: ServerId, at: int
) -> None:
    """Move what there is to move; `way` is from debit to credit."""
    if amount > 0:
        transfer = Transfer(
            id=name,
            debit=way[0],
            credit=way[1],
            amount=amount,
            code=Code.TRAFFIC,
            reference=server_id,
            at=at,
        )
        post(tx, transfer)
