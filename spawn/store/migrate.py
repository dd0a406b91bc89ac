"""Bringing a database to the schema this code was written for, and refusing to serve any other.

Alembic applies the migrations, each in one transaction, and is imported only then: serving reads the version with
plain SQLite. Invariant: a revision is named by the number that its file name begins with, and numbers only grow.
"""

import contextlib
import re
from pathlib import Path
from typing import Any, Final

import spawn
from spawn.store.database import StoreError
from spawn.store.owner import Owner
from spawn.store.sqlite import connect_reader, connect_writer

_REVISION_FILE: Final = re.compile(r"(\d{4})_\w+\.py")
_HAS_VERSION: Final = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
_SELECT_VERSION: Final = "SELECT version_num FROM alembic_version"


class SchemaMismatch(StoreError):
    """The database has not the schema this code was written for."""


def parse_database_url(url: str) -> Path:
    """Return the file of `sqlite:///relative.db` or `sqlite:////absolute.db`. Raises ValueError for others.

    The message never repeats the URL, which may hold a password.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme.partition("+")[0] in ("postgresql", "postgres"):
        raise ValueError("the PostgreSQL engine is not part of this version: use sqlite:///spawn.db")
    if scheme != "sqlite" or not separator:
        raise ValueError("a database URL is sqlite:///relative/path.db or sqlite:////absolute/path.db")
    if not rest.startswith("/"):
        raise ValueError("a SQLite URL names no host: write sqlite:/// and then the path")
    path = rest[1:]
    if path in ("", ":memory:") or path.endswith("/") or "?" in path or "#" in path:
        raise ValueError("a SQLite URL ends with the path of a file and has no options: sqlite:///spawn.db")
    return Path(path)


def head_version() -> str:
    """Return the version this code was written for."""
    names = (_REVISION_FILE.fullmatch(file.name) for file in (_script_folder() / "versions").iterdir())
    return max(name[1] for name in names if name is not None)


def current_version(path: Path) -> str | None:
    """Return the version of the database at `path`; None when it has none, or is not there. Changes no data.

    Raises StoreError when the file is no SQLite database.
    """
    if not path.exists():
        return None
    with contextlib.closing(connect_reader(path)) as connection:
        if connection.execute(_HAS_VERSION).fetchone() is None:
            return None
        row = connection.execute(_SELECT_VERSION).fetchone()
    return None if row is None else str(row[0])


def require_current(url: str) -> None:
    """Raise SchemaMismatch unless the database has exactly the schema this code was written for."""
    path = parse_database_url(url)
    check_version(path, current=current_version(path), head=head_version())


def check_version(path: Path, *, current: str | None, head: str) -> None:
    """Raise SchemaMismatch, saying what to do about it, unless `current` is `head`."""
    _refuse_newer(path, current, head)
    if current is None:
        raise SchemaMismatch(f"database {path} has no tables yet: run `spawn migrate`")
    if current != head:
        raise SchemaMismatch(
            f"database {path} is at version {current}, this spawn needs {head}: run `spawn migrate`"
        )


def migrate(url: str) -> list[str]:
    """Bring the database to `head_version`, creating it when missing; return the versions applied, in order.

    A migration that fails leaves the database at the version before it. Raises ValueError for the URL,
    DatabaseBusy while a service runs on it, UnsuitableFilesystem, SchemaMismatch when it is newer than this code.
    """
    path = parse_database_url(url)
    owner = Owner.claim(path)
    try:
        _refuse_newer(path, current_version(path), head_version())
        return _upgrade(path)
    finally:
        owner.release()


def _refuse_newer(path: Path, current: str | None, head: str) -> None:
    if current is not None and current > head:
        raise SchemaMismatch(
            f"database {path} is at version {current}, which is newer than this spawn: upgrade spawn"
        )


def _upgrade(path: Path) -> list[str]:
    # SQLAlchemy takes a noticeable part of a second to import, and serving does not need it.
    from alembic import command  # noqa: PLC0415 - see above
    from alembic.config import Config  # noqa: PLC0415 - see above
    from sqlalchemy import Connection, create_engine, event  # noqa: PLC0415 - see above
    from sqlalchemy.pool import NullPool  # noqa: PLC0415 - see above

    applied: list[str] = []

    def note(**told: Any) -> None:
        applied.append(told["step"].up_revision_id)

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    config = Config()
    config.set_main_option("script_location", str(_script_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    engine = create_engine("sqlite://", creator=lambda: connect_writer(path), poolclass=NullPool)
    # The driver would begin a transaction only before the first change of data, not of schema.
    event.listen(engine, "begin", begin)
    with engine.connect() as connection:
        config.attributes.update(connection=connection, on_version_apply=note)
        command.upgrade(config, "head")
    return applied


def _script_folder() -> Path:
    """The migrations: inside an installed wheel, or beside the package in a checkout."""
    package = Path(spawn.__file__).parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"
