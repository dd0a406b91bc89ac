"""What the parts of the oracle have in common: when they are asked, and what a commit changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.sim.client_types import Answer, Request

if TYPE_CHECKING:
    from tests.sim.world import World

Row = dict[str, Any]
Key = Any
"""A primary key: a text or number, a tuple where it has two columns."""


@dataclass(kw_only=True)
class Changes:
    """What one commit left behind: appended rows, and for each other row that it touched how it is now, or None."""

    transfers: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    rows: dict[str, dict[Key, Row | None]] = field(default_factory=dict)
    process: int = 0
    """The number of the process that committed it."""
    jobs: tuple[str, ...] = ()
    """Those of its jobs that changed something in it by themselves."""
    number: int = 0
    began: int | None = None
    """Which commit it is, and which was the last before it began, where others may commit meanwhile."""

    def of(self, table: str) -> Mapping[Key, Row | None]:
        return self.rows.get(table, {})


def deeds_of(changes: Changes) -> dict[str, int]:
    """How many things one commit may have done to each wallet, at the most."""
    deeds: dict[str, int] = {}
    orders: dict[str, None] = {}
    for transfer in changes.transfers:
        if transfer["code"] == "goodwill":
            wallet = transfer["credit"].removeprefix("wallet:")
            deeds[wallet] = deeds.get(wallet, 0) + 1
    for table in ("reservation", "operation", "arrival"):
        for name, row in changes.of(table).items():
            if row is None or name in orders:
                continue
            wallet = row["sender"] if table == "arrival" else row["wallet"]
            deeds[wallet] = deeds.get(wallet, 0) + 1
            if table == "reservation" and row["operation_id"] is not None:
                orders[row["operation_id"]] = None
    return deeds


class Part:
    """One statement about the world, or a few that belong together. Raises by `world.violation`."""

    def __init__(self, world: "World") -> None:
        self.world = world

    def has_thawed(self) -> bool:
        """Whether what happens now may have waited for the end of a pause: it was decided minutes ago."""
        processes = (self.world.process, self.world.twin)
        return any(one is not None and one.has_just_thawed for one in processes)

    def committed(self, changes: Changes) -> None:
        """After every commit, also one whose process died before it heard of it."""

    def answered(self, request: Request, answer: Answer) -> None:
        """After every answer that an agent got."""

    def stepped(self) -> None:
        """After every step: cheap, or not at all."""

    def restored(self) -> None:
        """The database was taken back to a backup: forget what only the lost rows told, read the rows anew."""

    def unsettled(self) -> list[str]:
        """In calm: what is still open, in words."""
        return []

    def at_rest(self) -> None:
        """Everything has settled: what must be exactly so."""
