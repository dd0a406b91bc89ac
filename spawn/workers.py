"""What goes on by itself while the app is up: jobs, operations, deliveries, the relayer, the operator's desk.

Invariant: it starts after what a dead process left behind was freed, and stops before anything it needs is closed.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from spawn.api.services import HostServices
from spawn.desk import open_desk
from spawn.jobs.burn import Burn
from spawn.jobs.deliveries import Deliveries as Sending
from spawn.jobs.hosts import Hosts
from spawn.jobs.incidents import Incidents
from spawn.jobs.operations import Operations
from spawn.jobs.prices import Listing, Prices, Refreshing
from spawn.jobs.settlements import Settlements
from spawn.jobs.suspense import Suspense
from spawn.jobs.sweep import Sweep
from spawn.jobs.ticker import Job, Ticker, leased
from spawn.jobs.treasury import Treasury
from spawn.parts import Parts, recover
from spawn.services.admin import Clerk
from spawn.services.billing import Billing
from spawn.services.deliveries import Deliveries
from spawn.services.leader import TICKER, Fenced, Leader, holder_name
from spawn.services.operator import Operator
from spawn.services.price_list import PriceList
from spawn.services.price_refresh import Refresher
from spawn.services.reconcile import Reconciler
from spawn.settings import Settings
from spawn.store.places import place_of
from spawn.store.secrets import Vault


class Link(Protocol):
    """Our end of the link to lent machines, where they are rented out."""

    @property
    def services(self) -> HostServices:
        """What the API is handed of it."""
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """It listens. Raises StoreError where it cannot."""
        ...

    async def flush(self) -> None:
        """Write down when hosts were last heard."""
        ...


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The jobs, which tests tick by hand, and whom they set to work."""

    operator: Operator
    deliveries: Deliveries
    reconciler: Reconciler
    leader: Leader
    clerk: Clerk
    jobs: Mapping[str, Job]
    link: Link | None = None


def hire(
    settings: Settings,
    parts: Parts,
    operator: Operator,
    vault: Vault,
    billing: Billing,
    prices: PriceList,
    refresher: Refresher | None,
    link: Link | None = None,
) -> Workers:
    """Build them; nobody works before `working`."""
    office = TICKER.lasting(settings.lease_s)
    leader = Leader(parts.db, parts.clock, holder_name(parts.entropy), office)
    deliveries = Deliveries(
        parts.db, parts.outbound, vault, parts.clock, parts.entropy, wall=parts.proofs_clock
    )
    return Workers(
        operator=operator,
        deliveries=deliveries,
        reconciler=Reconciler(parts.db, parts.providers, parts.clock, billing),
        leader=leader,
        clerk=Clerk(parts.db, prices, parts.clock, parts.entropy, refresher),
        jobs=_jobs(settings, parts, operator, deliveries, leader, billing, prices, refresher, link),
        link=link,
    )


@asynccontextmanager
async def working(
    settings: Settings, parts: Parts, workers: Workers, *, ticking: bool
) -> AsyncIterator[None]:
    """Everybody at work, the jobs only when `ticking`; at the end they stop in order."""
    ticker = Ticker(tuple(workers.jobs.values()), parts.clock) if ticking else None
    await recover(parts)
    if parts.rail.relayer is not None:
        await parts.rail.relayer.start()
    if ticker is not None:
        ticker.start()
    try:
        async with _desk(settings, parts, workers), _linked(workers):
            yield
    finally:
        if ticker is not None:
            ticker.stop()
        await workers.deliveries.stop()
        await workers.operator.stop()
        if parts.rail.relayer is not None:
            await parts.rail.relayer.stop()
        await workers.leader.resign()


def _desk(settings: Settings, parts: Parts, workers: Workers) -> AbstractAsyncContextManager[None]:
    """Orders of the operator come by a socket, unless the command line may write them down itself."""
    if not parts.db.exclusive:
        return nullcontext()
    file = place_of(settings.database_url).file("only the file of one process has a desk beside it.")
    return open_desk(file, workers.clerk.carry_out)


def _linked(workers: Workers) -> AbstractAsyncContextManager[None]:
    return nullcontext() if workers.link is None else workers.link.running()


def _jobs(
    settings: Settings,
    parts: Parts,
    operator: Operator,
    deliveries: Deliveries,
    leader: Leader,
    billing: Billing,
    prices: PriceList,
    refresher: Refresher | None,
    link: Link | None,
) -> dict[str, Job]:
    """Each writes through the fence; the Operator's own claims are its fence (spawn.jobs.operations)."""
    db = Fenced(parts.db, leader)
    jobs: tuple[Job, ...] = (
        Job(name="operations", every_s=settings.tick_s, tick=Operations(db, operator).tick),
        Job(name="settlements", every_s=10, tick=Settlements(db, parts.rail.facilitator).tick),
        Job(name="burn", every_s=settings.burn_every_s, tick=Burn(db, billing).tick),
        Job(name="deliveries", every_s=settings.tick_s, tick=Sending(db, deliveries).tick),
        Job(name="prices", every_s=10, tick=Prices(db).tick),
        Job(
            name="reconcile",
            every_s=settings.reconcile_every_s,
            tick=Reconciler(db, parts.providers, parts.clock, billing).tick,
        ),
        Job(name="incidents", every_s=60, tick=Incidents(db).tick),
        Job(name="sweep", every_s=60, tick=Sweep(db, events_keep_s=settings.events_keep_s).tick),
        Job(
            name="suspense",
            every_s=settings.suspense_every_s,
            tick=Suspense(db, parts.rail.arrivals).tick,
        ),
        Job(
            name="treasury",
            # The last comparison is in a table: a service that restarts every day compares all the same.
            every_s=min(settings.treasury_every_s, 60),
            tick=Treasury(
                db,
                parts.rail.holdings,
                settings.pay_to,
                every_s=settings.treasury_every_s,
                facilitators=parts.rail.standings,
            ).tick,
        ),
    )
    if refresher is not None:
        jobs += (Job(name="catalog", every_s=60, tick=Refreshing(db, refresher).tick),)
    if link is not None:
        hosts = Hosts(db, billing, link.flush, listening_since=parts.clock.now_s())
        jobs += (Job(name="hosts", every_s=10, tick=hosts.tick),)
    # Everybody's own: it writes nothing.
    listing = Job(name="listing", every_s=10, tick=Listing(parts.db, prices).tick)
    return {job.name: leased(job, leader) for job in jobs} | {listing.name: listing}
