"""After a backup was put back: what the chain and the providers know, and the books have forgotten.

Invariant: it runs before anything else opens the database. Whatever was paid is in the books afterwards, once, under
the id that the call itself used; no machine of a customer is taken for a stray; and nothing is decided that the world
does not show: what cannot be decided is told, and then the database is not to be opened.

A machine that was rented after the backup is metered from its order on, not from the restore: the payments that
covered that time are credited whole, without the fees, deposits and burn that the lost books had taken from them, so
that the wallet ends up where it was. A server whose machine is gone is billed up to where the backup was, because
nobody knows when it went.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec.structs import replace
from spawn_ledger.accounts import EXT_USDC, SUSPENSE
from spawn_ledger.transfers import balance_of
from spawn_ledger.tx import Tx
from spawn_ledger.verify import verify
from spawn_providers.base import Instance, InstanceStatus, Provider, ProviderError
from spawn_providers.catalog import Offer
from spawn_schemas.events import EventType
from spawn_schemas.ids import Address, ServerId
from spawn_schemas.money import Usdc

from spawn.domain.pins import Pin, pin_of
from spawn.domain.readiness import anew
from spawn.domain.servers import Command, Server, Status
from spawn.evm.node import NodeUnavailable
from spawn.payments.arrivals import Arrivals
from spawn.payments.holdings import Holdings
from spawn.services import adoption, meters, suspense, treasury
from spawn.services.adoption import Found, offer_of
from spawn.services.billing import Billing
from spawn.services.changes import tell
from spawn.services.price_list import PriceList
from spawn.services.reconcile import SELECT_STRAYS
from spawn.services.treasury import Treasury
from spawn.settings import Settings
from spawn.store import boots, operations, servers, webhooks
from spawn.store.arrivals import MOVE_WATCH, SELECT_WATCH
from spawn.store.database import Database

PAGES_MAX: Final = 1_000_000
"""Pages of the chain that are read: years of it."""
_PAGE: Final = 500
_CLOCKS_APART_S: Final = 86_400
"""How far our clock may have been ahead of the provider's while the books were kept."""

SELECT_NEWEST: Final = "SELECT CAST(COALESCE(MAX(at), 0) AS BIGINT) AS at FROM transfer"

_Sums = tuple[Usdc, Usdc]


