"""Puts our end of the link together: settings and the books in, something that listens out.

Invariant: only this module knows both the link and who works behind it; it is imported only where lent machines are
rented out.
"""

from contextlib import AbstractAsyncContextManager

from spawn_schemas import link
from spawn_schemas.ids import Entropy

from spawn.api.services import HostServices
from spawn.clock import Clock
from spawn.link.hub import Hub
from spawn.link.listener import Listener
from spawn.services.asks import Asks
from spawn.services.hosts import Hosts
from spawn.services.rentals import Rentals
from spawn.settings import Settings, address_of
from spawn.store.database import Database
from spawn.store.secrets import Vault


class OpenLink:
    """See `spawn.workers.Link`."""

    def __init__(self, settings: Settings, listener: Listener, services: HostServices) -> None:
        self.services = services
        self.listener = listener
        self._settings = settings

    def running(self) -> AbstractAsyncContextManager[None]:
        settings = self._settings
        return self.listener.running(address_of(settings.link_listen), address_of(settings.relay_http_listen))

    async def flush(self) -> None:
        await self.listener.hub.flush()


def open_link(
    settings: Settings, db: Database, vault: Vault, clock: Clock, entropy: Entropy, rentals: Rentals
) -> OpenLink:
    """Nothing listens before `running`."""
    hub = Hub(db, vault, clock, entropy)
    hosts = Hosts(db, clock, link_url=settings.link_base + link.LINK_PATH)
    listener = Listener(
        hub,
        hosts,
        rentals.goods.ports,
        link_url=settings.link_base,
        relay_address=settings.relay_listen,
    )
    rentals.changed = hub.tell
    asks = Asks(db, vault, clock, entropy, hub.tell)
    hub.on_ack = asks.signals.notify
    services = HostServices(hosts=hosts, asks=asks, vault=vault, entropy=entropy, changed=hub.look)
    return OpenLink(settings, listener, services)
