"""Compares what providers have, what our books say, and what is billed; mends what a lost answer left behind.

Invariant: it takes no input but the two inventories. Nothing is destroyed or written off on one look: a stray
machine and a missing one must be seen twice, a while apart, and a day where this process never saw the missing one:
it may look with a token of another project. A machine that is older than the books, and that they never had, is
nobody's to destroy but an operator's: the books before these may have had it.
"""

import logging
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec.structs import replace
from spawn_ledger.tx import Tx
from spawn_providers.base import Instance, Provider, ProviderError
from spawn_schemas.ids import ServerId

from spawn.clock import Clock
from spawn.domain.servers import FINAL, Server, Status, status_of
from spawn.services import endings, meters, traffic
from spawn.services.billing import Billing
from spawn.services.changes import save
from spawn.store import operations, secrets, servers
from spawn.store.database import Database

log = logging.getLogger(__name__)

GRACE_S: Final = 300
"""How long a machine must stay stray, or missing, before anything is done about it."""
UNSEEN_GRACE_S: Final = 86_400
"""How long a machine must stay missing that this process never saw.

A token is set at the start, so whoever saw a machine with it looks where it is. Who did not may look into another
project, in which new orders are made and seen all the same; so what it saw of others proves nothing of this one. A day
is long enough for an operator to read the log, and costs no owner anything: the refund counts from the first miss.
"""
_PAGE: Final = 500

SELECT_STRAYS: Final = "SELECT ref, first_seen_at FROM stray WHERE provider = :provider"
INSERT_STRAY: Final = """
INSERT INTO stray (provider, ref, first_seen_at) VALUES (:provider, :ref, :now)
ON CONFLICT (provider, ref) DO UPDATE SET first_seen_at = :now
"""
DELETE_STRAY: Final = "DELETE FROM stray WHERE provider = :provider AND ref = :ref"
SELECT_CHANGED_SINCE: Final = """
SELECT id FROM operation
WHERE server_id = :server_id AND (status = 'running' OR (finished_at >= :since AND finished_at <= :now)) LIMIT 1
"""


class Report(msgspec.Struct, kw_only=True):
    """What one pass found and did. `drifted` machines are not what their servers are billed for: look at them.

    `unknown` machines are older than the books, and wait for an operator; `frozen` servers cost nothing until one
    starts their meters. `doubted` are those of the missing whose machines this process never saw.
    """

    machines: int = 0
    servers: int = 0
    refreshed: int = 0
    drifted: int = 0
    strays_seen: int = 0
    strays_destroyed: int = 0
    unknown: int = 0
    frozen: int = 0
    missing: int = 0
    doubted: int = 0
    vanished: int = 0
    unreachable: int = 0


