"""What happens to a wallet's things, listed, or waited for.

Invariant: what is shown is what was told: an event is kept as it was encoded when it happened.
"""

import asyncio

import msgspec
from spawn_ledger.tx import Tx
from spawn_schemas.events import EventList, EventView
from spawn_schemas.ids import Address

from spawn.domain.events import Page, Query, Seen, cursor
from spawn.services import views
from spawn.services.calls import Acted, Context, Read
from spawn.services.event_watch import Watch
from spawn.services.moments import moment
from spawn.store import events as rows
from spawn.store.database import Database


def view(event: Seen) -> EventView:
    """The event as the wire shows it; a webhook's body is the JSON of this."""
    return EventView(
        id=cursor(event.seq),
        type=event.type,
        resource=event.resource,
        at=moment(event.at),
        data=msgspec.Raw(event.data.encode()),
    )


async def look(db: Database, wallet: Address, asked: Query) -> Page:
    """What there is now of what is asked for. Raises DatabaseFailed."""
    return rows.page_from(await db.read(rows.SELECT_SEEN, rows.seen_params(wallet, asked)), asked)


class ListEvents(Read):
    """`GET /v1/events`, oldest first, waiting for the first of them if asked to."""

    def __init__(self, asked: Query, watch: Watch, *, wait_s: int) -> None:
        self._asked = asked
        self._watch = watch
        self._wait_s = wait_s

    async def wait(self, db: Database, wallet: Address, now: int) -> None:
        """Until there is something to tell, or the time is over. What was not asked for is not looked at again."""
        if self._wait_s == 0:
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + self._wait_s
        while (left_s := end - loop.time()) > 0 and not self._watch.is_stopped:
            told = self._watch.told
            page = await look(db, wallet, self._asked)
            if page.events or page.gap:
                return
            self._asked = msgspec.structs.replace(self._asked, after=page.after)
            if not page.has_more:
                await self._watch.changed(wallet, page, told=told, timeout_s=left_s)

    def act(self, tx: Tx, context: Context) -> Acted:
        params = rows.seen_params(context.wallet, self._asked)
        page = rows.page_from(tx.all(rows.SELECT_SEEN, params), self._asked)
        return Acted(
            answer=views.encode(
                EventList(
                    events=tuple(map(view, page.events)),
                    next_cursor=cursor(page.after),
                    has_more=page.has_more,
                    gap=page.gap,
                )
            )
        )
