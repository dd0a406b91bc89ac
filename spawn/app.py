"""Where the service is put together: settings and parts in, a running service out.

Invariant: everything below receives what it needs; nothing reaches for a global. Only this module, `parts` and
`workers` construct.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.di import Provide
from spawn_providers.base import Provider

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
from spawn.api.streams import Streams
from spawn.jobs.ticker import Job
from spawn.parts import Parts
from spawn.payments.challenge import Challenges
from spawn.payments.exact import Terms
from spawn.payments.sessions import Sessions
from spawn.payments.sign_in import RelyingParty, relying_party
from spawn.rails import require_same_chain, x402_terms
from spawn.secret_key import read_secret_key
from spawn.services.billing import Billing
from spawn.services.boots import Boots
from spawn.services.create_server import Shop
from spawn.services.operator import Operator
from spawn.services.paid_calls import PaidCalls
from spawn.services.price_list import PriceList
from spawn.services.price_refresh import Refresher
from spawn.services.signals import Signals
from spawn.settings import Settings
from spawn.store.migrate import head_version
from spawn.store.secrets import Vault
from spawn.workers import Link, Workers, hire, working

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


@dataclass(frozen=True, kw_only=True)
class Service:
    """The built service: an ASGI app, and those who work behind it."""

    app: Front
    framework: Litestar
    services: Services
    paid_calls: PaidCalls
    workers: Workers

    @property
    def jobs(self) -> Mapping[str, Job]:
        return self.workers.jobs

    @property
    def operator(self) -> Operator:
        return self.workers.operator


async def build(settings: Settings, parts: Parts, *, ticking: bool = True) -> Service:
    """Wire the service. With `ticking` the jobs run by themselves while the app is up."""
    secret_key = read_secret_key(settings)
    vault = Vault(secret_key, parts.entropy)
    await require_same_chain(parts.db, parts.rail)
    await parts.db.write(lambda tx: vault.prove(tx, parts.clock.now_s()))
    name, provider = next(iter(parts.providers.items()))
    prices = await PriceList.open(provider, settings, parts.db)
    billing = Billing(parts.entropy, settings.warning_policy)
    room_bytes = provider.capabilities.user_data_bytes
    boots = Boots(
        vault,
        parts.entropy,
        url=settings.public_url,
        room_bytes=room_bytes,
        host_key=provider.capabilities.host_key,
    )
    shop = Shop(
        prices=prices,
        provider=name,
        entropy=parts.entropy,
        vault=vault,
        billing=billing,
        boots=boots,
        root_password=provider.capabilities.root_password,
        goods=None if parts.hosts is None else parts.hosts.goods,
    )
    link = _link(settings, parts, vault)
    signals, limits = Signals(), Limits(settings, parts.clock)
    operator = Operator(parts.db, parts.providers, parts.clock, parts.entropy, vault, signals, billing, boots)
    refresher = _refresher(settings, parts, provider, prices)
    workers = hire(settings, parts, operator, vault, billing, prices, refresher, link)
    paid_calls = _paid_calls(settings, parts, operator, signals, limits, billing)
    party = relying_party(
        public_url=settings.public_url, authority=settings.authority, chain_id=settings.chain_id
    )
    sessions = Sessions(secret_key)
    services = _services(settings, parts, paid_calls, party, limits, operator, shop, sessions, link)
    framework = litestar(settings, services, partial(working, settings, parts, workers, ticking=ticking))
    return Service(
        app=_front(settings, parts, framework, services, party, limits, paid_calls),
        framework=framework,
        services=services,
        paid_calls=paid_calls,
        workers=workers,
    )


def _refresher(settings: Settings, parts: Parts, provider: Provider, prices: PriceList) -> Refresher | None:
    """Who reads the provider's lists again. The simulated one has what this version comes with, a host its price."""
    if settings.providers != "hetzner":
        return None
    return Refresher(provider, settings.providers, prices, parts.exchange, parts.clock, parts.entropy)


def _services(
    settings: Settings,
    parts: Parts,
    paid_calls: PaidCalls,
    party: RelyingParty,
    limits: Limits,
    operator: Operator,
    shop: Shop,
    sessions: Sessions,
    link: Link | None,
) -> Services:
    our_terms = x402_terms(settings)
    return Services(
        gate=Gate(paid_calls, settings, our_terms, _asking(settings, our_terms, party, parts), limits),
        shop=shop,
        operator=operator,
        db=parts.db,
        clock=parts.clock,
        settings=settings,
        terms=our_terms,
        providers=parts.providers,
        schema=head_version(),
        sessions=sessions,
        streams=Streams.of(settings, parts.db),
        outbound=parts.outbound,
        billing=shop.billing,
        hosts=None if link is None else link.services,
    )


def _link(settings: Settings, parts: Parts, vault: Vault) -> Link | None:
    """Our end of the link to lent machines; its library is imported only where they are rented out."""
    if parts.hosts is None:
        return None
    from spawn.linking import open_link  # noqa: PLC0415 - brings a WebSocket library

    return open_link(settings, parts.db, vault, parts.clock, parts.entropy, parts.hosts)


def _front(
    settings: Settings,
    parts: Parts,
    framework: Litestar,
    services: Services,
    party: RelyingParty,
    limits: Limits,
    paid_calls: PaidCalls,
) -> Front:
    clock, entropy = parts.proofs_clock, parts.entropy
    callers = Callers(
        services.terms, party, services.sessions, clock, entropy, parts.rail.wallets, paid_calls.knows
    )
    return Front(
        cast("App", framework),
        ROUTES,
        callers,
        services,
        limits,
        Proxies(settings.trusted_networks),
        Stencils(clock),
        entropy,
        exposed=", ".join(EXPOSED_HEADERS).encode(),
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


def litestar(
    settings: Settings, services: Services, lifespan: Callable[[], AbstractAsyncContextManager[None]]
) -> Litestar:
    """The HTTP app around the services; `lifespan` is what goes on while it is up."""
    app = Litestar(
        route_handlers=[*HANDLERS, *pages.HANDLERS],
        dependencies={
            "services": Provide(lambda: services, sync_to_thread=False),
            "arrival": Provide(arrival_of, sync_to_thread=False),
        },
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=[lambda _: lifespan()],
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
