"""What the daemon must not forget: commands and what came of them, leases, and what the service wants.

Invariant: a command is written down before it is acted on, and each fact is committed and flushed when its method
returns. Whatever instant the daemon dies at, the next one finds each command either not begun, begun, or ended with
its answer; an ended one is never begun again.

The calls block for as long as the disk takes to flush. They are few, and the daemon's other work waits for them: an
answer that was told and then forgotten would be worse.
"""

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Final

import msgspec
from spawn_schemas.ids import CommandId, RentalId
from spawn_schemas.orders import (
    Ack,
    Command,
    Desired,
    DestroyInstance,
    Exec,
    Logs,
    Problem,
    ResumeInstance,
    StartInstance,
    StopInstance,
)

from spawn_hostagent.commands.journal_file import JournalError, open_file
from spawn_hostagent.commands.orders import generation_of, rental_of

KEPT_S: Final = 7 * 86_400
"""How long a told result is kept after its command's end; by then the service has asked for it or never will."""
ASKED_KEPT_S: Final = 3600
"""How long we keep what a tenant's `exec` or `logs` answered, as the service does: it may hold his secrets."""
ASKED_BYTES_MAX: Final = 64 * 1024 * 1024
"""How much of that is kept at once; the oldest goes first."""
RENTAL_KEPT_S: Final = 90 * 86_400
"""How long we know which generations of a rental there were; every command to them has long expired."""

_log: Final = logging.getLogger(__name__)
_commands: Final = msgspec.json.Decoder(Command)
_acks: Final = msgspec.json.Decoder(Ack)


class Stage(Enum):
    """How far a command has come."""

    RECEIVED = "received"
    RUNNING = "running"
    ENDED = "ended"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A command as the journal has it; `ack` once it has ended, `is_new` where it was not there before."""

    stage: Stage
    ack: Ack | None = None
    is_new: bool = False


class Generations(msgspec.Struct, frozen=True, kw_only=True):
    """The newest generation of a rental that a command is or was about, and the newest to be destroyed; -1 for none."""

    seen: int = -1
    destroyed: int = -1


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """Until when a container may run, by the service's clock; and how much it may send through the tunnel."""

    expires_at: int
    up_mbit: int | None = None


