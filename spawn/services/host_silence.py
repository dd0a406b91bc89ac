"""What it does to rentals' money that their host is silent or keeps them stopped, and what becomes of it afterwards.

Invariant: nothing is destroyed by it. While a host is offline nobody pays for what runs there, back to the second in
which it was last heard, nor for what it has stopped of its own accord, from when it says so. All that is done follows
from what the books say now: a tick that was missed, doubled or cut short changes only when it happens.
"""

import logging
from typing import Final

from msgspec.structs import replace
from spawn_ledger.tx import Tx
from spawn_schemas.events import EventType
from spawn_schemas.ids import RentalId, ServerId

from spawn.domain.hosts import SILENT, Host, HostState, judge
from spawn.domain.rentals import CommandState, Rental, is_withheld
from spawn.domain.rentals import status_of as instance_status
from spawn.domain.servers import FINAL, Status, status_of
from spawn.services import meters
from spawn.services.billing import Billing
from spawn.services.changes import save, tell
from spawn.store import hosts, rentals, servers
from spawn.store.database import Database

log = logging.getLogger(__name__)

_IS_WITHHELD: Final = """(
  rental.desired = 'running' AND (
    COALESCE(rental.reported, '') = 'failed'
    OR (COALESCE(rental.reported, '') = 'stopped' AND COALESCE(rental.ended_by, 'owner') IN ('owner', 'lease'))
  )
)"""
"""`spawn.domain.rentals.is_withheld`."""
SELECT_TO_PAUSE: Final = f"""
SELECT rental.id FROM rental JOIN host ON host.id = rental.host_id JOIN server ON server.id = rental.id
WHERE rental.gone_at IS NULL AND server.ended_at IS NULL AND server.charged_until IS NOT NULL
  AND (host.state IN ('offline', 'refundable', 'hidden') OR {_IS_WITHHELD})
ORDER BY rental.id LIMIT 1000
"""  # noqa: S608 - a constant of ours
SELECT_TO_RESUME: Final = f"""
SELECT rental.id FROM rental JOIN host ON host.id = rental.host_id
WHERE rental.gone_at IS NULL AND rental.paused_at IS NOT NULL AND host.state IN ('online', 'suspect', 'warned')
  AND NOT {_IS_WITHHELD}
ORDER BY rental.id LIMIT 1000
"""  # noqa: S608 - a constant of ours

SELECT_OUTAGE: Final = """
SELECT began_at FROM host_outage WHERE host_id = :host_id AND ended_at IS NULL ORDER BY began_at LIMIT 1
"""


class Silence:
    """One tick looks at every host; `listening_since` is since when we would have heard them."""

    def __init__(self, db: Database, billing: Billing, *, listening_since: int) -> None:
        self._db = db
        self._billing = billing
        self._listening_since = listening_since
        self._blames_us = False

    async def tick(self, now: int) -> None:
        """Judge every host, and do about its rentals what follows from that."""
        known = [host for host in await self._hosts() if host.state is not HostState.REVOKED]
        verdict = judge(known, now, listening_since=self._listening_since)
        if verdict.blames_us and not self._blames_us:
            log.error(
                "more than a fifth of all hosts fell silent together: that is taken to be our own network's fault, "
                "and none of them is offline within the next hour"
            )
        self._blames_us = verdict.blames_us
        # First what a tick that was cut short has left: a host that is heard again was offline until now.
        await self._pause_all(now)
        seen = {host.id: host for host in known}
        for host_id, state in verdict.moves.items():
            await self._move(seen[host_id], state, now)
        await self._pause_all(now)
        for row in await self._db.read(SELECT_TO_RESUME):
            await self._resume(RentalId(row["id"]), now)

    async def _hosts(self) -> list[Host]:
        found: list[Host] = []
        after = ""
        while page := await self._db.read(hosts.SELECT_HOSTS, {"after": after, "limit": 1000}):
            found.extend(hosts.host_from(row) for row in page)
            after = found[-1].id
        return found

    async def _move(self, seen: Host, state: HostState, now: int) -> None:
        moved = await self._db.write(lambda tx: _moved(tx, seen, state, now))
        if moved and (state in SILENT) != (seen.state in SILENT):
            log.warning("host %s (%s) is %s, after %s", seen.name, seen.id, state.value, seen.state.value)

    async def _pause_all(self, now: int) -> None:
        for row in await self._db.read(SELECT_TO_PAUSE):
            await self._pause(RentalId(row["id"]), now)

    async def _pause(self, rental_id: RentalId, now: int) -> None:
        await self._db.write(lambda tx: paused(tx, self._billing, rental_id, now))

    async def _resume(self, rental_id: RentalId, now: int) -> None:
        await self._db.write(lambda tx: resumed(tx, self._billing, rental_id, now))


