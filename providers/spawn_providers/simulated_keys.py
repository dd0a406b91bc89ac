"""When a key of the simulated cloud may have a second machine: its first one is gone, and it is ordered elsewhere.

Invariant: a late copy of an order never makes a second machine, because it asks for the same type in the same place.
"""

import sqlite3
from typing import Final

from spawn_schemas.ids import ServerId

from spawn_providers.base import Spec

_MAKE_WAY: Final = """
UPDATE instance SET key = NULL
WHERE key = :key AND EXISTS (
    SELECT 1 FROM step s
    WHERE s.seq = (
        SELECT seq FROM step WHERE ref = instance.ref AND at_ms <= :now_ms ORDER BY at_ms DESC, seq DESC LIMIT 1
    ) AND s.status IS NULL AND (s.provider_type, instance.location) <> (:provider_type, :location)
)
"""


def make_way(db: sqlite3.Connection, key: ServerId, spec: Spec, now_ms: int) -> None:
    """Free the key for an order in another place than where its machine was, if that is gone."""
    place = {"provider_type": spec.provider_type, "location": spec.location}
    db.execute(_MAKE_WAY, {"key": key, "now_ms": now_ms, **place})
