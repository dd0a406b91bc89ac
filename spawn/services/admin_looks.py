"""What an operator looks at: wallets, servers and what is earned with them, price changes, and the whole on one page.

Invariant: nothing here writes, so that it runs on a snapshot beside the service. Amounts are text, as on the wire.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from spawn_ledger.accounts import SUSPENSE
from spawn_ledger.transfers import balance_of
from spawn_ledger.tx import Row, Tx
from spawn_ledger.wallets import NEWEST, STATEMENT, statement_from, statement_params
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc, format_usdc

from spawn.domain import price_changes as decisions
from spawn.domain.barring import Barred
from spawn.domain.price_changes import PriceChange
from spawn.services import incidents, standing
from spawn.services.moments import moment
from spawn.store import price_changes, wallets
from spawn.store.database import Database

_SERVER: Final = """
SELECT id, wallet, name, type, location, status, reason, daily_usdc, cost_daily_usdc, created_at, ended_at,
  server.charged_usdc + COALESCE(traffic.charged_usdc, 0) AS charged_usdc,
  server.cost_usdc + COALESCE(traffic.cost_usdc, 0) AS cost_usdc
FROM server LEFT JOIN traffic ON traffic.server_id = server.id
"""
SELECT_SERVERS: Final = (
    _SERVER
    + """
WHERE id > :after AND ((:status = '' AND ended_at IS NULL) OR status = :status) ORDER BY id LIMIT :limit
"""
)
SELECT_SERVERS_OF: Final = (
    _SERVER
    + """
WHERE wallet = :wallet AND id > :after AND ((:status = '' AND ended_at IS NULL) OR status = :status)
ORDER BY id LIMIT :limit
"""
)
COUNT_WALLETS: Final = """
SELECT COALESCE(barred, '') AS barred, COUNT(*) AS n FROM account
WHERE id LIKE 'wallet:%' GROUP BY COALESCE(barred, '')
"""
COUNT_SERVERS: Final = "SELECT status, COUNT(*) AS n FROM server GROUP BY status ORDER BY status"
COUNT_DUE: Final = "SELECT COUNT(*) AS n, MIN(due_at) AS oldest FROM server WHERE due_at <= :now"
COUNT_OPERATIONS: Final = """
SELECT COUNT(*) AS n, MIN(created_at) AS oldest FROM operation WHERE status = 'running'
"""
COUNT_DELIVERIES: Final = """
SELECT COUNT(*) AS n, MIN(created_at) AS oldest FROM delivery WHERE state = 'pending'
"""

NOTES_MAX: Final = 20


class WalletLine(msgspec.Struct, frozen=True, kw_only=True):
    """`available` and `reserved` are accrued to now, as the wallet's owner sees them."""

    wallet: Address
    barred: Barred | None
    available: str
    reserved: str
    servers: int


class NoteLine(msgspec.Struct, frozen=True, kw_only=True):
    """What was done to a wallet, and why."""

    at: str
    kind: str
    reason: str


class ServerLine(msgspec.Struct, frozen=True, kw_only=True):
    """A server and what it earned: `revenue` and `cost` are what is in the books for it, so of its last settlement.

    `cost` counts what it cost after its money had ended as well; null where its provider does not say.
    """

    id: str
    wallet: Address
    name: str
    type: str
    location: str
    status: str
    reason: str | None
    daily: str
    revenue: str
    cost: str | None
    margin: str | None
    created_at: str
    ended_at: str | None


class WalletShown(msgspec.Struct, frozen=True, kw_only=True):
    """A wallet with its living servers and its newest notes."""

    wallet: WalletLine
    servers: tuple[ServerLine, ...]
    notes: tuple[NoteLine, ...]


class WalletPage(msgspec.Struct, frozen=True, kw_only=True):
    """`next`: what to go on behind; null at the end."""

    wallets: tuple[WalletLine, ...]
    next: str | None


class ServerPage(msgspec.Struct, frozen=True, kw_only=True):
    """`next`: what to go on behind; null at the end."""

    servers: tuple[ServerLine, ...]
    next: str | None


