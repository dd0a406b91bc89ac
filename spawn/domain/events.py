"""Following a wallet's events: cursors, what is asked for, and what a look at the table shows of that.

Invariant: whoever asks on with the cursor of each page sees every event that it asked for once, in order, however many
others it did not ask for; and is told where some are not kept any more.
"""

import re
from collections.abc import Sequence
from typing import Final

import msgspec
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.events import ANY, PATTERNS, matches

_CURSOR: Final = re.compile(r"evt_(0|[1-9][0-9]{0,17})")
CURSOR_PATTERN: Final = r"^evt_(0|[1-9][0-9]{0,17})$(?!\n)"
RESOURCE_MAX: Final = 128
WINDOW: Final = 200
"""Events that one look reads at least where only some are asked for: bounds how long a look takes."""


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for: events after number `after`, of types that match `pattern`, that happened to `resource`.

    Without `after`, from the oldest that is kept.
    """

    after: int | None = None
    pattern: str = ANY
    resource: str | None = None
    limit: int = 50

    @property
    def is_filtered(self) -> bool:
        return self.pattern != ANY or self.resource is not None

    @property
    def window(self) -> int:
        """How many of the wallet's events a look reads: one more than asked for shows whether there are more."""
        return max(self.limit + 1, WINDOW) if self.is_filtered else self.limit + 1

    def wants(self, seen: "Seen") -> bool:
        return matches(self.pattern, seen.type) and self.resource in {None, seen.resource}


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One event as it is kept. `data` is JSON, `at` unix seconds."""

    seq: int
    type: str
    resource: str
    at: int
    data: str


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The last number of the wallet's that is not kept any more, and the last that there is, of whatever wallet."""

    forgotten: int
    newest: int


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """The events found, and the number to ask on from. `has_more`: ask at once. `gap`: some are kept no more.

    `after` is a number of the wallet's own, or what was asked: those of others may be there before lower ones of its
    own. `newest` is the last that there was, of whatever wallet: where somebody who watches them all begins.
    """

    events: tuple[Seen, ...]
    after: int
    newest: int
    has_more: bool
    gap: bool

    @property
    def says_nothing(self) -> bool:
        """Whether whoever waits may go on waiting."""
        return not self.events and not self.has_more and not self.gap


def query(*, after: str | None, pattern: str | None, resource: str | None, limit: int) -> Query:
    """What a caller asks for in text. Raises `invalid_request` for what is no cursor, no type and no resource."""
    if pattern is not None and pattern not in PATTERNS:
        raise SpawnError(
            Code.INVALID_REQUEST,
            "There are no events of this type.",
            details={"types": sorted(PATTERNS)},
            next="Ask for one type such as server.running, or for a family such as server.*.",
        )
    if resource is not None and not 0 < len(resource) <= RESOURCE_MAX:
        raise SpawnError(
            Code.INVALID_REQUEST,
            f"A resource has 1 to {RESOURCE_MAX} characters.",
            next="Use the `resource` of an event, such as a server's id.",
        )
    return Query(
        after=None if after is None else read_cursor(after),
        pattern=pattern or ANY,
        resource=resource,
        limit=limit,
    )


def cursor(seq: int) -> str:
    """The name of the event with this number; a cursor is the name of the last event that was seen."""
    return f"evt_{seq}"


def read_cursor(text: str) -> int:
    """The number in a cursor. Raises `invalid_request` for a text that is none."""
    found = _CURSOR.fullmatch(text)
    if found is None:
        raise SpawnError(
            Code.INVALID_REQUEST,
            "That cursor is none of ours: they look like evt_42.",
            next="Use next_cursor of the page before, or the id of an event; or none, to begin with the oldest.",
        )
    return int(found[1])


def page(asked: Query, seen: Sequence[Seen], kept: Kept) -> Page:
    """What `seen`, the wallet's next `asked.window` events, and `kept`, read together, are to who asked."""
    after, newest = kept.forgotten if asked.after is None else asked.after, kept.newest
    if after > newest:
        # Only a restored backup knows less than it once told; its events are told again.
        return Page(events=(), after=kept.forgotten, newest=newest, has_more=newest > 0, gap=True)
    gap = after < kept.forgotten
    wanted = tuple(event for event in seen if asked.wants(event))
    if len(wanted) > asked.limit:
        wanted = wanted[: asked.limit]
        return Page(events=wanted, after=wanted[-1].seq, newest=newest, has_more=True, gap=gap)
    # Who was told of a gap has it behind him.
    last = seen[-1].seq if seen else max(after, kept.forgotten)
    return Page(events=wanted, after=last, newest=newest, has_more=len(seen) == asked.window, gap=gap)
