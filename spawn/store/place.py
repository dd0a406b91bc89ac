"""What is asked of a place where the books are kept, whichever engine keeps them there.

Invariant: what depends on the engine is asked of its place, and nothing outside this room knows which it is. The name
of a place is for people, and never holds a password.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from spawn_ledger.tx import Tx

from spawn.store.database import Database, DatabaseFailed, StoreError

if TYPE_CHECKING:
    from sqlalchemy import Connection

OnFatal = Callable[[DatabaseFailed], None] | None


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What only a server's connections are opened with.

    `connections` is how many transactions a process has under way at most. `retries`, for tests, is the share of
    statements that fail as they do where another transaction came first (SQLSTATE 40001).
    """

    connections: int = 8
    retries: float = 0.0


ALONE: Final = Options()
"""Those of a command."""


class NoFile(StoreError):
    """What was asked for is done with the file of an embedded database, and the books are elsewhere."""


class Place(Protocol):
    """A place for the books. Everything raises StoreError where it cannot be used."""

    @property
    def name(self) -> str:
        """What an operator knows it by."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether several processes may write it."""
        ...

    def file(self, or_else: str) -> Path:
        """The file that it is; raises NoFile, which says `or_else`, where it is none."""
        ...

    def version(self) -> str | None:
        """The version of its schema; None when it has none, or is not there. Changes nothing.

        Raises UnfinishedCopy where the books are still on their way here.
        """
        ...

    def migrating(self) -> AbstractContextManager["Connection"]:
        """SQLAlchemy's connection for migrations, while nobody else may migrate. Creates a file that is missing."""
        ...

    async def open(self, options: Options = ALONE, on_fatal: OnFatal = None) -> Database:
        """Open what exists, for a process that writes."""
        ...

    async def open_reader(self) -> Database:
        """Open what exists, for a process that only looks, beside those that write."""
        ...

    def snapshot(self) -> AbstractContextManager[Tx]:
        """One consistent view, beside whoever writes. It refuses to write; and it blocks: it is for commands."""
        ...
