"""A feed that was read piece by piece, over crashes of both sides, is the whole of it.

Invariant: at rest, whoever followed a feed has every event that is kept and that it asked for, and a reader that
begins anew reads the same.
"""

from random import Random
from typing import TYPE_CHECKING

from tests.sim.feed_readers import PAGES, Reader, matches
from tests.sim.oracle.part import Part

if TYPE_CHECKING:
    from tests.sim.world import World


class Feeds(Part):
    """Lets every reader read to the end, and one of each wallet from the beginning."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._anew: list[Reader] = []

    def unsettled(self) -> list[str]:
        world = self.world
        if not self._anew:
            self._anew = [Reader(customer) for customer in world.town.customers]
        newest = {
            row["wallet"]: row["seq"]
            for row in world.rows("SELECT wallet, MAX(seq) AS seq FROM event GROUP BY wallet")
        }
        behind = [
            reader
            for reader in (*world.receivers.readers, *self._anew)
            if (reader.after or 0) < newest.get(reader.customer.address, 0)
        ]
        for reader in behind:
            _ = world.spawn(
                reader.follow(world, Random(world.random.getrandbits(64)), pages=PAGES), name="feed"
            )
        return [f"{len(behind)} feeds are not read to their end"] if behind else []

    def at_rest(self) -> None:
        rows = self.world.rows("SELECT seq, wallet, type FROM event ORDER BY seq")
        for reader in (*self.world.receivers.readers, *self._anew):
            wanted = [
                row["seq"]
                for row in rows
                if row["wallet"] == reader.customer.address and matches(reader.pattern, row["type"])
            ]
            if missed := [seq for seq in wanted if seq > reader.born_after and seq not in reader.collected]:
                self.world.violation(
                    "unwarned", f"{reader.customer.address} followed its feed, and missed {missed}"
                )
