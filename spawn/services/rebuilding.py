"""The database is gone, and there is no backup: what the machines' labels say is in the books again.

Invariant: each machine that carries our label and that the books never had is its wallet's server afterwards, or is
told of with what to do; none is destroyed. What the wallets had paid in, nobody knows: the servers are frozen until an
operator has set the balances and starts their meters.
"""

from collections.abc import Mapping

import msgspec
from spawn_ledger.tx import Tx
from spawn_providers.base import Instance, InstanceStatus, Provider, ProviderError
from spawn_schemas.ids import Address, ServerId

from spawn.services import adoption
from spawn.services.price_list import PriceList
from spawn.settings import Settings
from spawn.store import servers
from spawn.store.database import Database


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that is a frozen server in the books again, ordered at `since` (unix seconds)."""

    server: ServerId
    wallet: Address
    name: str
    type: str
    since: int


class Report(msgspec.Struct, kw_only=True):
    """Whose servers are back; `known` were there already. Each of `undecided` is a sentence that says what to do.

    `notes` are for whoever starts their meters.
    """

    rebuilt: list[Rebuilt] = msgspec.field(default_factory=list)
    known: int = 0
    notes: list[str] = msgspec.field(default_factory=list)
    undecided: list[str] = msgspec.field(default_factory=list)


class Rebuilding:
    """One run. It may be repeated: what is in the books is left as it is."""

    def __init__(self, db: Database, providers: Mapping[str, Provider], settings: Settings) -> None:
        self._db = db
        self._providers = providers
        self._settings = settings

    async def run(self, now: int) -> Report:
        """Write down what is missing. `now` is unix time."""
        report = Report()
        for name, provider in self._providers.items():
            try:
                # All of it, before the first is written down: a list that breaks off is no inventory.
                inventory = [instance async for instance in provider.list_owned()]
                prices = await PriceList.read(await provider.catalog(), self._settings, self._db)
            except ProviderError as error:
                report.undecided.append(
                    f"{name} does not say which machines there are ({error}): repeat this when it does."
                )
                continue
            for instance in inventory:
                await self._rebuild(name, instance, prices, now, report)
        return report

    async def _rebuild(
        self, provider: str, instance: Instance, prices: PriceList, now: int, report: Report
    ) -> None:
        if instance.status is InstanceStatus.DELETING:
            return
        if instance.key is not None and await self._db.read(servers.SELECT_SERVER, {"id": instance.key}):
            report.known += 1
            return
        found = adoption.find(provider, instance, prices.catalog, prices.eur_usdc)
        if isinstance(found, str):
            report.undecided.append(f"{found}, and repeat this.")
            return
        if found.note is not None:
            report.notes.append(f"{found.note} Who does not want that leaves it frozen.")
        is_first = not report.rebuilt
        report.rebuilt.append(await self._db.write(lambda tx: _rebuilt(tx, found, now, is_first=is_first)))


def _rebuilt(tx: Tx, found: adoption.Found, now: int, *, is_first: bool) -> Rebuilt:
    if is_first:
        adoption.skip_event_numbers(tx, now)
    server = adoption.adopt(tx, found, now, metered=False)
    return Rebuilt(
        server=server.id,
        wallet=server.wallet,
        name=server.name,
        type=server.type,
        since=server.created_at,
    )
