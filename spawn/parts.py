"""What touches the world: the database, the chain, the providers, the way out to receivers, time and randomness.

Invariant: what is opened here is closed in reverse order, also when a later part refuses. A part may be handed in
instead of being opened, which is how tests put a fault between the service and its world.
"""

import logging
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from spawn_providers.base import Provider, ProviderError
from spawn_providers.simulated import SimulatedProvider
from spawn_schemas.ids import Entropy

from spawn.clock import Clock, SystemClock, SystemEntropy
from spawn.outbound.exchange import Exchange
from spawn.outbound.outbound import Outbound
from spawn.outbound.resolver import SystemResolver
from spawn.rails import Rail, needs_file, open_rail
from spawn.secret_key import read_secret_key
from spawn.setting_forms import listed
from spawn.settings import Settings
from spawn.store import leases, operations, price_sheets, reservations
from spawn.store.database import Database, StoreError
from spawn.store.migrate import require_current
from spawn.store.place import Options
from spawn.store.places import place_of
from spawn.store.secrets import Vault

if TYPE_CHECKING:
    from spawn.services.rentals import Rentals

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Parts:
    """What touches the world. `opened` closes in reverse order at the end."""

    db: Database
    rail: Rail
    providers: Mapping[str, Provider]
    outbound: Outbound
    clock: Clock
    entropy: Entropy
    exchange: Exchange | None = None
    """Who says what a euro costs; None where a setting does."""
    hosts: "Rentals | None" = None
    """What runs on lent machines, where those are rented out."""
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
        options = Options(connections=settings.database_connections, retries=settings.database_retries)
        db = await place_of(settings.database_url).open(options, _die)
        opened.push_async_callback(db.close)
        entropy = entropy or SystemEntropy()
        rail = open_rail(settings, db, wall or clock, entropy, opened)
        sheets = await db.read(price_sheets.SELECT_SHEET, {"provider": settings.providers})
        rentals = _open_rentals(settings, db, clock, entropy)
        if rentals is None:
            cloud = await open_provider(settings, clock, opened, is_sold=bool(sheets))
        else:
            cloud = await _open_community(rentals)
        resolver = SystemResolver()
        opened.callback(resolver.close)
        return Parts(
            db=db,
            rail=rail,
            outbound=Outbound(settings.outbound_rules, resolver),
            providers={cloud.name: cloud},
            exchange=open_exchange(settings, clock),
            hosts=rentals,
            clock=clock,
            wall=wall,
            entropy=entropy,
            opened=opened.pop_all(),
        )


def open_exchange(settings: Settings, clock: Clock) -> Exchange | None:
    """The euro's price, where it is read. It keeps no connection: it is asked once a day."""
    if not settings.eur_source:
        return None
    return Exchange(settings.eur_source, near_usdc=settings.eur_price_usdc, now_s=clock.now_s)


async def open_provider(
    settings: Settings, clock: Clock, opened: AsyncExitStack, *, is_sold: bool = False
) -> Provider:
    """The provider that the settings name; `is_sold`, what it sells is known, and it may be out of reach.

    What only that one needs is imported only for it.
    """
    if settings.providers == "hetzner":
        from spawn_providers.hetzner.orders import Surroundings  # noqa: PLC0415 - brings an HTTP client of its own
        from spawn_providers.hetzner.provider import HetznerProvider  # noqa: PLC0415 - likewise

        hetzner = HetznerProvider(
            settings.hetzner_token,
            endpoint=settings.hetzner_endpoint,
            now_s=clock.now_s,
            surroundings=Surroundings(
                locations=listed(settings.hetzner_location),
                network_id=settings.hetzner_network_id or None,
                firewall_id=settings.hetzner_firewall_id or None,
                ssh_key_names=listed(settings.hetzner_ssh_key_names),
            ),
        )
        opened.push_async_callback(hetzner.aclose)
        await _require_offers(hetzner, is_sold=is_sold)
        return hetzner
    cloud = SimulatedProvider(
        Path(settings.simulated_path),
        now_ms=clock.now_ms,
        seed=settings.simulated_seed,
        speed=settings.simulated_speed,
    )
    opened.push_async_callback(cloud.aclose)
    with needs_file(settings.simulated_path, "SPAWN_SIMULATED_PATH"):
        await cloud.catalog()  # opens its file, which is otherwise left to the first call
    return cloud


def _open_rentals(settings: Settings, db: Database, clock: Clock, entropy: Entropy) -> "Rentals | None":
    """What runs on lent machines, if those are what is sold: rows of our own database."""
    if settings.providers != "community":
        return None
    from spawn.services.community import goods_of  # noqa: PLC0415 - only for whom it is about
    from spawn.services.rentals import Rentals  # noqa: PLC0415 - likewise

    return Rentals(db, Vault(read_secret_key(settings), entropy), clock, entropy, goods_of(settings))


async def _open_community(rentals: "Rentals") -> Provider:
    """Raises StoreError where there is no such host."""
    from spawn_providers.community.provider import CommunityProvider  # noqa: PLC0415 - only for whom it is about

    await rentals.catalog()
    return CommunityProvider(rentals)


async def _require_offers(hetzner: Provider, *, is_sold: bool) -> None:
    """A token that is not accepted is found out at the first start, and not by the first customer.

    Later ones go on without Hetzner: whoever rents may look, pay in and be warned meanwhile, and time is metered.
    """
    from spawn_providers.hetzner.errors import TokenRefused  # noqa: PLC0415 - only for whom it is about

    try:
        catalog = await hetzner.catalog()
    except ProviderError as error:
        why = str(error).rstrip(".")
        if isinstance(error, TokenRefused):
            said = f"Hetzner refuses SPAWN_HETZNER_TOKEN: {why}. Set one that may read and write, and start again."
        else:
            said = f"Hetzner's lists cannot be read: {why}. Start again when they can be."
        if not is_sold:
            raise StoreError(said) from error
        log.warning("%s What was last read is sold until then.", said)
        return
    if not catalog.offers:
        raise StoreError(
            "Hetzner sells nothing in SPAWN_HETZNER_LOCATION: name its locations, such as nbg1,hel1."
        )


def _die(error: BaseException) -> None:
    """A commit that failed leaves us not knowing what is on disk: stop at once, and let the next start read it."""
    log.critical("the database failed; stopping so that the next start can recover", exc_info=error)
    os._exit(1)


async def recover(parts: Parts) -> None:
    """Free the claims of a process that died: with an exclusive database nobody else can hold one."""
    if parts.db.exclusive:
        await parts.db.write(lambda tx: tx.execute(operations.RELEASE_CLAIMS, {}))
        await parts.db.write(lambda tx: tx.execute(reservations.RELEASE_CLAIMS, {}))
        await parts.db.write(lambda tx: tx.execute(leases.RELEASE_LEASES, {}))
