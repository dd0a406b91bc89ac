"""What a call brings and what it gets: the small vocabulary of all handlers."""

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import msgspec

from tests.emulators.hetzner.errors import ApiError, invalid
from tests.emulators.hetzner.labels import selector
from tests.emulators.hetzner.world import World

Json = dict[str, Any]
T = TypeVar("T")

PER_PAGE: Final = 25
MOST_PER_PAGE: Final = 50


class Answer(msgspec.Struct, frozen=True):
    status: int
    body: Json | None = None


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call that was let in. `ids` is what its path names; `stale_ms` is how old the lists are that it sees."""

    world: World
    ids: dict[str, str]
    query: list[tuple[str, str]]
    body: Json
    stale_ms: int = 0
    totals: bool = True

    def id(self, name: str = "id") -> int:
        text = self.ids[name]
        if not text.isdecimal():
            raise ApiError("not_found", f"there is nothing with the ID '{text}'")
        return int(text)

    def one(self, name: str) -> str | None:
        return next((value for key, value in self.query if key == name), None)

    def many(self, name: str) -> list[str]:
        """All values of a parameter that may be repeated, or list them with commas."""
        return [part for key, value in self.query if key == name for part in value.split(",")]


Handler = Callable[[Call], Answer]


def number(text: str | None, name: str, default: int) -> int:
    if text is None:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise invalid(name, "must be a positive number")
    return int(text)


_FIELDS: Final = {"created": "created_ms", "started": "started_ms", "finished": "finished_ms"}


def sort(call: Call, things: Iterable[T]) -> list[T]:
    """By each `sort=field[:asc|:desc]` of the call, the first weighing most; by id where nothing is asked."""
    made = sorted(things, key=lambda thing: int(thing.id))  # type: ignore[attr-defined]  # whatever is listed has one
    for wish in reversed(call.many("sort")):
        field, _, direction = wish.partition(":")
        name = _FIELDS.get(field, field)
        made.sort(key=lambda thing: _sortable(getattr(thing, name, None)), reverse=direction == "desc")
    return made


def _sortable(value: Any) -> tuple[bool, Any]:
    return (value is not None, 0 if value is None else value)


def page(call: Call, key: str, things: list[T], view: Callable[[T], Json]) -> Answer:
    """One page of what was found. Without totals, what they would say is null, as the description allows."""
    number_ = number(call.one("page"), "page", 1)
    per_page = min(number(call.one("per_page"), "per_page", PER_PAGE), MOST_PER_PAGE)
    last = max(1, -(-len(things) // per_page))
    first = (number_ - 1) * per_page
    pagination = {
        "page": number_,
        "per_page": per_page,
        "previous_page": number_ - 1 if number_ > 1 else None,
        "next_page": number_ + 1 if number_ < last else None,
        "last_page": last if call.totals else None,
        "total_entries": len(things) if call.totals else None,
    }
    shown = [view(thing) for thing in things[first : first + per_page]]
    return Answer(200, {key: shown, "meta": {"pagination": pagination}})


def listing(call: Call, key: str, things: Iterable[T], view: Callable[[T], Json]) -> Answer:
    """What the call's name and label selector leave over, in its order, a page of it."""
    name, labels = call.one("name"), call.one("label_selector")
    matches = selector(labels) if labels is not None else None
    kept = [
        thing
        for thing in things
        if (name is None or thing.name == name)  # type: ignore[attr-defined]  # only named things are listed so
        and (matches is None or matches(getattr(thing, "labels", {})))
    ]
    return page(call, key, sort(call, kept), view)


def found(things: dict[int, T], id_: int, word: str) -> T:
    """Raises `not_found`."""
    if id_ not in things:
        raise ApiError("not_found", f"{word} with ID '{id_}' not found")
    return things[id_]


def require_unique(things: Iterable[Any], name: str, *, but: int, word: str) -> None:
    """Raise `uniqueness_error` if another one has this name."""
    if any(thing.name == name and thing.id != but for thing in things):
        raise ApiError("uniqueness_error", f"{word} name is already used", {"fields": [{"name": "name"}]})
