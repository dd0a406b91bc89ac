"""What the routes are handed: everything that was built where the app was built."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from spawn_providers.base import Provider
from spawn_schemas.ids import Entropy

from spawn.api.gate import Gate
from spawn.api.streams import Streams
from spawn.clock import Clock
from spawn.outbound.outbound import Outbound
from spawn.payments.exact import Terms
from spawn.payments.sessions import Sessions
from spawn.services.asks import Asks
from spawn.services.billing import Billing
from spawn.services.create_server import Shop
from spawn.services.hosts import Hosts
from spawn.services.operator import Operator
from spawn.settings import Settings
from spawn.store.database import Database
from spawn.store.secrets import Vault


@dataclass(frozen=True, kw_only=True)
class HostServices:
    """What lent machines are handed, and who asks them; only where they are rented out.

    `changed`: the relay may lead elsewhere.
    """

    hosts: Hosts
    asks: Asks
    vault: Vault
    entropy: Entropy
    changed: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Services:
    gate: Gate
    shop: Shop
    operator: Operator
    db: Database
    clock: Clock
    settings: Settings
    terms: Terms
    providers: Mapping[str, Provider]
    schema: str
    sessions: Sessions
    outbound: Outbound
    billing: Billing
    streams: Streams
    hosts: HostServices | None = None