class Reconciler:
    """Runs by itself every minute, or once by `spawn reconcile`."""

    def __init__(
        self, db: Database, providers: Mapping[str, Provider], clock: Clock, billing: Billing
    ) -> None:
        self._db = db
        self._providers = providers
        self._clock = clock
        self._billing = billing
        self._shown: set[ServerId] = set()

    async def tick(self, now: int) -> None:
        """The job: one pass, logged when it had to act."""
        report = await self.run()
        if report.drifted or report.strays_destroyed or report.vanished:
            log.warning("reconciled: %s", report)
        if report.unknown:
            log.error(
                "%d machines carry our label, are older than these books, and were never in them. They are left alone: "
                "give them back to their owners with `spawn reconcile --rebuild`, or delete them at the provider.",
                report.unknown,
            )
        if report.doubted:
            log.error(
                "incident: %d machines are not there for our token, and this process never saw them. Check that "
                "the token is of the project that they are in. If it is, do nothing: what stays missing for %d hours "
                "is written off, and refunded from when it was missed.",
                report.doubted,
                UNSEEN_GRACE_S // 3600,
            )

    async def run(self) -> Report:
        """One pass over every provider."""
        report = Report()
        began = self._clock.now_s()
        ours = await self._live_servers()
        report.frozen = sum(server.frozen for server in ours)
        self._shown &= {server.id for server in ours}
        for name, provider in self._providers.items():
            mine = {server.id: server for server in ours if server.provider == name}
            report.servers += len(mine)
            try:
                # An inventory that breaks off half-way proves nothing missing.
                inventory = [instance async for instance in provider.list_owned()]
            except ProviderError as error:
                log.warning("no inventory of %s: %s", name, error)
                report.unreachable += 1
                continue
            report.machines += len(inventory)
            await self._compare(provider, mine, inventory, began, report)
        return report

    async def _live_servers(self) -> list[Server]:
        found: list[Server] = []
        after = ""
        while page := await self._db.read(servers.SELECT_LIVE, {"after": after, "limit": _PAGE}):
            found.extend(servers.server_from(row) for row in page)
            after = found[-1].id
        return found

    async def _compare(
        self,
        provider: Provider,
        mine: Mapping[ServerId, Server],
        inventory: list[Instance],
        began: int,
        report: Report,
    ) -> None:
        strays = {
            row["ref"]: row["first_seen_at"]
            for row in await self._db.read(SELECT_STRAYS, {"provider": provider.name})
        }
        seen: set[ServerId] = set()
        for instance in inventory:
            server = None if instance.key is None else mine.get(instance.key)
            if server is None:
                await self._stray(provider, instance, strays.pop(instance.ref, None), report)
            elif server.provider_ref in {None, instance.ref}:
                seen.add(server.id)
                self._shown.add(server.id)
                await self._refresh(server, instance, began, report)
            else:
                log.error(
                    "machine %s has the label of %s, which is machine %s: labels were copied. It is left alone.",
                    instance.ref,
                    server.id,
                    server.provider_ref,
                )
        for ref in strays:
            # Gone, or a rental that our list was too old for: whatever it becomes, it is seen for the first time.
            await self._forget_stray(provider, ref)
        for server in mine.values():
            if server.id not in seen and server.provider_ref is not None:
                await self._missing(provider, server, report)

    async def _stray(
        self, provider: Provider, instance: Instance, first_seen_at: int | None, report: Report
    ) -> None:
        """A machine with our label that no living server of ours owns."""
        now = self._clock.now_s()
        report.strays_seen += 1
        if first_seen_at is not None and first_seen_at > now:
            first_seen_at = None  # the clock was set back
        if first_seen_at is None:
            params = {"provider": provider.name, "ref": instance.ref, "now": now}
            await self._db.write(lambda tx: tx.execute(INSERT_STRAY, params))
        if first_seen_at is None or now - first_seen_at < GRACE_S:
            return
        if not await self._may_destroy(instance, report):
            return
        try:
            await provider.delete(instance.ref)
        except ProviderError as error:
            log.warning("stray %s of %s stays for now: %s", instance.ref, provider.name, error)
            return
        await self._forget_stray(provider, instance.ref)
        report.strays_destroyed += 1

    async def _forget_stray(self, provider: Provider, ref: str) -> None:
        await self._db.write(lambda tx: tx.execute(DELETE_STRAY, {"provider": provider.name, "ref": ref}))

    async def _may_destroy(self, instance: Instance, report: Report) -> bool:
        """Whether the books say that nobody has it, and can know.

        Its server may live after all, rented since our list was read.
        """
        found = (
            [] if instance.key is None else await self._db.read(servers.SELECT_SERVER, {"id": instance.key})
        )
        if found:
            return servers.server_from(found[0]).status in FINAL
        began = await self._db.read(secrets.SELECT_BEGAN)
        if began and instance.created_at is not None and instance.created_at >= began[0]["created_at"]:
            return True
        report.unknown += 1
        return False

    async def _refresh(self, server: Server, instance: Instance, began: int, report: Report) -> None:
        """Bring the cached state up to date, unless an operation did or is about to."""
        refreshed = await self._db.write(
            lambda tx: self._look(tx, server.id, instance, began, self._clock.now_s())
        )
        report.refreshed += int(refreshed)
        if server.provider_type != instance.provider_type and refreshed:
            report.drifted += 1
            log.error(
                "%s is billed as %s and is a %s", server.id, server.provider_type, instance.provider_type
            )

    def _look(self, tx: Tx, server_id: ServerId, instance: Instance, began: int, now: int) -> bool:
        differed = _show(tx, server_id, instance, began, now)
        traffic.seen(tx, self._billing, server_id, instance, now)
        return differed

    async def _missing(self, provider: Provider, server: Server, report: Report) -> None:
        """A billed server that its provider does not list."""
        try:
            there = server.provider_ref is not None and await provider.get(server.provider_ref) is not None
        except ProviderError as error:
            log.warning("%s may be missing, its provider cannot say: %s", server.id, error)
            return
        if there:
            self._shown.add(server.id)
        # What is on a lent machine is in our own tables: no token stands between us and it.
        is_known = server.host_id is not None or server.id in self._shown
        now = self._clock.now_s()
        report.missing += int(not there)
        report.doubted += int(not is_known and server.status is not Status.DESTROYING)
        grace_s = GRACE_S if is_known else UNSEEN_GRACE_S
        vanished = await self._db.write(
            lambda tx: self._note(tx, server.id, now, there=there, grace_s=grace_s)
        )
        report.vanished += int(vanished)

    def _note(self, tx: Tx, server_id: ServerId, now: int, *, there: bool, grace_s: int) -> bool:
        """Remember since when the server is missing; True when that is long enough to write it off."""
        server = servers.get_server(tx, server_id)
        if server.status in FINAL | {Status.DESTROYING} or operations.find_running(tx, server_id) is not None:
            return False
        # What was missed in the future was missed before the clock was set back.
        since = None if there else min(server.missing_since or now, now)
        if since != server.missing_since:
            noted = meters.missed(server, since)
            save(tx, server, noted, now)
            server = noted
        if since is None or now - since < grace_s:
            return False
        # Whatever its money says: what is not there does not end, and is given back.
        self._billing.settle(tx, server.wallet, now, sparing=server_id)
        endings.vanish(tx, servers.get_server(tx, server_id), since, now)
        self._billing.reschedule(tx, server.wallet, now)
        return True


def _show(tx: Tx, server_id: ServerId, instance: Instance, began: int, now: int) -> bool:
    """Cache what the inventory showed, unless it is older than what we know. True when something differed."""
    server = servers.get_server(tx, server_id)
    if server.status in FINAL | {Status.DESTROYING}:
        return False
    if tx.one(SELECT_CHANGED_SINCE, {"server_id": server_id, "since": began, "now": now}) is not None:
        return False
    seen = replace(
        server,
        status=status_of(instance.status),
        ipv4=instance.ipv4,
        ipv6=instance.ipv6,
        missing_since=None,
    )
    save(tx, server, seen, now)
    return seen != server or server.provider_type != instance.provider_type
