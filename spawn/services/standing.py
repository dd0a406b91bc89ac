"""What a wallet has at this second, burn included, read without writing.

Invariant: the same arithmetic as the burn itself, so that what is shown is what the next settlement will post.
"""

from typing import Final

import msgspec
from msgspec.structs import replace
from spawn_ledger import runway
from spawn_ledger.accounts import wallet_account
from spawn_ledger.accrual import DAY, Meter, charge_until, paid_until
from spawn_ledger.tx import Row, Tx
from spawn_schemas.ids import Address, ServerId
from spawn_schemas.money import Usdc

from spawn.domain import traffic
from spawn.domain.operations import Resized
from spawn.services.billing import Billing, Funded
from spawn.store import operations
from spawn.store.database import Database
from spawn.store.servers import owed_from

# All that a list of servers shows is read with it: nearly every call reads one, and a second look costs a fifth of it.
SELECT_STANDING: Final = """
SELECT wallet.balance AS wallet_balance, wallet.held AS wallet_held, reserve.balance AS reserve,
  server.daily_usdc, server.remainder, server.charged_until, server.capped_s, server.month_s, server.owed,
  server.traffic_owed_usdc,
  server.auto_renew, server.due_at,
  server.id, server.wallet, server.name, server.type, server.image, server.location, server.provider,
  server.provider_ref, server.status, server.ipv4, server.ipv6, server.created_at
FROM account AS wallet
LEFT JOIN server ON server.wallet = :wallet AND server.ended_at IS NULL
LEFT JOIN account AS reserve ON reserve.id = 'srv:' || server.id
WHERE wallet.id = :account
ORDER BY server.created_at, server.id
"""


_NOTHING: Final = Usdc(0)


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller is told after a call: its money, and the seconds until that of its soonest server ends."""

    available_usdc: Usdc
    runway_s: int | None


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What is left at the second `at`; `reserved_usdc` counts server deposits and holds.

    `live`: the rows of its servers that have not ended, oldest first, as a list shows them.
    `fundings`, with `unsettled_usdc` available, are the books from which the burn up to `at` was worked out.
    `debts_usdc` is what its servers owe for traffic and cannot pay even of that.
    `pressing`: the burn must be settled before the wallet spends, because something is due, or lives from the wallet.
    """

    wallet: Address
    at: int
    available_usdc: Usdc
    reserved_usdc: Usdc
    reserves_usdc: dict[ServerId, Usdc]
    live: tuple[Row, ...]
    fundings: tuple[runway.Funding, ...]
    unsettled_usdc: Usdc
    debts_usdc: dict[ServerId, Usdc]
    pressing: bool

    def less(self, spent: Usdc) -> "Standing":
        """The standing after spending from what is available."""
        return replace(
            self,
            available_usdc=Usdc(self.available_usdc - spent),
            unsettled_usdc=Usdc(self.unsettled_usdc - spent),
        )

    @property
    def ends_at(self) -> dict[ServerId, int | None]:
        """The last paid second of each server, None where that is years away: a search, so only when asked."""
        return runway.runways(self.fundings, self.unsettled_usdc, self.at)

    @property
    def balance_usdc(self) -> Usdc:
        return Usdc(self.available_usdc + self.reserved_usdc)

    @property
    def left(self) -> Left:
        """What the wallet has left, without runway where it has no servers or their money lasts for years."""
        end = runway.first_end(self.fundings, self.unsettled_usdc, self.at)
        return Left(
            available_usdc=self.available_usdc, runway_s=None if end is None else max(0, end - self.at)
        )


async def read(db: Database, wallet: Address, now: int) -> Standing:
    """The wallet's standing from outside a transaction."""
    return _standing(wallet, await db.read(SELECT_STANDING, _params(wallet)), now)


def of(tx: Tx, wallet: Address, now: int, *, added: Usdc = _NOTHING) -> Standing:
    """The wallet's standing inside a transaction, its own changes included, as it would be with `added` money."""
    return _standing(wallet, tx.all(SELECT_STANDING, _params(wallet)), now, added)


def refuse_to_starve(
    tx: Tx,
    standing: Standing,
    billing: Billing,
    amount: Usdc,
    server_id: ServerId | None = None,
    daily_usdc: Usdc | None = None,
    *,
    renews: bool | None = None,
) -> None:
    """Raise `insufficient_deposit` where an owner's own move would end one of its servers unwarned.

    `amount` leaves the available balance, for a new server's reserve or that of `server_id`, which then burns
    `daily_usdc`, and lives from the balance from then on if it `renews`. A server on which a resize runs counts at
    the dearer of its two prices: by the time that the other is its own, what is spent now is gone.
    """
    if not standing.fundings:
        return
    # What is behind us is owed at the price it had.
    settled = runway.settle(standing.fundings, standing.unsettled_usdc, standing.at)
    resizing = operations.list_resizing(tx, standing.wallet)
    fundings = tuple(
        _dearest(_charged(funding, charge), resizing.get(funding.server_id))
        for funding, charge in zip(standing.fundings, settled.charges, strict=True)
    )
    available = settled.available_left
    debt = 0 if server_id is None else standing.debts_usdc.get(server_id, 0)
    of_amount = min(debt, max(0, amount))
    of_wallet = min(debt - of_amount, max(0, available - amount)) if renews else 0

    def moved(funding: runway.Funding) -> runway.Funding:
        if funding.server_id != server_id:
            return funding
        return replace(
            funding,
            reserve_usdc=Usdc(funding.reserve_usdc + amount - of_amount),
            meter=replace(funding.meter, daily_usdc=daily_usdc or funding.meter.daily_usdc),
            auto_renew=funding.auto_renew if renews is None else renews,
        )

    billing.refuse_to_starve(
        Funded(fundings=fundings, available_usdc=available),
        Funded(
            fundings=tuple(map(moved, fundings)), available_usdc=Usdc(max(0, available - amount) - of_wallet)
        ),
        standing.at,
    )


