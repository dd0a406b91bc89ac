"""A cloud whose machines send what a test says, and sums of it done again by hand."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor

from msgspec.structs import replace
from spawn_providers.base import Instance, Op, Provider, Traffic
from spawn_providers.catalog import TB
from spawn_schemas.ids import ServerId

from tests.harness import World
from tests.integration.server_steps import Recorder

PER_TB = 1_200_000
COST_PER_TB = 1_080_000
"""A TB at the provider is one euro."""
INCLUDED = 20 * TB
SWEEP_S = 600


@dataclass
class Sending(Recorder):
    """`counters` by server id; None where the provider does not say. Who is not named has sent nothing."""

    counters: dict[str, Traffic | None] = field(default_factory=dict)

    def sent(self, server_id: str, outgoing: int, ingoing: int = 0) -> None:
        self.counters[server_id] = Traffic(
            ingoing_bytes=ingoing, outgoing_bytes=outgoing, included_bytes=INCLUDED
        )

    def _told(self, instance: Instance | None) -> Instance | None:
        if instance is None:
            return None
        nothing = Traffic(ingoing_bytes=0, outgoing_bytes=0, included_bytes=INCLUDED)
        return replace(instance, traffic=self.counters.get(instance.key or "", nothing))

    async def find(self, key: ServerId, *, to_destroy: bool = False) -> Instance | None:
        return self._told(await super().find(key, to_destroy=to_destroy))

    async def get(self, ref: str) -> Instance | None:
        return self._told(await super().get(ref))

    async def delete(self, ref: str) -> Op:
        op = await super().delete(ref)
        return replace(op, last_seen=self._told(op.last_seen))

    async def list_owned(self) -> AsyncIterator[Instance]:
        async for instance in super().list_owned():
            told = self._told(instance)
            assert told is not None
            yield told


@dataclass
class Cloud:
    """What to hand to `open_world` as `around`, and where the provider then is."""

    providers: list[Sending] = field(default_factory=list)

    def __call__(self, inner: Provider) -> Provider:
        self.providers.append(Sending(inner))
        return self.providers[-1]

    @property
    def now(self) -> Sending:
        return self.providers[-1]


async def sweep(world: World, after_s: int = SWEEP_S) -> None:
    """Let time pass, then look at all machines."""
    world.clock.advance(after_s)
    await world.service.workers.reconciler.run()


def costs(beyond_bytes: int, per_tb: int = PER_TB) -> int:
    """Whole micro-dollars of so many bytes beyond the included."""
    return floor(Fraction(beyond_bytes * per_tb, TB))


async def moved(world: World, debit: str, credit: str) -> int:
    """What went this way for traffic; the accounts by how they begin."""
    rows = await world.rows("SELECT debit, credit, amount FROM transfer WHERE code = 'traffic'")
    return sum(
        row["amount"] for row in rows if row["debit"].startswith(debit) and row["credit"].startswith(credit)
    )
