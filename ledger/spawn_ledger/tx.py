"""The little of a database that money needs: a transaction somebody else opened and will commit.

Queries use `:name` placeholders and only SQL that SQLite and PostgreSQL both accept.
"""

from collections.abc import Mapping
from typing import Any, Protocol

Params = Mapping[str, Any]


class Row(Protocol):
    """One result row, read by column name."""

    def __getitem__(self, column: str, /) -> Any: ...


class Tx(Protocol):
    """An open write transaction. Whatever is done through it commits or vanishes together."""

    def execute(self, sql: str, params: Params = ..., /) -> int:
        """Run one statement; return the number of rows it changed."""
        ...

    def one(self, sql: str, params: Params = ..., /) -> Row | None:
        """Return the first row, or None."""
        ...

    def all(self, sql: str, params: Params = ..., /) -> list[Row]:
        """Return every row; the caller bounds the query."""
        ...
