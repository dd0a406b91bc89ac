"""The agent or the service, started as its own command starts it, in a process that a test has bent beforehand.

`python -m tests.e2e.lending_bent {spawn_hostagent,spawn} BENT ARGUMENTS…`, where BENT is JSON of `Bent`. It can have
another wall clock than the machine, less patience than in life, and a last write: SIGKILL by its own hand, at the
commit of its journal that a file names.
Invariant: the program's own code is as it is, and what is not bent is as it is in life.
"""

import os
import re
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal
from unittest import mock

import msgspec
from spawn_schemas.inventory import Isolation

LAUNCH: Final = (sys.executable, "-m", "tests.e2e.lending_bent")

Program = Literal["spawn_hostagent", "spawn"]


class Death(msgspec.Struct, frozen=True):
    """Before or after the next write of this label (`label_of`) is committed."""

    label: str
    when: Literal["before", "after"]


class Bent(msgspec.Struct, frozen=True, kw_only=True):
    """What is not as in life; nothing, by default. Times in seconds.

    `skew_s` is how far the wall clock is ahead. `deaths` is a file with JSON of `Death`s, each taken from it as it
    happens, and `writes` one that has a line for each write of the journal. `isolation` is a file that keeps what the
    canaries found, so that only the first start of many measures. `fallback_s` is when an agent without link takes to
    HTTP, `redial_s` how long it tries to open one, and waits after that, at most. The rest is the service's: until when
    a start may begin, leases, how long a host may be silent, how often it says something.
    """

    skew_s: int = 0
    deaths: str | None = None
    writes: str | None = None
    isolation: str | None = None
    fallback_s: float | None = None
    redial_s: float | None = None
    start_s: int | None = None
    lease_s: int | None = None
    offline_s: int | None = None
    beat_s: int | None = None

    def command(self, which: Program) -> tuple[str, ...]:
        """What starts it, before its own arguments."""
        return (*LAUNCH, which, msgspec.json.encode(self).decode())


def _replace(where: Any, **values: Any) -> None:
    for name, value in values.items():
        if value is not None:
            mock.patch.object(where, name, value).start()


def _skewed(read: Callable[[], Any], by: int) -> Callable[[], Any]:
    return lambda: read() + by


def bend_clock(skew_s: int) -> None:
    """From now on this process believes that it is so much later."""
    if skew_s:
        _replace(time, time=_skewed(time.time, skew_s), time_ns=_skewed(time.time_ns, skew_s * 10**9))


def label_of(sql: str, parameters: Any) -> str:
    """What a write is about: the beginning of its statement, and the command's id if it names one."""
    names = [value for value in parameters if isinstance(value, str) and value.startswith("cmd_")]
    return " ".join([re.split(r"[,(]| WHERE", sql)[0].strip(), *names[:1]])


def plan(deaths: Path, planned: list[Death]) -> None:
    """Have this in the file at once: its two ends read it at any time."""
    unfinished = deaths.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(msgspec.json.encode(planned))
    unfinished.replace(deaths)


def dying_connection(deaths: Path, writes: Path) -> type[sqlite3.Connection]:
    """A connection in which a commit may be the last thing that this process does, or the last but that."""

    def is_due(death: Death) -> bool:
        planned = msgspec.json.decode(deaths.read_bytes(), type=list[Death])
        if death not in planned:
            return False
        planned.remove(death)
        plan(deaths, planned)
        return True

    class Dying(sqlite3.Connection):
        written: str | None = None

        def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
            if sql.startswith("BEGIN"):
                self.written = None
            if self.written is None and sql.startswith(("INSERT", "UPDATE", "DELETE")):
                self.written = label_of(sql, parameters)
            if sql != "COMMIT" or self.written is None:
                return super().execute(sql, parameters)
            with writes.open("a") as book:
                book.write(self.written + "\n")
            if is_due(Death(self.written, "before")):
                os.kill(os.getpid(), signal.SIGKILL)
            done = super().execute(sql)
            if is_due(Death(self.written, "after")):
                os.kill(os.getpid(), signal.SIGKILL)
            return done

    return Dying


def _bend_agent(bent: Bent) -> None:
    # The clock is bent first.
    from spawn_hostagent.commands import journal, journal_file  # noqa: PLC0415 - see above
    from spawn_hostagent.link import dialling, fallback  # noqa: PLC0415 - see above
    from spawn_hostagent.walls import canary  # noqa: PLC0415 - see above

    _replace(fallback, EVERY_S=bent.fallback_s)
    _replace(dialling, OPEN_S=bent.redial_s, BACKOFF_MAX_S=bent.redial_s)
    if bent.deaths is not None and bent.writes is not None:
        dying = dying_connection(Path(bent.deaths), Path(bent.writes))
        _replace(journal, open_file=lambda path, _: journal_file.open_file(path, dying))
    if bent.isolation is not None:
        kept, measure = Path(bent.isolation), canary.Canary.measure

        def measured(self: canary.Canary) -> Isolation:
            if not kept.exists():
                kept.write_bytes(msgspec.json.encode(measure(self)))
            return msgspec.json.decode(kept.read_bytes(), type=Isolation)

        _replace(canary.Canary, measure=measured)


def _bend_service(bent: Bent) -> None:
    from spawn.domain import hosts  # noqa: PLC0415 - before whoever takes these figures from it

    beat_s, offline_s = bent.beat_s, bent.offline_s
    _replace(hosts, LEASE_S=bent.lease_s, OFFLINE_S=offline_s)
    if beat_s is not None:
        late = {"_LATE_S": 2 * beat_s, "SUSPECT_S": 3 * beat_s, "BEAT_PLAIN_S": beat_s}
        _replace(hosts, BEAT_RENTED_S=beat_s, BEAT_IDLE_S=beat_s, **late)
    if bent.start_s is not None:
        from spawn.services import rentals  # noqa: PLC0415 - see above

        _replace(rentals, START_S=bent.start_s)
    if offline_s is not None:
        from spawn import workers  # noqa: PLC0415 - see above
        from spawn.jobs.ticker import Job  # noqa: PLC0415 - see above

        _replace(workers, Job=lambda *, every_s, **fields: Job(every_s=min(every_s, 1), **fields))


def main() -> int:
    """Be it; return its exit status."""
    which, text, *arguments = sys.argv[1:]
    bent = msgspec.json.decode(text, type=Bent)
    bend_clock(bent.skew_s)
    if which == "spawn_hostagent":
        _bend_agent(bent)
        from spawn_hostagent.main import main as agent  # noqa: PLC0415 - what was bent comes first

        return agent(arguments)
    _bend_service(bent)
    from spawn.cli import main as service  # noqa: PLC0415 - what was bent comes first

    sys.argv[1:] = arguments
    service()
    return 0


if __name__ == "__main__":
    sys.exit(main())