class Adopted(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that is a server in the books again, metered from `since` (unix seconds) on."""

    server: ServerId
    wallet: Address
    name: str
    type: str
    since: int


class Report(msgspec.Struct, kw_only=True):
    """What was mended. With anything `undecided`, each a sentence that says what to do, nothing may be opened."""

    credited_usdc: Usdc = Usdc(0)
    suspended_usdc: Usdc = Usdc(0)
    adopted: list[Adopted] = msgspec.field(default_factory=list)
    resized: list[ServerId] = msgspec.field(default_factory=list)
    gone: list[ServerId] = msgspec.field(default_factory=list)
    strays: list[str] = msgspec.field(default_factory=list)
    notes: list[str] = msgspec.field(default_factory=list)
    undecided: list[str] = msgspec.field(default_factory=list)
    treasury: Treasury | None = None


class Restore:
    """One run over a database that nobody else has open."""

    def __init__(
        self,
        db: Database,
        arrivals: Arrivals,
        holdings: Holdings,
        providers: Mapping[str, Provider],
        billing: Billing,
        settings: Settings,
    ) -> None:
        self._db = db
        self._arrivals = arrivals
        self._holdings = holdings
        self._providers = providers
        self._billing = billing
        self._settings = settings

    async def run(self, now: int) -> Report:
        """Bring the books up to the world. `now` is unix time."""
        report = Report()
        (row,) = await self._db.read(SELECT_NEWEST)
        newest_at: int = row["at"]
        lost_until = now + self._settings.x402_timeout_s
        await self._db.write(lambda tx: _begin(tx, now, lost_until))
        # Money first: what is adopted is charged to it.
        await self._replay_chain(report, now)
        for name, provider in self._providers.items():
            try:
                await self._replay_machines(provider, newest_at, now, report)
            except ProviderError as error:
                report.undecided.append(
                    f"{name} does not say which machines there are ({error}): repeat the restore when it does."
                )
        await self._compare(report, now)
        return report

    # --- the chain --------------------------------------------------------------------------------------------

    async def _replay_chain(self, report: Report, now: int) -> None:
        before = await self._db.write(_sums)
        known = await self._db.read(SELECT_WATCH, {"name": self._arrivals.name})
        if not known and self._settings.payments != "devnet" and self._settings.suspense_from_block < 0:
            report.undecided.append(
                "the backup does not say how far the chain was read: set SPAWN_SUSPENSE_FROM_BLOCK to a block from "
                "before the backup, and repeat the restore."
            )
            return
        try:
            await suspense.follow(self._db, self._arrivals, now, pages=PAGES_MAX, kept=lambda _: None)
        except NodeUnavailable as error:
            report.undecided.append(
                f"what was paid since the backup cannot be read ({error}): repeat the restore when the node answers, "
                "or name another with SPAWN_RPC_URL."
            )
        after = await self._db.write(_sums)
        report.suspended_usdc = Usdc(after[1] - before[1])
        report.credited_usdc = Usdc(after[0] - before[0] - report.suspended_usdc)

    async def _compare(self, report: Report, now: int) -> None:
        """The books against themselves and the chain, as `spawn ledger verify` would."""
        try:
            report.treasury = await treasury.look(
                self._db, self._holdings, self._settings.pay_to, now, gas=None
            )
        except NodeUnavailable as error:
            report.undecided.append(
                f"the books cannot be compared with the chain ({error}): repeat the restore when the node answers."
            )
            return
        on_chain = report.treasury.compared.chain_usdc
        violations = await self._db.write(lambda tx: verify(tx, chain_balance_usdc=on_chain))
        report.undecided += [
            f"{violation.rule}: {violation.sentence}: do not open these books; try another backup."
            for violation in violations
        ]

    # --- the providers ----------------------------------------------------------------------------------------

    async def _replay_machines(self, provider: Provider, newest_at: int, now: int, report: Report) -> None:
        inventory = [instance async for instance in provider.list_owned()]
        prices = PriceList(await provider.catalog(), self._settings)
        await prices.refresh(self._db)
        known = {server.id: server for server in await self._live(provider.name)}
        strays = {row["ref"] for row in await self._db.read(SELECT_STRAYS, {"provider": provider.name})}
        for instance in inventory:
            server = None if instance.key is None else known.pop(instance.key, None)
            if server is not None:
                await self._replay_rebuild(server, instance, now)
                await self._replay_resize(server, instance, prices, now, report)
            elif instance.ref in strays or await self._is_stray(instance, newest_at):
                report.strays.append(instance.ref)
            else:
                await self._adopt(provider.name, instance, prices, now, report)
        for server in known.values():
            if server.provider_ref is not None and await provider.get(server.provider_ref) is None:
                await self._miss(server, newest_at, report)

    async def _live(self, provider: str) -> list[Server]:
        found: list[Server] = []
        after = ""
        while page := await self._db.read(servers.SELECT_LIVE, {"after": after, "limit": _PAGE}):
            found.extend(servers.server_from(row) for row in page)
            after = found[-1].id
        return [server for server in found if server.provider == provider]

    async def _is_stray(self, instance: Instance, newest_at: int) -> bool:
        """Whether it was nobody's before the books were lost, or is on its way out: the service knows what to do.

        A server is in the books before its machine is ordered: an older machine that is not cannot be from the time
        that was lost.
        """
        if instance.key is None or instance.status is InstanceStatus.DELETING:
            return True
        if instance.created_at is not None and instance.created_at + _CLOCKS_APART_S < newest_at:
            return True
        return bool(await self._db.read(servers.SELECT_SERVER, {"id": instance.key}))

    async def _adopt(
        self, provider: str, instance: Instance, prices: PriceList, now: int, report: Report
    ) -> None:
        found = adoption.find(provider, instance, prices.catalog, prices.eur_usdc)
        if isinstance(found, str):
            report.undecided.append(f"{found}, and repeat the restore.")
            return
        if found.note is not None:
            report.notes.append(found.note)
        report.adopted.append(await self._db.write(lambda tx: self._adopted(tx, found, now)))

    def _adopted(self, tx: Tx, found: Found, now: int) -> Adopted:
        server = adoption.adopt(tx, found, now, metered=True)
        self._billing.settle(tx, server.wallet, now)
        return Adopted(
            server=server.id,
            wallet=server.wallet,
            name=server.name,
            type=server.type,
            since=server.created_at,
        )

    async def _replay_rebuild(self, server: Server, instance: Instance, now: int) -> None:
        """What its owner put on it since the backup."""
        if instance.image != server.image:
            await self._db.write(lambda tx: _rebuilt(tx, server.id, instance.image, now))

    async def _replay_resize(
        self, server: Server, instance: Instance, prices: PriceList, now: int, report: Report
    ) -> None:
        """What its owner made of it since the backup costs what that costs, from now on."""
        if instance.provider_type == server.provider_type:
            return
        offer = offer_of(instance, prices.catalog)
        if offer is None:
            report.notes.append(
                f"{server.id} is a {instance.provider_type} now, which has no price: it is billed as a "
                f"{server.provider_type} until somebody decides."
            )
            return
        pin = pin_of(offer, eur_usdc=prices.eur_usdc)
        if await self._db.write(lambda tx: self._resized(tx, server.id, instance, offer, pin, now)):
            report.resized.append(server.id)

    def _resized(
        self, tx: Tx, server_id: ServerId, instance: Instance, offer: Offer, pin: Pin, now: int
    ) -> bool:
        self._billing.settle(tx, servers.get_server(tx, server_id).wallet, now)
        server = servers.get_server(tx, server_id)
        if server.charged_until is None:
            return False
        resized = replace(
            server,
            type=offer.type,
            provider_type=offer.provider_type,
            cores=offer.cores,
            memory_gb=offer.memory_gb,
            disk_gb=instance.disk_gb,
        )
        tell(tx, EventType.SERVER_RESIZED, self._billing.repin(tx, server, resized, pin, now), now)
        return True

    async def _miss(self, server: Server, newest_at: int, report: Report) -> None:
        """This is the first look at what is missing; the service's own is the second, and writes it off."""
        if server.status is Status.DESTROYING or server.charged_until is None:
            return
        since = server.missing_since or max(server.charged_until, newest_at)
        await self._db.write(lambda tx: _missed(tx, server.id, since))
        report.gone.append(server.id)


def _begin(tx: Tx, now: int, lost_until: int) -> None:
    """What the lost books may have known is in doubt: who paid for what, which orders were sent, what was delivered.

    Payments settled until what was signed before the loss has expired may be those of forgotten calls.
    """
    tx.execute(MOVE_WATCH, {"name": suspense.LOST_UNTIL, "cursor": str(lost_until)})
    tx.execute(operations.DOUBT)
    tx.execute(webhooks.FORGET_FAILURES)
    adoption.skip_event_numbers(tx, now)


def _sums(tx: Tx) -> _Sums:
    """What the books say came in, and how much of it waits for its sender."""
    return balance_of(tx, EXT_USDC).balance, balance_of(tx, SUSPENSE).balance


def _rebuilt(tx: Tx, server_id: ServerId, image: str, now: int) -> None:
    """The machine has this image; a rebuild that is under way finds out by itself what came of it."""
    running = operations.find_running(tx, server_id)
    if running is not None and running.command is Command.REBUILD:
        return
    server = servers.get_server(tx, server_id)
    rebuilt = replace(server, image=image)
    servers.update_server(tx, server, rebuilt)
    readiness = boots.find(tx, server_id)
    if readiness is not None:
        # What was told is of the system before; the one that there is reports under a token that was lost.
        boots.save(tx, readiness, anew(readiness, now))
    tell(tx, EventType.SERVER_REBUILT, rebuilt, now)


def _missed(tx: Tx, server_id: ServerId, since: int) -> None:
    server = servers.get_server(tx, server_id)
    servers.update_server(tx, server, meters.missed(server, since))
