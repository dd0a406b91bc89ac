"""Reading, changing, funding and destroying servers.

Invariant: a read costs the provider no call; the refund of a destruction is fixed when it is asked for.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace
from spawn_ledger.transfers import transfer_id
from spawn_ledger.tx import Row, Tx
from spawn_schemas import api
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.events import EventType
from spawn_schemas.ids import Address, Entropy, ServerId, new_action_id
from spawn_schemas.money import Usdc, format_usdc

from spawn.domain import charges
from spawn.domain.barring import Barred
from spawn.domain.operations import Operation
from spawn.domain.readiness import Readiness
from spawn.domain.servers import FINAL, Reason, Server, Status
from spawn.services import endings, funds, standing, traffic, views
from spawn.services.billing import Billing
from spawn.services.calls import Acted, Completed, Context, Read, UseCase
from spawn.services.changes import save, tell
from spawn.services.create_server import name_taken
from spawn.services.operator import Operator
from spawn.services.ownership import TOMBSTONE_S, busy, get_owned, read_owned
from spawn.services.purse import Purse
from spawn.services.standing import Standing
from spawn.store import boots, operations, rentals, secrets, servers
from spawn.store.database import Database
from spawn.store.secrets import Vault

_destroyed: Final = msgspec.json.Decoder(api.ServerDestroyed)


class ListServers(Read):
    """`GET /v1/servers`: the wallet's live servers, oldest first; those that ended only when asked for by status."""

    def __init__(self, *, status: Status | None, limit: int, page: int) -> None:
        self._status = status
        self._limit = limit
        self._page = page

    def act(self, tx: Tx, context: Context) -> Acted:
        rows, total = self._page_of(tx, context)
        return Acted(
            answer=views.encode(
                api.ServerList(
                    servers=tuple(map(views.server_line, rows)),
                    meta=api.PageMeta(page=self._page, per_page=self._limit, total=total),
                )
            )
        )

    def _page_of(self, tx: Tx, context: Context) -> tuple[Sequence[Row], int]:
        offset = (self._page - 1) * self._limit
        if self._status not in FINAL:
            live = context.standing.live
            if self._status is not None:
                live = tuple(row for row in live if row["status"] == self._status.value)
            return live[offset : offset + self._limit], len(live)
        params: dict[str, str | int] = {
            "wallet": context.wallet,
            "status": self._status.value,
            "since": context.now - TOMBSTONE_S,
            "limit": self._limit,
            "offset": offset,
        }
        rows = tx.all(servers.SELECT_ENDED_PAGE, params)
        if self._page == 1 and len(rows) < self._limit:
            return rows, len(rows)
        counted = tx.one(servers.COUNT_ENDED, params)
        return rows, 0 if counted is None else counted["n"]


class ShowServer(Read):
    """`GET /v1/servers/{id}`, waiting for its running operation first if asked to.

    The root password is for whoever vouched for this very request: a bearer or a sign-in that leaked shows none.
    """

    def __init__(self, server_id: ServerId, operator: Operator, vault: Vault, *, wait_s: int) -> None:
        self._server_id = server_id
        self._operator = operator
        self._vault = vault
        self._wait_s = wait_s

    async def wait(self, db: Database, wallet: Address, now: int) -> None:
        """Raises not_found or forbidden."""
        if self._wait_s > 0:
            await read_owned(db, self._server_id, wallet, now)
            running = await db.read(operations.SELECT_RUNNING, {"server_id": self._server_id})
            if running:
                await self._operator.finished(running[0]["id"], self._wait_s)

    def check(self, tx: Tx, wallet: Address, purse: Purse, now: int) -> None:
        """Raises not_found or forbidden."""
        get_owned(tx, self._server_id, wallet, now)

    def act(self, tx: Tx, context: Context) -> Acted:
        server = get_owned(tx, self._server_id, context.wallet, context.now)
        readiness = boots.find(tx, server.id)
        view = _view_of(tx, server, context.standing, readiness)
        ready = (
            None if readiness is None or view.ready is None else views.ready_view(readiness, with_log=True)
        )
        password = self._vault.take(tx, server.id, secrets.ROOT_PASSWORD) if context.binds_request else None
        return Acted(
            answer=views.encode(api.ServerShown(server=replace(view, root_password=password, ready=ready))),
            stored=views.encode(api.ServerShown(server=view)),
        )


