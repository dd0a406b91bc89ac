"""The cloud's bad days, and what its operator and strangers do past us.

Invariant: what a move breaks is what a cloud can break: it loses, delays and refuses, and never lies of what is true.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from spawn_providers.base import Refused, RefusedCode, Spec, Verb
from spawn_providers.catalog import DEFAULT_CATALOG
from spawn_providers.simulated_faults import Breakdown, DeafGuest
from spawn_schemas.ids import Address, ServerId

from tests.sim.cloud import REFUSALS, Trick
from tests.sim.moves import Kind
from tests.sim.weather import Fate

if TYPE_CHECKING:
    from tests.sim.world import World

_CHANGES: Final = tuple(REFUSALS)
_HALF_WAY: Final = ("create", Verb.RESIZE.value, Verb.RESIZE.value, Verb.REBUILD.value, Verb.REBUILD.value)
_ASKS_THE_GUEST: Final = (Verb.SHUTDOWN.value, Verb.REBOOT.value)
_NOBODY: Final = Address("0x" + "00" * 20)
_TRICKS_MAX: Final = 12
"""More of them would wait for calls that never come, and none would be a surprise."""
_SELECT_HANDLES: Final = (
    "SELECT handle FROM operation WHERE status = 'running' AND handle IS NOT NULL ORDER BY id"
)
_SELECT_FAILED: Final = (
    "SELECT id, wallet FROM server WHERE status = 'failed' AND provider_ref IS NULL ORDER BY id"
)


def _begin_outage(world: "World") -> None:
    until_s = world.true_s() + _some_time_s(world, 5, 15)
    world.weather.outages["cloud"] = until_s
    world.step(f"cloud: down for {until_s - world.true_s()} s")


def _end_outage(world: "World") -> None:
    if world.weather.outages.pop("cloud", None) is not None:
        world.step("cloud: up again")


def _vanish(world: "World") -> None:
    there = [machine.ref for machine in world.cloud.existing() if machine.key is not None]
    if there:
        world.cloud.vanish(world.random.choice(there))


def _remove(world: "World") -> None:
    there = [machine.ref for machine in world.cloud.existing() if machine.key is not None]
    if there:
        with suppress(Refused):
            world.cloud.remove(world.random.choice(there))


def _leave_out(world: "World") -> None:
    there = [machine.ref for machine in world.cloud.existing() if machine.key is not None]
    if there:
        ref = world.random.choice(there)
        world.cloud.unlisted[ref] = world.true_s() + _some_time_s(world, 8, 15)
        world.step(f"cloud: lists leave out {ref}")


def _forget(world: "World") -> None:
    handles = [row["handle"] for row in world.rows(_SELECT_HANDLES)]
    if handles:
        world.cloud.forget(world.random.choice(handles))


def _stray(world: "World") -> None:
    world.cloud.plant(None, _any_spec(world, _NOBODY))


def _orphan(world: "World") -> None:
    """Of a server that nobody knows, or of one that is in the books as failed."""
    used = {machine.key for machine in world.cloud.machines()}
    failed = [(row["id"], row["wallet"]) for row in world.rows(_SELECT_FAILED) if row["id"] not in used]
    made_up = (f"srv_{world.random.getrandbits(80):020x}", _NOBODY)
    key, owner = world.random.choice([made_up, *failed[:3]])
    world.cloud.plant(ServerId(key), _any_spec(world, Address(owner)))


def _sell_out(world: "World") -> None:
    places = sorted({offer.location for offer in DEFAULT_CATALOG.offers})
    for place in world.random.sample(places, world.random.randint(1, len(places))):
        world.cloud.sold_out[place] = world.true_s() + _some_time_s(world, 5, 14)
    world.step(f"cloud: sold out in {', '.join(sorted(world.cloud.sold_out))}")


def _slow_down(world: "World") -> None:
    world.cloud.slow_until_s = world.true_s() + _some_time_s(world, 4, 10)
    world.step("cloud: slow")


def _refuse(world: "World") -> None:
    method = world.random.choice(_CHANGES)
    code = world.random.choice(REFUSALS[method])
    _play_trick(world, Trick(methods=(method,), fate=Fate.REFUSED, code=code))


def _break_down(world: "World") -> None:
    code = world.random.choice((RefusedCode.OUT_OF_CAPACITY, RefusedCode.CONFLICT, RefusedCode.INVALID))
    trick = Trick(
        methods=_some_changes(world), flaw=Breakdown(code=code), is_forgotten=world.random.random() < 0.3
    )
    _play_trick(world, trick)


def _deafen(world: "World") -> None:
    _play_trick(world, Trick(methods=_ASKS_THE_GUEST, flaw=DeafGuest()))


def _lose(world: "World") -> None:
    fate = world.random.choice((Fate.LOST_REQUEST, Fate.LOST_ANSWER, Fate.LOST_ANSWER))
    down_s = _some_time_s(world, 5, 11) if world.random.random() < 0.5 else 0
    is_deadly = world.random.random() < 0.3
    _play_trick(world, Trick(methods=_some_changes(world), fate=fate, down_s=down_s, is_deadly=is_deadly))


def _delay(world: "World") -> None:
    """What arrives after its caller has given up. Not acts: what a late one does to a machine, its owner ordered."""
    method = world.random.choice(("create", "delete"))
    _play_trick(world, Trick(methods=(method,), late_s=2 ** world.random.uniform(-1, 8)))


def _play_trick(world: "World", trick: Trick) -> None:
    if len(world.cloud.tricks) < _TRICKS_MAX:
        world.cloud.tricks.append(trick)


def _some_changes(world: "World") -> tuple[str, ...]:
    """One kind, however rare; or whichever comes first. More often one that does not end where it began."""
    return world.random.choice([_CHANGES, *((method,) for method in (*_CHANGES, *_HALF_WAY))])


def _some_time_s(world: "World", shortest: float, longest: float) -> int:
    """Between two powers of two, in seconds: short times as likely as long ones."""
    return int(2 ** world.random.uniform(shortest, longest))


def _any_spec(world: "World", owner: Address) -> Spec:
    offer = world.random.choice(DEFAULT_CATALOG.offers)
    image = world.random.choice(DEFAULT_CATALOG.images)
    return Spec(
        hostname="planted",
        provider_type=offer.provider_type,
        image=image.name,
        location=offer.location,
        owner=owner,
    )


MOVES: Final = (
    Kind(name="cloud.outage", weight=0.3, play=_begin_outage),
    Kind(name="cloud.up", weight=0.3, play=_end_outage),
    Kind(name="cloud.vanish", weight=0.3, play=_vanish),
    Kind(name="cloud.remove", weight=0.3, play=_remove),
    Kind(name="cloud.leave_out", weight=0.3, play=_leave_out),
    Kind(name="cloud.forget", weight=0.5, play=_forget),
    Kind(name="cloud.stray", weight=0.15, play=_stray),
    Kind(name="cloud.orphan", weight=0.3, play=_orphan),
    Kind(name="cloud.sold_out", weight=0.4, play=_sell_out),
    Kind(name="cloud.slow", weight=0.4, play=_slow_down),
    Kind(name="cloud.refuse", weight=0.8, play=_refuse),
    Kind(name="cloud.breakdown", weight=1.0, play=_break_down),
    Kind(name="cloud.deaf", weight=0.6, play=_deafen),
    Kind(name="cloud.lose", weight=1.5, play=_lose),
    Kind(name="cloud.late", weight=0.8, play=_delay),
)
