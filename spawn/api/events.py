"""`/v1/events`: what happened to the wallet's things; as a list, by waiting for it, or as it happens."""

import math
from typing import Annotated, Final

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from spawn_schemas import events as wire

from spawn.api.arrivals import Arrival
from spawn.api.priced import priced
from spawn.api.replies import Reply
from spawn.api.services import Services
from spawn.api.streams import OpenStream, StreamReply, asks_for_stream, refuse_repetition
from spawn.domain import charges, events
from spawn.domain.events import Query
from spawn.services.calls import Proof
from spawn.services.feed import ListEvents

_LAST_EVENT_ID: Final = "last-event-id"

After = Annotated[
    str | None,
    QueryParameter(
        description="`next_cursor` of the page before, or the id of an event; by default from the oldest that is kept.",
        schema_extra={"pattern": events.CURSOR_PATTERN},
    ),
]
Limit = Annotated[int, QueryParameter(ge=1, le=100, description="Events per page.")]
Kind = Annotated[
    str | None,
    QueryParameter(
        name="type",
        description="One type, or a family such as `server.*`.",
        schema_extra={"enum": sorted(wire.PATTERNS)},
    ),
]
Resource = Annotated[
    str | None,
    QueryParameter(
        description="What they happened to, such as a server's id.",
        schema_extra={"minLength": 1, "maxLength": events.RESOURCE_MAX},
    ),
]
Wait = Annotated[
    int, QueryParameter(ge=0, le=60, description="Seconds to wait for an event where there is none yet.")
]


@get("/v1/events", **priced(charges.IDENTIFIED, "List or follow what happens to your things"))
async def list_events(
    arrival: NamedDependency[Arrival],
    services: NamedDependency[Services],
    after: After = None,
    limit: Limit = 50,
    kind: Kind = None,
    resource: Resource = None,
    wait: Wait = 0,
) -> Response[wire.EventList]:
    is_stream = asks_for_stream(arrival.headers.get("accept", ""))
    if is_stream:
        # Whoever comes back to a stream says here where it broke off, and repeats the address it began with.
        after = arrival.headers.get(_LAST_EVENT_ID) or after
    asked = events.query(after=after, pattern=kind, resource=resource, limit=limit)
    if is_stream:
        return await _stream(arrival, services, asked)
    return await services.gate.run(arrival, lambda: ListEvents(asked, services.streams.watch, wait_s=wait))


async def _stream(arrival: Arrival, services: Services, asked: Query) -> Reply:
    """The gate decides as for any read; what it lets pass is answered for as long as the proof holds."""
    opened = await services.gate.run(arrival, lambda: OpenStream(services.streams))
    if arrival.identity is None or opened.status != 200:
        return opened
    refuse_repetition(opened)
    by_session = arrival.identity.proof is Proof.SESSION
    return StreamReply(
        services.streams,
        arrival.identity.wallet,
        asked,
        opened,
        request_id=arrival.request_id,
        lasts_s=arrival.identity.valid_before - services.clock.now_s() if by_session else math.inf,
    )


HANDLERS = (list_events,)
