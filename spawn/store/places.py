"""Where the books are kept, read from `SPAWN_DATABASE_URL`: a file of SQLite's, or a PostgreSQL database.

Invariant: reading a URL opens nothing, and no message repeats it: it may hold a password.
"""

from pathlib import Path

from spawn.store.place import Place
from spawn.store.sqlite_place import SqliteFile


def place_of(url: str) -> Place:
    """The place that a database URL names; nothing is opened. Raises ValueError for what is none.

    The message never repeats the URL, which may hold a password.
    """
    scheme, separator, _ = url.partition("://")
    if separator and scheme in ("postgresql", "postgres"):
        # Serving from a file does without the driver, which takes a tenth of a second to import.
        from spawn.store.postgres_place import PostgresServer  # noqa: PLC0415 - see above

        return PostgresServer(url)
    return SqliteFile(_path(url))


def _path(url: str) -> Path:
    scheme, separator, rest = url.partition("://")
    if scheme != "sqlite" or not separator:
        raise ValueError(
            "a database URL is sqlite:///relative/path.db, sqlite:////absolute/path.db, or "
            "postgresql://user:password@host:5432/database"
        )
    if not rest.startswith("/"):
        raise ValueError("a SQLite URL names no host: write sqlite:/// and then the path")
    path = rest[1:]
    if path in ("", ":memory:") or path.endswith("/") or "?" in path or "#" in path:
        raise ValueError("a SQLite URL ends with the path of a file and has no options: sqlite:///spawn.db")
    return Path(path)


def file_of(url: str) -> Path:
    """The file of an embedded database. Raises ValueError for what is no URL, and NoFile for another engine's."""
    return place_of(url).file("this is done with the file of an embedded database, sqlite:///….")
