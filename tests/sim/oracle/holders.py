"""Who may act: one process leads, one worker has an operation, and nothing is left in the hands of the dead.

Invariants, from committed rows and from whose commit it was:
- what a job writes by itself is committed by the process that holds the lease (docs/adr, spawn.services.leader);
- a lease is taken from nobody, or from a holder who has not moved it for as long as it lasts;
- an operation goes on only in the hands of who has claimed it;
- a claim is taken from nobody, or when its time is over; before that only the process that took it ends it;
- where a process has the database to itself, it comes up with no claim held.
"""

from typing import TYPE_CHECKING, Final, NoReturn

from tests.sim.oracle.part import Changes, Part, Row

if TYPE_CHECKING:
    from tests.sim.world import World

JOBS: Final = "ticker"
LEASES_S: Final = {JOBS: 50, "relayer": 15}
"""How long a lease must not move before another takes it."""
SUPERSEDED: Final = "superseded"
"""What is written on an operation that the end of its server has cut short: whoever had it finds out."""
CLAIMED: Final = ("operation", "reservation")
PROGRESS: Final = ("status", "step", "phase", "handle", "accepted_at", "error_code")
BY_CLAIM: Final = frozenset({"deliveries"})
"""Jobs that any process may do at any time: each thing that they do is claimed first."""
LEASES: Final = "SELECT * FROM lease"
HELD: Final = """
SELECT id FROM operation WHERE claim IS NOT NULL AND status = 'running'
UNION ALL SELECT id FROM reservation WHERE claim IS NOT NULL AND state IN ('reserved', 'settled', 'acted')
"""


class Leases(Part):
    """Whose commits the jobs' are."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._holders: dict[str, str] = {}
        self._takers: dict[str, int] = {}
        """By lease the process that holds it."""
        self._moved_at: dict[str, float] = {}
        self._terms: list[tuple[int, int | None]] = [(0, None)]
        """With which commit another process began to lead."""

    def restored(self) -> None:
        self._holders = {row["name"]: row["holder"] for row in self.world.rows(LEASES)}
        self._takers.clear()

    def committed(self, changes: Changes) -> None:
        for name, row in changes.of("lease").items():
            self._moved(name, row, changes.process)
        led = [job for job in changes.jobs if job not in BY_CLAIM]
        leader = self._takers.get(JOBS)
        if led and leader != changes.process and not self._led(changes):
            self._wrong(f"{', '.join(led)} of process {changes.process} wrote, and {leader} holds the lease")
        if self._terms[-1][1] != leader:
            self._terms.append((changes.number, leader))

    def _led(self, changes: Changes) -> bool:
        """Whether its process led when it began, among others: it is as if it had been committed then, and who saw
        the next term and anything that this changes would have been refused."""
        began = changes.began
        if began is None:
            return False
        return next(leader for since, leader in reversed(self._terms) if since <= began) == changes.process

    def _moved(self, name: str, row: Row | None, process: int) -> None:
        before, now = self._holders.get(name, ""), self.world.loop.time()
        if row is None:
            self._wrong(
                f"the lease {name} is gone, and with it the number that tells one holder from the next"
            )
        age_s = now - self._moved_at.get(name, 0.0)
        if row["holder"] not in {"", before} and before and age_s < LEASES_S[name]:
            self._wrong(
                f"process {process} took the lease {name} from {self._takers.get(name)}, {age_s:.0f} s old"
            )
        self._holders[name] = row["holder"]
        self._moved_at[name] = now
        self._takers.pop(name, None)
        if row["holder"]:
            self._takers[name] = process

    def _wrong(self, text: str) -> NoReturn:
        self.world.violation("crash", text)


class Claims(Part):
    """Who has which operation, and which call."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._claims: dict[str, tuple[str, int]] = {}
        """By operation or call its claim, and until when it lasts."""
        self._takers: dict[str, int] = {}
        """By claim the process that took it."""
        self._operations: dict[str, Row] = {}
        self._up = 0

    def restored(self) -> None:
        self._claims.clear()
        self._operations.clear()

    def stepped(self) -> None:
        process = self.world.process
        if process is None or process.number == self._up or not process.is_ready:
            return
        self._up = process.number
        held = self.world.rows(HELD) if process.db.exclusive else []
        if held:
            self._wrong(f"process {process.number} is up, and its predecessor still has {held[0]['id']}")

    def committed(self, changes: Changes) -> None:
        for name, row in changes.of("operation").items():
            if row is not None:
                self._gone_on(name, row)
        for table in CLAIMED:
            for name, row in changes.of(table).items():
                if row is None or row["claim"] is None:
                    self._ended(name, row, changes.process)
                else:
                    self._taken(name, row, changes.process)

    def _gone_on(self, name: str, row: Row) -> None:
        before = self._operations.get(name)
        self._operations[name] = row
        if before is None or before["status"] != "running" or row["error_code"] == SUPERSEDED:
            return
        changed = [field for field in PROGRESS if before[field] != row[field]]
        if changed and before["claim"] is None and row["claim"] is None:
            self._wrong(
                f"{row['command']} {name} has another {', '.join(changed)}, and nobody had claimed it"
            )

    def _taken(self, name: str, row: Row, process: int) -> None:
        known = self._claims.get(name)
        self._claims[name] = row["claim"], row["claim_until"]
        if known is not None and known[0] == row["claim"]:
            return
        self._takers[row["claim"]] = process
        if known is not None and self._lasts(known[1]):
            self._wrong(f"{name} is claimed by process {process}, and {known[0]} lasts until {known[1]}")

    def _ended(self, name: str, row: Row | None, process: int) -> None:
        known = self._claims.pop(name, None)
        if known is None or not self.world.climate.twin:
            return  # the only process that there is frees what its predecessor had
        taker = self._takers.pop(known[0], process)
        is_superseded = row is not None and row.get("error_code") == SUPERSEDED
        if taker != process and self._lasts(known[1]) and not is_superseded:
            self._wrong(f"{name} is claimed by process {taker}, and process {process} says what came of it")

    def _lasts(self, until: int) -> bool:
        """Whether a claim surely is not over. What was decided by a clock that is another by now proves nothing."""
        return until > self.world.clock.now_s() and not self.world.climate.clock_steps

    def _wrong(self, text: str) -> NoReturn:
        self.world.violation("crash", text)


PARTS: Final = (Leases, Claims)
