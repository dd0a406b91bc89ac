"""The only place that constructs: settings in, a running service out.

Invariant: everything below receives what it needs; nothing reaches for a global. A part may be handed in instead of
being built, which is how tests put a fault between the service and its world.
"""

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.di import Provide
from spawn_providers.base import Provider
from spawn_providers.simulated import SimulatedProvider
from spawn_schemas.ids import Entropy

from spawn.api import pages
from spawn.api.addresses import Proxies
from spawn.api.asking import Asking
from spawn.api.callers import Callers
from spawn.api.discovery import SERVICE_NAME, TAGS
from spawn.api.errors import EXCEPTION_HANDLERS
from spawn.api.front import Front
from spawn.api.gate import Gate
from spawn.api.limits import Limits
from spawn.api.replies import App
from spawn.api.requests import JsonRequest, answer_options, arrival_of
from spawn.api.routes import HANDLERS, ROUTES, fees
from spawn.api.services import Services
from spawn.api.stencils import Stencils
from spawn.clock import Clock, SystemClock, SystemEntropy
from spawn.desk import open_desk
from spawn.jobs.burn import Burn
from spawn.jobs.incidents import Incidents
from spawn.jobs.leader import Fenced, Leader, holder_name, leased
from spawn.jobs.operations import Operations
from spawn.jobs.prices import Prices
from spawn.jobs.settlements import Settlements
from spawn.jobs.suspense import Suspense
from spawn.jobs.sweep import Sweep
from spawn.jobs.ticker import Job, Ticker
from spawn.jobs.treasury import Treasury
from spawn.payments.challenge import Challenges
from spawn.payments.exact import Terms
from spawn.payments.sessions import Sessions
from spawn.payments.sign_in import RelyingParty, relying_party
from spawn.rails import Rail, needs_file, open_rail, require_same_chain, x402_terms
from spawn.secret_key import read_secret_key
from spawn.services.admin import Clerk
from spawn.services.billing import Billing
from spawn.services.create_server import Shop
from spawn.services.operator import Operator
from spawn.services.paid_calls import PaidCalls
from spawn.services.price_list import PriceList
from spawn.services.reconcile import Reconciler
from spawn.services.signals import Signals
from spawn.settings import Settings
from spawn.store import leases, operations, reservations
from spawn.store.database import Database
from spawn.store.migrate import head_version, parse_database_url, require_current
from spawn.store.secrets import Vault
from spawn.store.sqlite import SqliteDatabase

log = logging.getLogger(__name__)

EXPOSED_HEADERS: Final = (
    "PAYMENT-REQUIRED",
    "PAYMENT-RESPONSE",
    "X-PAYMENT-RESPONSE",
    "Spawn-Fee",
    "Spawn-Balance",
    "Spawn-Runway",
    "Idempotent-Replayed",
    "Retry-After",
    "X-Request-Id",
)
"""What a browser's script may read of an answer besides its body."""


@dataclass(kw_only=True)
class Parts:
    """What touches the world. `opened` closes in reverse order at the end."""

    db: Database
    rail: Rail
    providers: Mapping[str, Provider]
    clock: Clock
    entropy: Entropy
    wall: Clock | None = None
    """What proofs and challenges go by, where a developer lets the clock of the books run ahead of it."""
    opened: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def proofs_clock(self) -> Clock:
        return self.wall or self.clock

    async def close(self) -> None:
        await self.opened.aclose()


async def open_parts(
    settings: Settings,
    *,
    clock: Clock | None = None,
    wall: Clock | None = None,
    entropy: Entropy | None = None,
) -> Parts:
    """Open the database, the chain and the providers that the settings name.

    Raises StoreError (SchemaMismatch, DatabaseBusy, UnsuitableFilesystem and others), each with a message that says
    what to do. What was opened before is closed again.
    """
    clock = clock or SystemClock()
    require_current(settings.database_url)
    async with AsyncExitStack() as opened:
        db = await SqliteDatabase.open(parse_database_url(settings.database_url), on_fatal=_die)
        opened.push_async_callback(db.close)
        entropy = entropy or SystemEntropy()
        rail = open_rail(settings, db, wall or clock, entropy, opened)
        cloud = SimulatedProvider(
            Path(settings.simulated_path),
            now_ms=clock.now_ms,
            seed=settings.simulated_seed,
            speed=settings.simulated_speed,
        )
        opened.push_async_callback(cloud.aclose)
        with needs_file(settings.simulated_path, "SPAWN_SIMULATED_PATH"):
            await cloud.catalog()  # opens its file, which is otherwise left to the first call
        return Parts(
            db=db,
            rail=rail,
            providers={cloud.name: cloud},
            clock=clock,
            wall=wall,
            entropy=entropy,
            opened=opened.pop_all(),
        )


