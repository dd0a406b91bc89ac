"""Programs that follow `GET /v1/events` by their cursor, and die now and then between reading and remembering.

Invariant: a reader saves its cursor after what it read, never before; and what it collected outlives it.
"""

import json
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tests.sim.client import Intent, Manner, Way
from tests.sim.client_types import Answer
from tests.sim.owner_wishes import Customer

if TYPE_CHECKING:
    from tests.sim.world import World

PAGES: Final = 40
PATIENT: Final = Manner(
    patience=8,
    resigns=True,
    keeps_payment_identifier=False,
    hangs_up_after_s=None,
    leaves_then=False,
    is_hasty=False,
    sends_twice=False,
    again_after_s=(),
    address="198.51.100.77",
    waits_s=(1.0, 2.0, 5.0),
)


@dataclass
class Reader:
    """Follows one wallet's events of one pattern, from the first that it was born to see. `after` is its cursor."""

    customer: Customer
    pattern: str = "*"
    after: int | None = None
    born_after: int = 0
    collected: dict[int, dict[str, Any]] = field(default_factory=dict)
    is_busy: bool = False

    async def follow(self, world: "World", random: Random, *, pages: int, wait_s: int = 0) -> None:
        """Read on for some pages. Ends early where no answer comes, where all is read, and where the reader dies."""
        if self.is_busy:
            return
        self.is_busy = True
        try:
            for _ in range(pages):
                limit = random.choice((1, 3, 10, 50, 100))
                answer = await self._ask(world, limit, wait_s)
                if answer is None or answer.status != 200:
                    return
                page: dict[str, Any] = json.loads(answer.body)
                self._take(world, page, limit)
                if not world.calm and random.random() < 0.1:
                    return  # it dies before it has saved its cursor
                self.after = _number(page["next_cursor"])
                if not page["has_more"]:
                    return
        finally:
            self.is_busy = False

    async def _ask(self, world: "World", limit: int, wait_s: int) -> Answer | None:
        asked = [f"limit={limit}"]
        asked += [f"after=evt_{self.after}"] if self.after is not None else []
        asked += [f"type={self.pattern}"] if self.pattern != "*" else []
        asked += [f"wait={wait_s}"] if wait_s else []
        intent = Intent(
            number=len(world.town.calls.intents),
            what="feed",
            wallet=self.customer.wallet,
            way=Way.SIGN,
            method="GET",
            path="/v1/events",
            query="&".join(asked),
            is_read=True,
        )
        world.town.calls.add(intent)
        return await world.town.client.carry_out(intent, PATIENT)

    def _take(self, world: "World", page: dict[str, Any], limit: int) -> None:
        """A page is exactly the wallet's events of this pattern between its two cursors."""
        after, until = self.after or 0, _number(page["next_cursor"])
        numbers = [_number(event["id"]) for event in page["events"]]
        (kept,) = world.rows(
            "SELECT COALESCE((SELECT forgotten FROM event_head WHERE wallet = :wallet), 0) AS forgotten,"
            " COALESCE(MAX(seq), 0) AS newest FROM event",
            wallet=self.customer.address,
        )
        if page["gap"] and after > kept["newest"]:
            return  # a backup was put back, and the list begins anew
        if page["gap"] and after >= kept["forgotten"]:
            _broken(world, f"evt_{after} has a gap behind it, and kept is all after {kept['forgotten']}")
        if not page["has_more"] and until > max([after, kept["forgotten"], *self._own(world)]):
            _broken(world, f"the feed from evt_{after} goes on from evt_{until}, which is none of its events")
        if numbers != sorted(set(numbers)) or len(numbers) > limit:
            _broken(world, f"a page of {limit} lists {numbers}")
        rows = world.rows(
            "SELECT seq, type, resource, data FROM event WHERE wallet = :wallet AND seq > :after AND seq <= :until",
            wallet=self.customer.address,
            after=after,
            until=until,
        )
        wanted = {row["seq"]: row for row in rows if matches(self.pattern, row["type"])}
        if missing := sorted(wanted.keys() - set(numbers)):
            _broken(world, f"the feed from evt_{after} to evt_{until} leaves out {missing}")
        for event in page["events"]:
            number = _number(event["id"])
            row = wanted.get(number)
            if row is None and number > kept["forgotten"]:
                world.violation(
                    "foreign", f"{self.customer.address} read {event}, which is none of its events"
                )
            if row is not None and (event["type"], event["resource"], event["data"]) != (
                row["type"],
                row["resource"],
                json.loads(row["data"]),
            ):
                _broken(world, f"the feed says {event}, and written is {row}")
            if self.collected.setdefault(number, event) != event:
                _broken(world, f"the feed says {event}, and said {self.collected[number]}")

    def _own(self, world: "World") -> list[int]:
        rows = world.rows("SELECT seq FROM event WHERE wallet = :wallet", wallet=self.customer.address)
        return [row["seq"] for row in rows]


def matches(pattern: str, type_: str) -> bool:
    """Whether events of this type are among those of the pattern (docs/events.md)."""
    return pattern in {"*", type_} or (pattern.endswith(".*") and type_.startswith(pattern[:-1]))


def _number(cursor: str) -> int:
    return int(cursor.removeprefix("evt_"))


def _broken(world: "World", text: str) -> NoReturn:
    world.violation("unwarned", text)
