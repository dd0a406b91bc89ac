"""Bringing a database to the schema this code was written for, and refusing to serve any other.

Alembic applies the migrations in transactions, and is imported only then: serving reads the version with plain SQL.
Invariant: a revision is named by the number that its file name begins with, and numbers only grow.
"""

import re
from pathlib import Path
from typing import Any, Final

import spawn
from spawn.store.database import StoreError
from spawn.store.place import Place
from spawn.store.places import place_of

_REVISION_FILE: Final = re.compile(r"(\d{4})_\w+\.py")


class SchemaMismatch(StoreError):
    """The database has not the schema this code was written for."""


def head_version() -> str:
    """Return the version this code was written for."""
    names = (_REVISION_FILE.fullmatch(file.name) for file in (_script_folder() / "versions").iterdir())
    return max(name[1] for name in names if name is not None)


def require_current(url: str) -> None:
    """Raise SchemaMismatch unless the database has exactly the schema this code was written for."""
    place = place_of(url)
    check_version(place.name, current=place.version(), head=head_version())


def check_version(name: str, *, current: str | None, head: str) -> None:
    """Raise SchemaMismatch, saying what to do about the database of this name, unless `current` is `head`."""
    _refuse_newer(name, current, head)
    if current is None:
        raise SchemaMismatch(f"database {name} has no tables yet: run `spawn migrate`")
    if current != head:
        raise SchemaMismatch(
            f"database {name} is at version {current}, this spawn needs {head}: run `spawn migrate`"
        )


def migrate(url: str) -> list[str]:
    """Bring the database to `head_version`, creating a missing file; return the versions applied, in order.

    A migration that fails leaves the database at a version before it. Raises ValueError for the URL, SchemaMismatch
    when it is newer than this code, DatabaseBusy while a service runs on a file, and other StoreErrors.
    """
    place = place_of(url)
    _refuse_newer(place.name, place.version(), head_version())
    return upgrade(place)


def _refuse_newer(name: str, current: str | None, head: str) -> None:
    if current is not None and current > head:
        raise SchemaMismatch(
            f"database {name} is at version {current}, which is newer than this spawn: upgrade spawn"
        )


def upgrade(place: Place, until: str = "head") -> list[str]:
    """As `migrate`, for whoever has looked at the place's version; `until` is the last version to apply."""
    # SQLAlchemy takes a noticeable part of a second to import, and serving does not need it.
    from alembic import command  # noqa: PLC0415 - see above
    from alembic.config import Config  # noqa: PLC0415 - see above

    applied: list[str] = []

    def note(**told: Any) -> None:
        applied.append(told["step"].up_revision_id)

    config = Config()
    config.set_main_option("script_location", str(_script_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with place.migrating() as connection:
        config.attributes.update(connection=connection, on_version_apply=note)
        command.upgrade(config, until)
    return applied


def _script_folder() -> Path:
    """The migrations: inside an installed wheel, or beside the package in a checkout."""
    package = Path(spawn.__file__).parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"
