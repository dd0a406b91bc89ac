"""What tests of backups share: a world whose database is lost and put back, with chain and cloud as they were."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from spawn_providers.base import Provider
from spawn_providers.simulated import SimulatedProvider
from spawn_providers.simulated_faults import Faults

from spawn.payments.arrivals import Arrivals
from spawn.payments.devnet import DevChain
from spawn.rails import x402_terms
from spawn.services.billing import Billing
from spawn.services.restore import Report, Restore
from spawn.store.backup import Contents, back_up, restoring
from spawn.store.database import Database
from spawn.store.places import file_of
from spawn.store.sqlite import SqliteDatabase
from tests.harness import SeededEntropy, VirtualClock, World, settings_in


def backup(world: World, copy: Path) -> Contents:
    return back_up(file_of(world.settings.database_url), copy, replace=True)


def lose(folder: Path) -> None:
    """The disk with the database is gone; nothing else is."""
    for suffix in ("", "-wal", "-shm"):
        (folder / f"spawn.db{suffix}").unlink(missing_ok=True)


async def restore(
    folder: Path,
    copy: Path,
    clock: VirtualClock,
    *,
    cloud_faults: Faults | None = None,
    around_cloud: Callable[[Provider], Provider] = lambda provider: provider,
    around_chain: Callable[[DevChain], Arrivals] = lambda chain: chain,
    around_db: Callable[[Database], Database] = lambda db: db,
) -> Report:
    """What `spawn restore` does, in this process and on this clock."""
    settings = settings_in(folder)
    chain = DevChain(Path(settings.devnet_path), x402_terms(settings), now=clock.now_s)
    cloud = SimulatedProvider(Path(settings.simulated_path), now_ms=clock.now_ms, seed=1, faults=cloud_faults)
    async with contextlib.AsyncExitStack() as opened:
        opened.callback(chain.close)
        opened.push_async_callback(cloud.aclose)
        with restoring(copy, file_of(settings.database_url), replace=False) as place:
            db = await SqliteDatabase.open(place.path)
            try:
                report = await Restore(
                    around_db(db),
                    around_chain(chain),
                    chain,
                    {cloud.name: around_cloud(cloud)},
                    Billing(SeededEntropy("restore"), settings.warning_policy),
                    settings,
                ).run(clock.now_s())
            finally:
                await db.close()
            if not report.undecided:
                place.take()
            return report
