"""Tells operators, once an hour, of what goes on failing until a person looks.

Invariant: a line of it is at the level CRITICAL and begins with `incident:`, which is what an alarm is set on.
"""

import logging
from typing import Final

from spawn.services import incidents
from spawn.store.database import Database

log = logging.getLogger(__name__)

TELL_S: Final = 3600


class Incidents:
    """Remembers in this process alone what was told: another that takes over tells it again."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._told: dict[str, int] = {}

    async def tick(self, now: int) -> None:
        found = await incidents.look(self._db, now)
        told = self._told
        self._told = {}
        for incident in found:
            last = told.get(incident.key)
            # What was told in the future was told before the clock was set back.
            if last is None or not last <= now < last + TELL_S:
                log.critical("incident: %s", incident.text)
                last = now
            self._told[incident.key] = last