def _charged(funding: runway.Funding, charge: runway.Charge) -> runway.Funding:
    left = Usdc(funding.reserve_usdc - charge.from_reserve)
    return replace(funding, meter=charge.meter, reserve_usdc=left)


def _dearest(funding: runway.Funding, resized: Resized | None) -> runway.Funding:
    """The funding as it will be when the resize is done, with what is set aside for it, where that costs more."""
    if resized is None or resized.pin.daily_usdc <= funding.meter.daily_usdc:
        return funding
    reserve_usdc = Usdc(funding.reserve_usdc + max(0, resized.reserve_delta_usdc))
    return replace(
        funding, reserve_usdc=reserve_usdc, meter=replace(funding.meter, daily_usdc=resized.pin.daily_usdc)
    )


def _params(wallet: Address) -> dict[str, str]:
    return {"wallet": wallet, "account": wallet_account(wallet)}


def _standing(wallet: Address, rows: list[Row], now: int, added: Usdc = _NOTHING) -> Standing:
    balance, held = (rows[0]["wallet_balance"], rows[0]["wallet_held"]) if rows else (0, 0)
    available = Usdc(balance - held + added)
    live = () if not rows or rows[0]["id"] is None else tuple(rows)
    metered = [row for row in live if row["due_at"] is not None]
    fundings, available, debts = _less_debts(tuple(map(_funding, metered)), metered, available)
    pressing = any(_presses(row, now) for row in metered)
    if not pressing:
        reserves = {f.server_id: _left_usdc(f, now) for f in fundings}
        left = available
    else:
        settled = runway.settle(fundings, available, now)
        reserves = {
            funding.server_id: Usdc(funding.reserve_usdc - charge.from_reserve)
            for funding, charge in zip(fundings, settled.charges, strict=True)
        }
        left = settled.available_left
    # What was added to a server that its provider has not accepted yet is its owner's all the same.
    reserves |= {ServerId(row["id"]): Usdc(row["reserve"] or 0) for row in live if row["due_at"] is None}
    return Standing(
        wallet=wallet,
        at=now,
        available_usdc=left,
        reserved_usdc=Usdc(sum(reserves.values()) + held),
        reserves_usdc=reserves,
        live=live,
        fundings=fundings,
        unsettled_usdc=available,
        debts_usdc=debts,
        pressing=pressing,
    )


def _less_debts(
    fundings: tuple[runway.Funding, ...], rows: list[Row], available: Usdc
) -> tuple[tuple[runway.Funding, ...], Usdc, dict[ServerId, Usdc]]:
    """What is left when the servers have paid for their traffic, first of all, and what they then owe still."""
    debtors = [
        traffic.Debtor(
            server_id=funding.server_id,
            owed_usdc=Usdc(row["traffic_owed_usdc"]),
            reserve_usdc=funding.reserve_usdc,
            auto_renew=funding.auto_renew,
        )
        for funding, row in zip(fundings, rows, strict=True)
        if row["traffic_owed_usdc"] > 0
    ]
    if not debtors:
        return fundings, available, {}
    paid = traffic.paid(debtors, available)
    left = available - sum(each.from_wallet for each in paid.values())
    owed = {each.server_id: Usdc(each.owed_usdc - paid[each.server_id].total_usdc) for each in debtors}
    return tuple(_less(funding, paid.get(funding.server_id)) for funding in fundings), Usdc(left), owed


def _less(funding: runway.Funding, paid: traffic.Paid | None) -> runway.Funding:
    if paid is None:
        return funding
    return replace(funding, reserve_usdc=Usdc(funding.reserve_usdc - paid.from_reserve))


def _presses(row: Row, now: int) -> bool:
    """What a wallet spends changes when a server ends whose own reserve does not last until it is looked at next."""
    due_at: int = row["due_at"]
    if due_at <= now or row["traffic_owed_usdc"] > 0:
        return True
    burn = (due_at - row["charged_until"]) * row["daily_usdc"]
    return bool(row["auto_renew"]) and bool(burn >= row["reserve"] * DAY)


def _left_usdc(funding: runway.Funding, now: int) -> Usdc:
    """What is left of a reserve that nothing stands in for: once it has ended it pays for no further second."""
    charge = charge_until(funding.meter, now)
    if charge > funding.reserve_usdc:
        charge = charge_until(funding.meter, paid_until(funding.meter, funding.reserve_usdc))
    return Usdc(funding.reserve_usdc - charge)


def _funding(row: Row) -> runway.Funding:
    daily_usdc, capped_s = Usdc(row["daily_usdc"]), row["capped_s"]
    owed = owed_from(row["owed"])
    if owed:
        daily_usdc, capped_s = owed[0].pin.daily_usdc, owed[0].pin.capped_s
    meter = Meter(
        daily_usdc=daily_usdc,
        remainder=row["remainder"],
        charged_until=row["charged_until"],
        capped_s=capped_s,
        month_s=row["month_s"],
    )
    return runway.Funding(
        server_id=ServerId(row["id"]),
        meter=meter,
        reserve_usdc=Usdc(row["reserve"]),
        auto_renew=bool(row["auto_renew"]),
    )
