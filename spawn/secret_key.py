"""The key that seals secrets at rest: from the settings, or from a file beside the database made on first use."""

import os
from pathlib import Path

from spawn.settings import InvalidSetting, Settings
from spawn.store.places import place_of


def read_secret_key(settings: Settings) -> bytes:
    """32 bytes. Without `SPAWN_SECRET_KEY` a key file only its owner can read is kept beside an embedded database.

    Raises InvalidSetting where that does not hold a key, and NoFile where there is no such file to be beside.
    """
    if settings.secret_key:
        return bytes.fromhex(settings.secret_key)
    database = place_of(settings.database_url).file(
        "PostgreSQL is for several replicas, which must share a key: set SPAWN_SECRET_KEY, for example to what "
        "`openssl rand -hex 32` prints."
    )
    path = database.with_suffix(".key")
    if not path.exists():
        _create(path)
    text = path.read_text().strip()
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise InvalidSetting(
            f"{path} does not hold a key of 64 hex digits: restore it, or set SPAWN_SECRET_KEY."
        )
    return key


def _create(path: Path) -> None:
    """Write a whole key or none: a crash in between must not leave half of one."""
    fresh = path.with_suffix(f".key.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(os.urandom(32).hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
