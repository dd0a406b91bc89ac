"""The database as the services see it: one verb that reads and one that writes.

Invariant: what a `write` answered is durable. An error means that nothing of it was kept; only after
`DatabaseFailed` it takes a restart to tell.
"""

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from spawn_ledger.tx import Params, Row, Tx
from spawn_schemas.errors import Code, SpawnError

T = TypeVar("T")

NO_PARAMS: Final[Params] = {}


class StoreError(Exception):
    """A database that cannot be used. The message is for the operator and says what to do next."""


class DatabaseBusy(StoreError):
    """Another process owns this database. Nothing was created or changed."""


class UnsuitableFilesystem(StoreError):
    """The database would lie where locks and flushes cannot be relied on. Nothing was created or changed."""


class DatabaseFailed(StoreError):
    """The engine stopped, or was closed. A restart shows whether the writes it did not answer were kept."""


class Database(Protocol):
    """An engine; `tests/contract/test_database.py` is what every engine passes."""

    @property
    def exclusive(self) -> bool:
        """True when this process is surely the only writer: a claim left by an earlier process is stale."""
        ...

    async def read(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        """Run one query and return all its rows; the caller bounds it. It sees every write answered before.

        Raises SpawnError(overloaded) when too many reads wait, or a server is away; DatabaseFailed when the engine
        stopped or was closed.
        """
        ...

    async def write(self, fn: Callable[[Tx], T]) -> T:
        """Run `fn` in a transaction, and return what it returned once that is durable.

        `fn` runs on another thread, and again when the engine has to retry. So it has no side effect but its
        SQL, touches a bounded number of rows, waits for nothing, and lets every error of the database pass.
        Whatever it raises undoes all it wrote and reaches the caller. Cancelling the caller does not stop it.

        Raises SpawnError(overloaded), and nothing was kept, when too many writes wait, others came first for too long,
        or a server is away; DatabaseFailed when the engine stopped or was closed.
        """
        ...

    async def close(self) -> None:
        """Finish the writes that wait, then let go of everything. Idempotent."""
        ...


def overloaded() -> SpawnError:
    """What `write` raises when its queue is full."""
    return SpawnError(
        Code.OVERLOADED, "The service is busy.", retry_after_s=1, next="Repeat the call in a second."
    )