class UpdateServer(UseCase):
    """`PATCH /v1/servers/{id}`: name and auto_renew."""

    def __init__(self, server_id: ServerId, wanted: api.UpdateServer, billing: Billing) -> None:
        if wanted.name is None and wanted.auto_renew is None:
            raise SpawnError(
                Code.INVALID_REQUEST, "There is nothing to change.", next="Send a name, auto_renew, or both."
            )
        self._server_id = server_id
        self._wanted = wanted
        self._billing = billing
        self.saves = server_id if wanted.auto_renew else None

    def check(self, tx: Tx, wallet: Address, purse: Purse, now: int) -> None:
        """Raises not_found, forbidden, conflict or insufficient_deposit."""
        self._check_live_and_name(tx, wallet, now)
        if self._wanted.auto_renew is not None:
            purse.refuse_to_starve(self._billing, Usdc(0), self._server_id, renews=self._wanted.auto_renew)

    def act(self, tx: Tx, context: Context) -> Acted:
        self._check_live_and_name(tx, context.wallet, context.now)
        # Whether the wallet pays for the server changes only from here on: settle what is behind us first.
        self._billing.settle(tx, context.wallet, context.now, sparing=self.saves)
        server = get_owned(tx, self._server_id, context.wallet, context.now)
        if self._wanted.auto_renew is not None:
            standing.refuse_to_starve(
                tx, context.standing, self._billing, Usdc(0), server.id, renews=self._wanted.auto_renew
            )
        name = server.name if self._wanted.name is None else self._wanted.name
        auto_renew = server.auto_renew if self._wanted.auto_renew is None else self._wanted.auto_renew
        changed = replace(server, name=name, auto_renew=auto_renew)
        if changed != server:
            save(tx, server, changed, context.now)
            tell(tx, EventType.SERVER_UPDATED, changed, context.now)
        funds.charge_fee(tx, context.wallet, context.fee_usdc, context.reference, context.now)
        self._billing.reschedule(tx, context.wallet, context.now)
        view = _view(tx, self._server_id, standing.of(tx, context.wallet, context.now))
        return Acted(answer=views.encode(api.ServerShown(server=view)))

    def _check_live_and_name(self, tx: Tx, wallet: Address, now: int) -> None:
        server = get_owned(tx, self._server_id, wallet, now)
        _check_live(server)
        if self._wanted.name is not None:
            params = {"wallet": wallet, "name": self._wanted.name}
            taken = tx.one(servers.SELECT_NAME_TAKEN, params)
            if taken is not None and taken["id"] != server.id:
                raise name_taken(self._wanted.name)


class FundServer(UseCase):
    """`POST /v1/servers/{id}/deposit`: move money from the balance into the server's reserve."""

    def __init__(self, server_id: ServerId, wanted: api.FundServer, billing: Billing) -> None:
        self._server_id = server_id
        self._amount = charges.amount(wanted.amount)
        self._billing = billing
        self.saves = server_id
        if self._amount == 0:
            raise SpawnError(
                Code.INVALID_REQUEST, "The amount must be more than zero.", next="Write it like 5.00."
            )

    def check(self, tx: Tx, wallet: Address, purse: Purse, now: int) -> None:
        """Raises not_found, forbidden, conflict or insufficient_deposit."""
        _check_live(get_owned(tx, self._server_id, wallet, now))
        purse.require(self._amount)
        purse.refuse_to_starve(self._billing, self._amount, self._server_id)

    def act(self, tx: Tx, context: Context) -> Acted:
        self._billing.settle(tx, context.wallet, context.now, sparing=self._server_id)
        server = get_owned(tx, self._server_id, context.wallet, context.now)
        _check_live(server)
        standing.refuse_to_starve(tx, context.standing, self._billing, self._amount, server.id)
        funds.charge_fee(tx, context.wallet, context.fee_usdc, context.reference, context.now)
        funds.deposit(tx, server, self._amount, id=transfer_id("deposit", context.reference), at=context.now)
        self._billing.funded(tx, server, context.now)
        now_standing = standing.of(tx, context.wallet, context.now)
        view = _view(tx, server.id, now_standing)
        return Acted(
            answer=views.encode(
                api.ServerFunded(server=view, available=format_usdc(now_standing.available_usdc))
            )
        )


