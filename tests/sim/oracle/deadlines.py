"""By when a server's owner must have been told that its money ends.

Invariant: ends are reckoned here from rows alone, in straight lines: what a month's cap or an announced price would
bend within the time that matters is left out. Lateness is counted in ticks of the job, not in hours: so it says the
same of a service that was down or whose jobs stalled.
"""

from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tests.sim.oracle.part import Row
from tests.sim.oracle.policy import DAY_S, Policy

if TYPE_CHECKING:
    from tests.sim.world import World

HOUR_S: Final = 3_600
TICKS: Final = 12
"""Of so many ticks of the burn job one was a leader's, and ran to its end, unless the one who was to lead died."""
ROUNDING_S: Final = 120
NEVER: Final = 1 << 60


@dataclass
class Open:
    """A threshold that is to be told in this epoch, from the true second `since_s` on, unless money comes in."""

    threshold_s: int
    epoch: int
    since_s: int


class Deadlines:
    """What is to be told, and by when."""

    def __init__(self, world: "World", policy: Policy) -> None:
        self._world = world
        self._policy = policy
        self._open: dict[str, Open] = {}
        self._told: dict[str, tuple[int, int]] = {}
        """By server the epoch and the tightest threshold told in it."""
        self._born: dict[str, tuple[int, int]] = {}
        """By server the epoch, and the runway that it began with."""
        self._bad_until = 0
        self._next = NEVER
        self._ticks: deque[int] = deque(maxlen=TICKS)
        self._ticked: dict[int, float] = {}

    def forget(self) -> None:
        """The rows are others now: what is crossed is found out anew."""
        self._open.clear()
        self._born.clear()
        self._told.clear()
        self._bad_until = self._world.true_s()

    def told(self, server_id: str, epoch: int, threshold_s: int) -> None:
        self._told[server_id] = epoch, threshold_s
        self._open.pop(server_id, None)

    def drop(self, server_id: str) -> None:
        """It costs nothing any more."""
        self._open.pop(server_id, None)

    def follow(self, wallet: str, servers: list[Row], accounts: dict[str, Row]) -> None:
        """The wallet's money or servers have changed: reckon anew when what must be told."""
        ends = ends_of(wallet, servers, accounts)
        now = self._world.clock.now_s()
        for row in servers:
            server_id, end = row["id"], ends.get(row["id"])
            if end is None or row["epoch"] == 0:
                self._open.pop(server_id, None)
                continue
            born = self._born.get(server_id)
            if born is None or born[0] != row["epoch"]:
                born = self._born[server_id] = row["epoch"], int(end) - now
            self._expect(row, int(end), born[1])

    def _expect(self, row: Row, end: int, born_with_s: int) -> None:
        """The next threshold that is neither spent nor told, from when it is crossed on."""
        server_id, now = row["id"], self._world.clock.now_s()
        told = self._told.get(server_id)
        below_s = told[1] if told is not None and told[0] == row["epoch"] else NEVER
        unspent = [t for t in self._policy.thresholds_s if t < below_s and t <= born_with_s - ROUNDING_S]
        crossed = self._policy.tightest_crossed(max(0, end - now))
        known = self._open.get(server_id)
        if crossed is not None and crossed not in unspent:
            unspent = [t for t in unspent if t < crossed]
        if not unspent:
            self._open.pop(server_id, None)
            return
        threshold_s = crossed if crossed in unspent and crossed is not None else unspent[-1]
        since_s = max(self._world.true_s(), end - threshold_s)
        if known is not None and (known.epoch, known.threshold_s) == (row["epoch"], threshold_s):
            since_s = min(known.since_s, since_s) if end - threshold_s <= now else since_s
        self._open[server_id] = Open(threshold_s, row["epoch"], since_s)
        self._next = min(self._next, since_s + _look_s(threshold_s))

    def look(self) -> None:
        """Raise a violation for what should have been told by now."""
        world = self._world
        now = world.true_s()
        if world.clock.wrong_by_s:
            self._bad_until = now
        if not self._has_ticked() or now < self._next:
            return
        self._next = NEVER
        for server_id, open_ in self._open.items():
            due_s = max(open_.since_s, self._bad_until) + _look_s(open_.threshold_s)
            if self._ticks[0] > due_s:
                world.violation(
                    "unwarned",
                    f"{server_id} fell to {open_.threshold_s} s {now - open_.since_s} s ago, and nobody was told",
                )
            self._next = min(self._next, due_s)

    def _has_ticked(self) -> bool:
        """Whether the burn job has begun another tick, and has done so often enough."""
        world = self._world
        has_ticked = False
        for process in (world.process, world.twin):
            at = None if process is None else process.ticked.get("burn")
            if process is not None and at is not None and self._ticked.get(process.number) != at:
                if process.number not in self._ticked:
                    # It waits for a dead leader's lease from its own first tick on.
                    self._ticks.clear()
                self._ticked[process.number] = at
                self._ticks.append(world.true_s())
                has_ticked = True
        return has_ticked and len(self._ticks) == TICKS


def _look_s(threshold_s: int) -> int:
    """What lives from a wallet that is spent is looked at hourly in its last day, and daily before (docs/adr/0021)."""
    return HOUR_S if threshold_s <= DAY_S else DAY_S


def ends_of(wallet: str, servers: list[Row], accounts: dict[str, Row]) -> dict[str, float]:
    """When each server's money ends, in unix seconds; left out where that is no straight line (DESIGN section 4).

    Its own reserve first; then what the wallet has available, for all who renew, until the second that it cannot pay
    for all of them.
    """
    own = {row["id"]: _own_end(row, accounts) for row in servers}
    sharers = sorted((own[row["id"]], row["daily_usdc"]) for row in servers if row["auto_renew"])
    common = _common_end(sharers, _available(accounts.get(f"wallet:{wallet}")))
    if any(_bends(row, max(own[row["id"]], common)) for row in servers):
        return {}
    return {
        row["id"]: max(own[row["id"]], common) if row["auto_renew"] else own[row["id"]] for row in servers
    }


def _available(account: Row | None) -> int:
    return 0 if account is None else account["balance"] - account["held"]


def _own_end(row: Row, accounts: dict[str, Row]) -> float:
    reserve = _available(accounts.get(f"srv:{row['id']}"))
    if not row["daily_usdc"]:
        return float(NEVER)
    return float(row["charged_until"] + ((reserve + 1) * DAY_S - 1 - row["remainder"]) // row["daily_usdc"])


def _common_end(sharers: list[tuple[float, int]], available: int) -> float:
    """The T at which what all sharers lack sums up to what is available; 0 where nobody shares."""
    left, rate, at = available * DAY_S, 0, 0.0
    for end, daily in sharers:
        if rate and left < rate * (end - at):
            break
        left -= int(rate * (end - at)) if rate else 0
        at, rate = end, rate + daily
    return at + left / rate if rate else 0.0


def _bends(row: Row, end: float) -> bool:
    """Whether a cap or another price comes before the end."""
    if row["reprice_at"] is not None and row["reprice_at"] <= end:
        return True
    if end >= NEVER:
        return True
    month_end = _month_end(row["charged_until"])
    metered_s: float = row["month_s"] + min(end, month_end) - row["charged_until"]
    return bool(metered_s >= row["capped_s"] or end - month_end >= row["capped_s"])


def _month_end(at: int) -> int:
    day = datetime.fromtimestamp(at, UTC)
    year, month = (day.year + 1, 1) if day.month == 12 else (day.year, day.month + 1)
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp())
