"""Where a world's books are kept: in a file that one process has, or on a server with two of them.

Invariant: whoever looks past the service, the oracle first of all, asks here, and sees what is committed.
"""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, Protocol

from spawn_ledger.tx import Tx

from spawn.store.database import Database

if TYPE_CHECKING:
    from tests.sim.process import Process
    from tests.sim.world import World

OF_FILES: Final = frozenset({"operator.backup", "operator.damage", "operator.restore"})
"""Moves that are about the file of an embedded database."""


class ProcessDatabase(Database, Protocol):
    """The database as one process has it."""

    def drop(self) -> None:
        """Let go of it as the end of a process does; what was not committed is gone."""
        ...


class Books(Protocol):
    """Those of one world. Made before it, and opened with it."""

    has_replicas: bool
    """Two processes may answer calls."""
    url: str

    def open(self, world: "World") -> None:
        """From here on this world's."""
        ...

    def of_process(self, process: "Process") -> ProcessDatabase: ...

    def rows(self, sql: str, params: dict[str, Any]) -> list[dict[str, Any]]: ...

    def tables(self) -> list[str]: ...

    def snapshot(self) -> AbstractContextManager[Tx]: ...

    def restored(self) -> None:
        """The file was exchanged for another."""
        ...

    def calm(self) -> None:
        """Faults stop."""
        ...

    def close(self) -> None: ...
