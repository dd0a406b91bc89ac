"""One consistent look at a database, for commands that run beside the service."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from spawn_ledger.tx import Tx

from spawn.store.sqlite import connect_reader
from spawn.store.sqlite_writer import SqliteTx


@contextlib.contextmanager
def snapshot(path: Path) -> Iterator[Tx]:
    """One consistent view of the database at `path`, beside whoever writes it. It refuses to write.

    Blocks; meant for commands, not for the event loop. Raises StoreError when there is no SQLite database.
    """
    with contextlib.closing(connect_reader(path)) as connection:
        connection.execute("BEGIN")
        yield SqliteTx(connection)