def _moved(tx: Tx, seen: Host, state: HostState, now: int) -> bool:
    """Whether the host is in that state from now on: nobody heard it meanwhile, nor did anything else to it."""
    host = hosts.find(tx, seen.id)
    if host is None or (host.state, host.last_seen) != (seen.state, seen.last_seen):
        return False
    hosts.save(tx, host, replace(host, state=state))
    if state in SILENT and host.state not in SILENT:
        tx.execute(hosts.BEGIN_OUTAGE, {"host_id": host.id, "began_at": host.last_seen})
    if state not in SILENT and host.state in SILENT:
        tx.execute(hosts.END_OUTAGES, {"host_id": host.id, "now": now})
    return True


def paused(tx: Tx, billing: Billing, rental_id: RentalId, now: int) -> None:
    """Nobody pays for this rental since its host was last heard, or said that it stopped it; its owner is told."""
    rental, server = rentals.find(tx, rental_id), servers.find_server(tx, ServerId(rental_id))
    if (
        rental is None
        or server is None
        or server.status in FINAL | {Status.DESTROYING}
        or server.meter is None
    ):
        return
    since = _kept_since(tx, rental, now)
    if since is None:
        return
    billing.settle(tx, server.wallet, now, sparing=server.id)
    server = servers.get_server(tx, server.id)
    stopped = replace(meters.paused(tx, server, since, now), status=Status.UNKNOWN)
    save(tx, server, stopped, now)
    tell(tx, EventType.SERVER_UNREACHABLE, stopped, now, previous=server.status)
    rentals.save(tx, rental, replace(rental, paused_at=since))
    billing.reschedule(tx, server.wallet, now)


def _kept_since(tx: Tx, rental: Rental, now: int) -> int | None:
    """Since when its tenant has not had it; None where it has: its host may have been heard since we looked."""
    host, start = hosts.find(tx, rental.host_id), rentals.find_command(tx, rental.start_command)
    if host is not None and host.state in SILENT:
        outage = tx.one(SELECT_OUTAGE, {"host_id": host.id})
        return min(now, host.last_seen or now, now if outage is None else outage["began_at"])
    began = start is not None and start.state is CommandState.SUCCEEDED
    # What never began is given back as a whole by whoever ordered it.
    return min(now, rental.reported_at or now) if began and is_withheld(rental) else None


def resumed(tx: Tx, billing: Billing, rental_id: RentalId, now: int) -> None:
    """Its host is heard again, and does not keep it stopped: from now on its owner pays as before."""
    rental, server = rentals.find(tx, rental_id), servers.find_server(tx, ServerId(rental_id))
    host = None if rental is None else hosts.find(tx, rental.host_id)
    if rental is None or rental.paused_at is None or host is None:
        return
    if host.state in SILENT or is_withheld(rental):
        return
    rentals.save(tx, rental, replace(rental, paused_at=None))
    if server is None or server.status in FINAL | {Status.DESTROYING} or not server.frozen:
        return
    shown = status_of(instance_status(rental, host.state, resuming=False))
    back = replace(meters.resumed(server, now), status=shown)
    save(tx, server, back, now)
    billing.reschedule(tx, server.wallet, now)