def _die(error: BaseException) -> None:
    """A commit that failed leaves us not knowing what is on disk: stop at once, and let the next start read it."""
    log.critical("the database failed; stopping so that the next start can recover", exc_info=error)
    os._exit(1)


@dataclass(frozen=True, kw_only=True)
class Service:
    """The built service: an ASGI app, and the jobs that tests tick by hand."""

    app: Front
    framework: Litestar
    services: Services
    paid_calls: PaidCalls
    operator: Operator
    reconciler: Reconciler
    leader: Leader
    jobs: Mapping[str, Job]


async def recover(parts: Parts) -> None:
    """Free the claims of a process that died: with an exclusive database nobody else can hold one."""
    if parts.db.exclusive:
        await parts.db.write(lambda tx: tx.execute(operations.RELEASE_CLAIMS, {}))
        await parts.db.write(lambda tx: tx.execute(reservations.RELEASE_CLAIMS, {}))
        await parts.db.write(lambda tx: tx.execute(leases.RELEASE_LEASES, {}))


async def build(settings: Settings, parts: Parts, *, ticking: bool = True) -> Service:
    """Wire the service. With `ticking` the jobs run by themselves while the app is up."""
    secret_key = read_secret_key(settings)
    vault, sessions = Vault(secret_key, parts.entropy), Sessions(secret_key)
    await require_same_chain(parts.db, parts.rail)
    await parts.db.write(lambda tx: vault.prove(tx, parts.clock.now_s()))
    limits = Limits(settings, parts.clock)
    signals = Signals()
    billing = Billing(parts.entropy, settings.warning_policy)
    operator = Operator(parts.db, parts.providers, parts.clock, parts.entropy, vault, signals, billing)
    reconciler = Reconciler(parts.db, parts.providers, parts.clock, billing)
    paid_calls = _paid_calls(settings, parts, operator, signals, limits, billing)
    our_terms = x402_terms(settings)
    party = relying_party(
        public_url=settings.public_url, authority=settings.authority, chain_id=settings.chain_id
    )
    asking = _asking(settings, our_terms, party, parts)
    name, provider = next(iter(parts.providers.items()))
    prices = PriceList(await provider.catalog(), settings)
    await prices.refresh(parts.db)
    services = Services(
        gate=Gate(paid_calls, settings, our_terms, asking, limits),
        shop=Shop(
            prices=prices,
            provider=name,
            entropy=parts.entropy,
            vault=vault,
            billing=billing,
            eur_usdc=settings.eur_price_usdc,
        ),
        operator=operator,
        db=parts.db,
        clock=parts.clock,
        settings=settings,
        terms=our_terms,
        providers=parts.providers,
        schema=head_version(),
        sessions=sessions,
        billing=billing,
    )
    leader = Leader(parts.db, parts.clock, holder_name(parts.entropy))
    jobs = _jobs(settings, parts, operator, leader, billing, prices)
    ticker = Ticker(tuple(jobs.values()), parts.clock) if ticking else None
    clerk = Clerk(parts.db, prices, parts.clock, parts.entropy)
    framework = litestar(settings, services, parts, operator, leader, ticker, clerk)
    app = Front(
        cast("App", framework),
        ROUTES,
        Callers(
            our_terms,
            party,
            sessions,
            parts.proofs_clock,
            parts.entropy,
            parts.rail.wallets,
            paid_calls.knows,
        ),
        services,
        limits,
        Proxies(settings.trusted_networks),
        Stencils(parts.proofs_clock),
        parts.entropy,
        exposed=", ".join(EXPOSED_HEADERS).encode(),
    )
    return Service(
        app=app,
        framework=framework,
        services=services,
        paid_calls=paid_calls,
        operator=operator,
        reconciler=reconciler,
        leader=leader,
        jobs=jobs,
    )