class Journal:
    """One file, one connection, one thread."""

    def __init__(self, connection: sqlite3.Connection, set_aside: Path | None = None) -> None:
        self._db = connection
        self.set_aside = set_aside
        """Where a journal went that could not be read; None where it could."""
        self._asked_bytes = self._count_asked()

    @classmethod
    def open(cls, path: Path, factory: type[sqlite3.Connection] = sqlite3.Connection) -> "Journal":
        """The journal in this file, made where there is none. Raises JournalError."""
        return cls(*open_file(path, factory))

    def close(self) -> None:
        self._db.close()

    # --- commands ---------------------------------------------------------------------------------------------

    def receive(self, command: Command, now_s: int) -> Entry:
        """Write a command down, unless it is there; say how far it has come."""
        with self._write():
            row = self._one("SELECT state, ack FROM command WHERE command_id = ?", command.command_id)
            if row is not None:
                return Entry(stage=Stage(row[0]), ack=None if row[1] is None else _acks.decode(row[1]))
            self._run(
                "INSERT INTO command (command_id, expires_at, state, body, changed_at)"
                " VALUES (?, ?, 'received', ?, ?)",
                (command.command_id, command.expires_at, msgspec.json.encode(command), now_s),
            )
        return Entry(stage=Stage.RECEIVED, is_new=True)

    def begin(self, command_id: CommandId, now_s: int) -> None:
        """From here on the command may have had an effect."""
        with self._write():
            self._run(
                "UPDATE command SET state = 'running', changed_at = ? WHERE command_id = ? AND state = 'received'",
                (now_s, command_id),
            )

    def finish(self, command: Command, ack: Ack, now_s: int) -> None:
        """Keep what came of a command, and what follows from it; its order, which may hold secrets, is erased."""
        text, is_asked = msgspec.json.encode(ack), isinstance(command.order, Exec | Logs)
        # What is gone may be destroyed once more, and a destroy has a hundred years to begin in.
        until = now_s if isinstance(command.order, DestroyInstance) else command.expires_at
        with self._write():
            ended = self._run(
                "UPDATE command SET state = 'ended', body = NULL, ack = ?, changed_at = ?, is_asked = ?,"
                " expires_at = min(expires_at, ?) WHERE command_id = ? AND state != 'ended'",
                (text, now_s, is_asked, until, command.command_id),
            ).rowcount
            if ack.state == "succeeded":
                self._follow(command, now_s)
        if is_asked and ended:
            self._asked_bytes += len(text)
            if self._asked_bytes > ASKED_BYTES_MAX:
                self._empty_oldest()

    def unfinished(self) -> tuple[tuple[Command, Stage], ...]:
        """What was received and has not ended, in the order of arrival."""
        rows = self._run(
            "SELECT command_id, body, state FROM command WHERE state != 'ended' ORDER BY number"
        ).fetchall()
        found = ((self._readable(command_id, body), Stage(state)) for command_id, body, state in rows)
        return tuple((command, stage) for command, stage in found if command is not None)

    def _readable(self, command_id: CommandId, body: bytes) -> Command | None:
        """The command, or None where another version of the daemon took what this one does not know: it ends so."""
        try:
            command: Command = _commands.decode(body)
        except msgspec.DecodeError as error:
            self._give_up(command_id, f"This daemon does not know the order that another began: {error}")
            return None
        return command

    def untold(self) -> tuple[Ack, ...]:
        """Results that no session of the link has carried yet."""
        rows = self._run("SELECT ack FROM command WHERE state = 'ended' AND told = 0 ORDER BY number")
        return tuple(_acks.decode(ack) for (ack,) in rows)

    def told(self, command_ids: Iterable[CommandId]) -> None:
        with self._write():
            for command_id in command_ids:
                self._run(
                    "UPDATE command SET told = 1 WHERE command_id = ? AND state = 'ended'", (command_id,)
                )

    def prune(self, now_s: int) -> None:
        """Forget what nobody can ask for any more; what has not expired is kept, so that it cannot begin again."""
        with self._write():
            self._run(
                "DELETE FROM command WHERE is_asked = 1 AND changed_at < ? AND expires_at < ?",
                (now_s - ASKED_KEPT_S, now_s),
            )
            old = "SELECT command_id, ack FROM command WHERE is_asked = 1 AND changed_at < ?"
            for command_id, ack in self._run(old, (now_s - ASKED_KEPT_S,)).fetchall():
                self._empty(command_id, ack)
            self._asked_bytes = self._count_asked()
            self._run(
                "DELETE FROM command WHERE state = 'ended' AND told = 1 AND changed_at < ? AND expires_at < ?",
                (now_s - KEPT_S, now_s - KEPT_S),
            )
            self._run(
                "DELETE FROM rental WHERE changed_at < ? AND rental_id NOT IN"
                " (SELECT rental_id FROM lease UNION SELECT rental_id FROM desired)",
                (now_s - RENTAL_KEPT_S,),
            )
            self._run(
                "DELETE FROM lease WHERE expires_at < ? AND rental_id NOT IN (SELECT rental_id FROM desired)",
                (now_s - RENTAL_KEPT_S,),
            )

    # --- rentals ----------------------------------------------------------------------------------------------

    def generations(self, rental_id: RentalId, now_s: int) -> Generations:
        """By the commands that succeeded, and by those that may still."""
        row = self._one("SELECT seen, destroyed FROM rental WHERE rental_id = ?", rental_id)
        seen, destroyed = row or (-1, -1)
        for command, stage in self.unfinished():
            if rental_of(command.order) != rental_id or (
                stage is Stage.RECEIVED and now_s >= command.expires_at
            ):
                continue
            seen = max(seen, generation_of(command.order))
            if isinstance(command.order, DestroyInstance):
                destroyed = max(destroyed, command.order.generation)
        return Generations(seen=seen, destroyed=destroyed)

    def leases(self) -> dict[tuple[RentalId, int], Lease]:
        rows = self._run("SELECT rental_id, generation, expires_at, up_mbit FROM lease")
        return {(name, number): Lease(expires_at=until, up_mbit=up) for name, number, until, up in rows}

    def up_mbit(self, rental_id: RentalId) -> int | None:
        """What its newest generation may send in Mbit/s, where its order said so."""
        query = "SELECT up_mbit FROM lease WHERE rental_id = ? ORDER BY generation DESC LIMIT 1"
        row = self._one(query, rental_id)
        return None if row is None else row[0]

    def desired(self) -> dict[RentalId, Desired]:
        rows = self._run("SELECT rental_id, generation, state, lease_expires_at FROM desired")
        return {
            name: Desired(rental_id=name, generation=number, state=state, lease_expires_at=until)
            for name, number, state, until in rows
        }

    def want(self, wanted: Iterable[Desired]) -> None:
        """Keep all that the service wants; what is not in it is wanted no more, and its lease runs out."""
        entries = {entry.rental_id: entry for entry in wanted}
        leases = self.leases()
        moved = [
            entry
            for entry in entries.values()
            if (lease := leases.get((entry.rental_id, entry.generation))) is None
            or lease.expires_at != entry.lease_expires_at
        ]
        # It comes each minute, and a disk need not hear what it knows.
        if not moved and entries == self.desired():
            return
        with self._write():
            self._run("DELETE FROM desired")
            for entry in entries.values():
                self._desire(entry)
            for entry in moved:
                self._lease(entry.rental_id, entry.generation, entry.lease_expires_at)

    # --- facts ------------------------------------------------------------------------------------------------

    def fact(self, name: str) -> int | None:
        row = self._one("SELECT value FROM fact WHERE name = ?", name)
        return None if row is None else row[0]

    def set_fact(self, name: str, value: int) -> None:
        with self._write():
            self._set(name, value)

    # --- inside -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _write(self) -> Iterator[None]:
        self._run("BEGIN IMMEDIATE")
        try:
            yield
            self._run("COMMIT")
        except BaseException:
            # After some failures SQLite has rolled back by itself.
            if self._db.in_transaction:
                self._run("ROLLBACK")
            raise

    def _empty_oldest(self) -> None:
        """Forget answers until half of what may be kept is left."""
        left = self._count_asked()
        rows = self._run("SELECT command_id, ack FROM command WHERE is_asked = 1 ORDER BY number").fetchall()
        with self._write():
            for command_id, ack in rows:
                if left <= ASKED_BYTES_MAX // 2:
                    break
                left -= len(ack) - self._empty(command_id, ack)
        self._asked_bytes = self._count_asked()

    def _empty(self, command_id: CommandId, text: bytes) -> int:
        """Forget what the answer was, not that there was one: it could begin again. Return how long it is then."""
        ack = _acks.decode(text)
        emptied = msgspec.json.encode(msgspec.structs.replace(ack, result=None))
        if ack.result is not None:
            self._run("UPDATE command SET ack = ? WHERE command_id = ?", (emptied, command_id))
        return len(emptied)

    def _count_asked(self) -> int:
        """The bytes of what `exec` and `logs` answered."""
        found: int = self._one("SELECT coalesce(sum(length(ack)), 0) FROM command WHERE is_asked = 1")[0]
        return found

    def _give_up(self, command_id: CommandId, message: str) -> None:
        _log.error("Command %s: %s", command_id, message)
        ack = Ack(command_id=command_id, state="failed", problem=Problem(code="internal", message=message))
        with self._write():
            self._run(
                "UPDATE command SET state = 'ended', body = NULL, ack = ? WHERE command_id = ?",
                (msgspec.json.encode(ack), command_id),
            )

    def _one(self, query: str, *values: Any) -> Any:
        return self._run(query, values).fetchone()

    def _run(self, query: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(query, values)
        except sqlite3.Error as error:
            raise JournalError(
                f"The journal cannot be read or written: {error}. Look whether the disk is full or broken."
            ) from error

    def _set(self, name: str, value: int) -> None:
        self._run(
            "INSERT INTO fact VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )

    def _see(self, order: StartInstance | ResumeInstance | DestroyInstance, now_s: int) -> None:
        destroyed = order.generation if isinstance(order, DestroyInstance) else -1
        self._run(
            "INSERT INTO rental VALUES (?, ?, ?, ?) ON CONFLICT (rental_id) DO UPDATE SET"
            " seen = max(seen, excluded.seen), destroyed = max(destroyed, excluded.destroyed),"
            " changed_at = excluded.changed_at",
            (order.rental_id, order.generation, destroyed, now_s),
        )

    def _follow(self, command: Command, now_s: int) -> None:
        """A command is a word of the service, too: what it did is wanted until the service says otherwise."""
        if isinstance(command.order, StartInstance | ResumeInstance | DestroyInstance):
            self._see(command.order, now_s)
        match command.order:
            case StartInstance() | ResumeInstance() as order:
                # An older command that comes late must not shorten what a newer word granted.
                row = self._one(
                    "SELECT expires_at FROM lease WHERE rental_id = ? AND generation = ?",
                    order.rental_id,
                    order.generation,
                )
                until = max(order.lease_expires_at, row[0] if row else 0)
                self._lease(order.rental_id, order.generation, until, getattr(order, "up_mbit", None))
                self._desire(
                    Desired(
                        rental_id=order.rental_id,
                        generation=order.generation,
                        state="running",
                        lease_expires_at=until,
                    )
                )
            case StopInstance() as order:
                self._run(
                    "UPDATE desired SET state = 'stopped' WHERE rental_id = ? AND generation = ?",
                    (order.rental_id, order.generation),
                )
            case DestroyInstance() as order:
                which = (order.rental_id, order.generation)
                self._run("DELETE FROM desired WHERE rental_id = ? AND generation <= ?", which)
                self._run("DELETE FROM lease WHERE rental_id = ? AND generation <= ?", which)
            case _:
                pass

    def _desire(self, entry: Desired) -> None:
        self._run(
            "INSERT OR REPLACE INTO desired VALUES (?, ?, ?, ?)",
            (entry.rental_id, entry.generation, entry.state, entry.lease_expires_at),
        )

    def _lease(self, rental_id: RentalId, number: int, until: int, up_mbit: int | None = None) -> None:
        self._run(
            "INSERT INTO lease VALUES (?, ?, ?, ?) ON CONFLICT (rental_id, generation) DO UPDATE SET"
            " expires_at = excluded.expires_at, up_mbit = coalesce(excluded.up_mbit, up_mbit)",
            (rental_id, number, until, up_mbit),
        )


def offset_saver(journal: Journal) -> Callable[[int], None]:
    """Keeps how far the service's clock is from ours."""
    return lambda offset_ms: journal.set_fact("clock_offset_ms", offset_ms)