class DestroyServer(UseCase):
    """`DELETE /v1/servers/{id}`: always works, whatever else runs; the fee may come out of the refund."""

    fee_from_refund = True
    open_to = frozenset(Barred)

    def __init__(self, server_id: ServerId, billing: Billing, entropy: Entropy) -> None:
        self._server_id = server_id
        self._billing = billing
        self._entropy = entropy

    def check(self, tx: Tx, wallet: Address, purse: Purse, now: int) -> None:
        """Raises not_found, forbidden, or conflict when it is gone or going already."""
        server = get_owned(tx, self._server_id, wallet, now)
        running = operations.find_running(tx, server.id)
        if server.status is Status.DESTROYING and running is not None:
            raise busy(running)
        _check_live(server)

    def act(self, tx: Tx, context: Context) -> Acted:
        server = get_owned(tx, self._server_id, context.wallet, context.now)
        # Its money may have ended before the caller ended it: the answer is the same, and true.
        operation, refund = context.ended.get(server.id) or self._end(tx, server, context)
        fee = Usdc(min(context.fee_usdc, funds.available_usdc(tx, context.wallet)))
        funds.charge_fee(tx, context.wallet, fee, context.reference, context.now)
        self._billing.reschedule(tx, context.wallet, context.now)
        paid_from_refund = Usdc(0) if context.payment_usdc > 0 else fee
        return Acted(
            answer=views.encode(
                api.ServerDestroyed(
                    status="deleted",
                    deposit_refunded=format_usdc(Usdc(max(0, refund - paid_from_refund))),
                    action=views.action_summary(operation),
                )
            ),
            operation=operation.id,
            fee_usdc=fee,
        )

    def _end(self, tx: Tx, server: Server, context: Context) -> tuple[Operation, Usdc]:
        _check_live(server)
        ended = self._billing.settle(tx, context.wallet, context.now)
        return ended.get(server.id) or endings.begin(
            tx,
            servers.get_server(tx, server.id),
            reason=Reason.REQUESTED,
            action_id=new_action_id(self._entropy),
            billing_ends_at=context.now,
            now=context.now,
        )

    def complete(self, tx: Tx, draft: bytes, operation: Operation) -> Completed:
        gone = _destroyed.decode(draft)
        body = views.encode(replace(gone, action=views.action_summary(operation)))
        return Completed(answer=body, stored=body)


def _check_live(server: Server) -> None:
    if server.status in FINAL:
        raise SpawnError(
            Code.NOT_FOUND,
            f"Server {server.id} is {server.status} already; nothing of it is left.",
            next="POST /v1/servers rents another.",
        )
    if server.status is Status.DESTROYING:
        raise SpawnError(
            Code.CONFLICT, f"Server {server.id} is being destroyed.", next="POST /v1/servers rents another."
        )


def _view(tx: Tx, server_id: ServerId, now_standing: Standing) -> api.ServerView:
    server = servers.get_server(tx, server_id)
    return _view_of(tx, server, now_standing, boots.find(tx, server_id))


def _view_of(tx: Tx, server: Server, at: Standing, readiness: Readiness | None) -> api.ServerView:
    running = operations.find_running(tx, server.id)
    rental = None if server.host_id is None else rentals.find(tx, server.id)
    return views.server_view(server, at, running, readiness, traffic.view(tx, server, at.at), rental)