def _paid_calls(
    settings: Settings,
    parts: Parts,
    operator: Operator,
    signals: Signals,
    limits: Limits,
    billing: Billing,
) -> PaidCalls:
    return PaidCalls(
        parts.db,
        parts.rail.facilitator,
        operator,
        signals,
        parts.clock,
        parts.entropy,
        billing,
        wall=parts.proofs_clock,
        first_answer_s=settings.first_answer_s,
        in_flight_wait_s=settings.in_flight_wait_s,
        daily_cap_usdc=settings.deposit_daily_cap_usdc,
        turns=limits,
    )


def _asking(settings: Settings, our_terms: Terms, party: RelyingParty, parts: Parts) -> Asking:
    return Asking(
        Challenges(our_terms, service_name=SERVICE_NAME, tags=TAGS),
        our_terms,
        party,
        [route for route in ROUTES if route.is_priced],
        parts.proofs_clock,
        parts.entropy,
        minimum_usdc=settings.minimum_charge_usdc,
    )


def _jobs(
    settings: Settings,
    parts: Parts,
    operator: Operator,
    leader: Leader,
    billing: Billing,
    prices: PriceList,
) -> dict[str, Job]:
    """Each writes through the fence; the Operator's own claims are its fence (spawn.jobs.operations)."""
    db = Fenced(parts.db, leader)
    jobs = (
        Job(name="operations", every_s=settings.tick_s, tick=Operations(db, operator).tick),
        Job(name="settlements", every_s=10, tick=Settlements(db, parts.rail.facilitator).tick),
        Job(name="burn", every_s=settings.burn_every_s, tick=Burn(db, billing).tick),
        Job(name="prices", every_s=10, tick=Prices(db, prices).tick),
        Job(
            name="reconcile",
            every_s=settings.reconcile_every_s,
            tick=Reconciler(db, parts.providers, parts.clock, billing).tick,
        ),
        Job(name="incidents", every_s=60, tick=Incidents(db).tick),
        Job(name="sweep", every_s=60, tick=Sweep(db).tick),
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
    return {job.name: leased(job, leader) for job in jobs}


def litestar(
    settings: Settings,
    services: Services,
    parts: Parts,
    operator: Operator,
    leader: Leader,
    ticker: Ticker | None,
    clerk: Clerk,
) -> Litestar:
    """The HTTP app around the services."""

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        await recover(parts)
        if parts.rail.relayer is not None:
            await parts.rail.relayer.start()
        if ticker is not None:
            ticker.start()
        try:
            async with open_desk(parse_database_url(settings.database_url), clerk.carry_out):
                yield
        finally:
            if ticker is not None:
                ticker.stop()
            await operator.stop()
            if parts.rail.relayer is not None:
                await parts.rail.relayer.stop()
            await leader.resign()

    app = Litestar(
        route_handlers=[*HANDLERS, *pages.HANDLERS],
        dependencies={
            "services": Provide(lambda: services, sync_to_thread=False),
            "arrival": Provide(arrival_of, sync_to_thread=False),
        },
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=[lifespan],
        cors_config=cors(),
        openapi_config=None,  # the framework would serve pages that fetch scripts from elsewhere
        request_class=JsonRequest,
        before_request=answer_options,
        request_max_body_size=settings.body_max_bytes,
        logging_config=None,
        debug=False,
    )
    app.state.fees = fees()
    return app


def cors() -> CORSConfig:
    """Browsers may call us from anywhere, because a call proves itself; and they may read the payment headers."""
    return CORSConfig(
        allow_origins=["*"],
        allow_methods=["GET", "POST", "PATCH", "DELETE", "OPTIONS"],
        allow_headers=["*"],
        expose_headers=list(EXPOSED_HEADERS),
    )