class Movement(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a statement; `kind` says whether the wallet's total grew (in), fell (out) or stayed (internal)."""

    at: str
    kind: str
    code: str
    amount: str
    reference: str


class StatementPage(msgspec.Struct, frozen=True, kw_only=True):
    """The newest first; `next` is the line to go on before, null at the end."""

    movements: tuple[Movement, ...]
    next: int | None


class PriceLine(msgspec.Struct, frozen=True, kw_only=True):
    """`told`: whether every owner has been."""

    id: str
    type: str
    location: str
    daily: str
    announced_at: str
    effective_at: str
    state: decisions.State
    told: bool


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """How much waits, and the seconds that the oldest of it has."""

    count: int
    oldest_s: int


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """What goes on failing until a person looks: how many machines that do not go away, and everything in words."""

    failing_destroys: int
    incidents: tuple[str, ...]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The whole on one page. `due` and `operations` are what the jobs have before them."""

    at: str
    wallets: int
    suspended: int
    blocked: int
    servers: Mapping[str, int]
    due: Waiting
    operations: Waiting
    deliveries: Waiting
    suspense: str
    price_changes: int
    failing_destroys: int
    incidents: tuple[str, ...]


def wallet_page(
    tx: Tx, *, piece: str, only: Barred | None, after: Address | None, limit: int, now: int
) -> WalletPage:
    """Wallets in the order of their addresses; `piece` is hex digits of the address."""
    found = wallets.list_wallets(tx, piece=piece, only=only, after=after, limit=limit + 1)
    page = found[:limit]
    return WalletPage(
        wallets=tuple(_wallet_line(tx, wallet, barred, now) for wallet, barred in page),
        next=page[-1][0] if len(found) > limit else None,
    )


def _wallet_line(tx: Tx, wallet: Address, barred: Barred | None, now: int) -> WalletLine:
    has = standing.of(tx, wallet, now)
    return WalletLine(
        wallet=wallet,
        barred=barred,
        available=format_usdc(has.available_usdc),
        reserved=format_usdc(has.reserved_usdc),
        servers=len(has.live),
    )


def show_wallet(tx: Tx, wallet: Address, now: int) -> WalletShown:
    return WalletShown(
        wallet=_wallet_line(tx, wallet, wallets.barred(tx, wallet), now),
        servers=server_page(tx, wallet=wallet, status=None, after="", limit=100).servers,
        notes=notes(tx, wallet),
    )


def notes(tx: Tx, wallet: Address) -> tuple[NoteLine, ...]:
    """What was done to the wallet, and why; the newest first."""
    return tuple(
        NoteLine(at=moment(note.at), kind=note.kind, reason=note.reason)
        for note in wallets.list_notes(tx, wallet, limit=NOTES_MAX)
    )


def server_page(tx: Tx, *, wallet: Address | None, status: str | None, after: str, limit: int) -> ServerPage:
    """Servers in the order of their ids: those that live, or those in this state."""
    params = {"after": after, "status": status or "", "limit": limit + 1}
    found = (
        tx.all(SELECT_SERVERS, params)
        if wallet is None
        else tx.all(SELECT_SERVERS_OF, params | {"wallet": wallet})
    )
    page = tuple(map(_server_line, found[:limit]))
    return ServerPage(servers=page, next=page[-1].id if len(found) > limit else None)


def _server_line(row: Row) -> ServerLine:
    cost = None if row["cost_daily_usdc"] is None and row["cost_usdc"] == 0 else Usdc(row["cost_usdc"])
    return ServerLine(
        id=row["id"],
        wallet=row["wallet"],
        name=row["name"],
        type=row["type"],
        location=row["location"],
        status=row["status"],
        reason=row["reason"],
        daily=format_usdc(Usdc(row["daily_usdc"])),
        revenue=format_usdc(Usdc(row["charged_usdc"])),
        cost=None if cost is None else format_usdc(cost),
        margin=None if cost is None else format_usdc(Usdc(row["charged_usdc"] - cost)),
        created_at=moment(row["created_at"]),
        ended_at=None if row["ended_at"] is None else moment(row["ended_at"]),
    )


def statement(tx: Tx, wallet: Address, *, before: int | None, limit: int) -> StatementPage:
    """How the wallet's money moved, the newest first."""
    params = statement_params(wallet, before=NEWEST if before is None else before, limit=limit + 1)
    lines = statement_from(tx.all(STATEMENT, params))
    page = lines[:limit]
    return StatementPage(
        movements=tuple(
            Movement(
                at=moment(line.at),
                kind=line.kind.value,
                code=line.code.value,
                amount=format_usdc(line.amount),
                reference=line.reference,
            )
            for line in page
        ),
        next=page[-1].seq if len(lines) > limit else None,
    )


def price_lines(tx: Tx, *, limit: int, now: int) -> tuple[PriceLine, ...]:
    """The changes of prices, the newest first."""
    lines: list[PriceLine] = []
    successors: dict[tuple[str, str], PriceChange] = {}
    for change in price_changes.list_changes(tx, limit=limit):
        offer = (change.type, change.location)
        lines.append(
            PriceLine(
                id=change.id,
                type=change.type,
                location=change.location,
                daily=format_usdc(change.daily_usdc),
                announced_at=moment(change.announced_at),
                effective_at=moment(change.effective_at),
                state=decisions.state(change, successors.get(offer), now),
                told=change.told_to is None,
            )
        )
        successors[offer] = change
    return tuple(lines)


async def trouble(db: Database, now: int) -> Trouble:
    """What the operator must know of at `now` (unix seconds)."""
    failing = await incidents.failing_destroys(db, now)
    found = await incidents.look(db, now)
    return Trouble(failing_destroys=failing.count, incidents=tuple(incident.text for incident in found))


def status(tx: Tx, known: Trouble, now: int) -> Status:
    """The whole on one page."""
    by_bar: dict[str, int] = {row["barred"]: row["n"] for row in tx.all(COUNT_WALLETS, {})}
    return Status(
        at=moment(now),
        wallets=sum(by_bar.values()),
        suspended=by_bar.get(Barred.SUSPENDED.value, 0),
        blocked=by_bar.get(Barred.BLOCKED.value, 0),
        servers={row["status"]: row["n"] for row in tx.all(COUNT_SERVERS, {})},
        due=_waiting(tx.one(COUNT_DUE, {"now": now}), now),
        operations=_waiting(tx.one(COUNT_OPERATIONS, {}), now),
        deliveries=_waiting(tx.one(COUNT_DELIVERIES, {}), now),
        suspense=format_usdc(balance_of(tx, SUSPENSE).balance),
        price_changes=sum(change.is_pending(now) for change in price_changes.list_newest(tx)),
        failing_destroys=known.failing_destroys,
        incidents=known.incidents,
    )


def _waiting(row: Row | None, now: int) -> Waiting:
    if row is None or row["n"] == 0:
        return Waiting(count=0, oldest_s=0)
    return Waiting(count=row["n"], oldest_s=max(0, now - row["oldest"]))
