"""The database is lost, and put back from a backup: part of life, in worlds where it can happen.

Invariant: the command is the operator's `spawn restore`, step by step, with nobody else at the files. What it cannot
decide is put in order outside and it is run again; only then does the service start. Afterwards nothing that was paid
is lost, and the operator repeats what only the lost books knew of: the gifts.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from spawn_schemas.money import format_usdc

from spawn.rails import require_same_chain
from spawn.services.admin import Credit
from spawn.services.billing import Billing
from spawn.services.restore import Report, Restore
from spawn.store.backup import kept_as, restoring
from tests.sim.operator_books import copies
from tests.sim.operator_desk import RESTORES_BEGUN, RESTORES_DONE, bars_of, database_of, is_restoring, owning
from tests.sim.operator_orders import give
from tests.sim.process import Entropy
from tests.sim.rails import sim_rail

if TYPE_CHECKING:
    from tests.sim.process import Process
    from tests.sim.world import World

RESTORES: Final = 2
"""So many in one life."""
TRIES: Final = 200


def lose_the_disk(world: "World") -> None:
    """The database is gone, and the service with it; somebody gets the newest copy, or the one before."""
    kept = copies(world)
    may = world.climate.restores and world.counts[RESTORES_BEGUN] < RESTORES
    if not may or not kept or is_restoring(world):
        return
    world.count(RESTORES_BEGUN)
    world.keep_down(True)
    for process in (world.twin, world.process):
        if process is not None:
            world.kill(process, "its disk is lost")
    copy = kept[-1] if world.random.random() < 0.7 else kept[0]
    _ = world.spawn(_restore(world, copy), name="restore")


async def _restore(world: "World", copy: Path) -> None:
    world.step(f"restoring {copy.name}")
    await asyncio.sleep(world.random.uniform(1.0, 7_200.0))
    for _ in range(TRIES):
        report = await _once(world, copy)
        if not report.undecided:
            break
        world.count("restores that could not decide")
        world.step(f"not restored: {report.undecided[0][:120]}")
        _put_in_order(world, report)
        await asyncio.sleep(world.random.uniform(60.0, 7_200.0))
    else:
        world.violation("live", f"{TRIES} restores decided nothing")
    for newer in copies(world):
        # They are of books that are no more.
        if newer > copy:
            newer.unlink()
    world.restored()
    world.count(RESTORES_DONE)
    world.step(
        f"restored {copy.name}: {format_usdc(report.credited_usdc)} credited, {len(report.adopted)} adopted, "
        f"{len(report.resized)} resized, {len(report.gone)} gone, {len(report.strays)} strays"
    )
    world.keep_down(False)
    world.revive()
    if world.climate.twin:
        world.revive(ticks_only=True)
    _repeat_gifts(world)


async def _once(world: "World", copy: Path) -> Report:
    """What `spawn restore --force` does."""
    database, now = database_of(world), world.true_s()
    entropy = Entropy(f"{world.seed}|restore at {now}")
    replaced = kept_as(database)
    with restoring(copy, database, replace=True) as place:
        with owning(place.path) as db:
            rail = sim_rail(world, db, cast("Process", None))
            await require_same_chain(db, rail)
            report = await Restore(
                db,
                rail.arrivals,
                rail.holdings,
                {world.cloud.name: world.cloud.provider()},
                Billing(entropy, world.settings.warning_policy),
                world.settings,
            ).run(now)
        if not report.undecided:
            place.take()
            for old in sorted(replaced.parent.glob(f"{replaced.name}*")):
                old.unlink()
    return report


def _put_in_order(world: "World", report: Report) -> None:
    """What does not say whose it is, is nobody's here: a person deletes it."""
    for sentence in report.undecided:
        if sentence.startswith("machine "):
            ref = sentence.split()[1]
            world.step(f"deleted by hand: {ref}")
            world.cloud.vanish(ref)
        elif "do not open these books" in sentence:
            world.violation("paid", f"a sound backup became unsound: {sentence}")


def _repeat_gifts(world: "World") -> None:
    for name, ordered in bars_of(world).ordered.items():
        if not ordered.heard:
            order = Credit(id=name, wallet=ordered.wallet, usdc=ordered.usdc, reason="again, after the loss")
            _ = world.spawn(give(world, order), name=f"{name}, again")
