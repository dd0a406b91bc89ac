"""Cursors, filters and pages, and that every type of event is described."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.events import MEANINGS, PATTERNS, TYPES, EventData, EventType, matches

from spawn.api.event_examples import DATA, example, table
from spawn.domain import events
from spawn.domain.events import Kept, Query, Seen
from tests.engines import ROOT

SERVER, OTHER = "srv_a", "srv_b"


# --- every type is described ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EventType, ids=lambda kind: str(kind.value))
def test_every_type_has_a_shape_a_sentence_and_an_example_that_fits(kind: EventType) -> None:
    shown = example(kind)
    data = msgspec.json.decode(bytes(shown.data), type=TYPES[kind], strict=True)
    assert data == DATA[kind][1]
    assert shown.type == kind.value
    assert MEANINGS[kind].endswith(".")


def test_nothing_is_described_that_is_not_there() -> None:
    assert set(TYPES) == set(MEANINGS) == set(DATA) == set(EventType)
    assert set(TYPES.values()) == set(EventData.__args__)


def test_the_document_has_the_table_and_every_example() -> None:
    document = (ROOT / "docs" / "events.md").read_text()
    assert table() in document, f"docs/events.md should have this table:\n\n{table()}"
    for kind in EventType:
        data = msgspec.json.decode(bytes(example(kind).data))
        missing = [field for field in data if f"`{field}`" not in document]
        assert missing == [], kind


# --- what is asked for ----------------------------------------------------------------------------------------


@given(st.integers(0, 10**18 - 1))
def test_a_cursor_is_read_as_it_was_written(seq: int) -> None:
    assert events.read_cursor(events.cursor(seq)) == seq


@pytest.mark.parametrize(
    "text",
    [
        "",
        "evt_",
        "evt_-1",
        "evt_01",
        "evt_1 ",
        "evt_1\n",
        "EVT_1",
        "1",
        "c1",
        "evt_1e3",
        "evt_١",
        "evt_" + "9" * 19,
    ],
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(SpawnError) as refused:
        events.read_cursor(text)
    assert refused.value.code is Code.INVALID_REQUEST
    assert "next_cursor" in (refused.value.next or "")


@given(st.text())
def test_whatever_is_read_is_written_in_one_way(text: str) -> None:
    try:
        seq = events.read_cursor(text)
    except SpawnError:
        return
    assert events.cursor(seq) == text


@pytest.mark.parametrize(
    "pattern", ["", "server", "server.", "server.*.x", "*.running", "nothing.ever", "**"]
)
def test_what_is_no_type_is_refused(pattern: str) -> None:
    with pytest.raises(SpawnError) as refused:
        events.query(after=None, pattern=pattern, resource=None, limit=1)
    assert refused.value.code is Code.INVALID_REQUEST
    assert "server.*" in (refused.value.details or {})["types"]


@pytest.mark.parametrize("resource", ["", "x" * 129])
def test_what_is_no_resource_is_refused(resource: str) -> None:
    with pytest.raises(SpawnError):
        events.query(after=None, pattern=None, resource=resource, limit=1)


def test_a_pattern_matches_its_own() -> None:
    assert {pattern for pattern in PATTERNS if matches(pattern, "ssh_key.added")} == {
        "*",
        "ssh_key.*",
        "ssh_key.added",
    }


# --- pages ----------------------------------------------------------------------------------------------------


def seen(seq: int, *, type: str = "server.running", resource: str = SERVER) -> Seen:
    return Seen(seq=seq, type=type, resource=resource, at=0, data="{}")


def look(asked: Query, table: list[Seen], kept: Kept) -> events.Page:
    """What the database would answer."""
    after = asked.after or 0
    return events.page(asked, [event for event in table if event.seq > after][: asked.window], kept)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Seen], Kept]:
    """A wallet's events among those of others, after some were forgotten."""
    forgotten = draw(st.integers(0, 50))
    mine = draw(st.lists(st.integers(forgotten + 1, forgotten + 600), unique=True, max_size=450))
    newest = max([forgotten, *mine]) + draw(st.integers(0, 5))
    table = [
        seen(
            seq,
            type=draw(st.sampled_from(["server.running", "deposit.low"])),
            resource=draw(st.sampled_from([SERVER, OTHER])),
        )
        for seq in sorted(mine)
    ]
    return table, Kept(forgotten=forgotten, newest=newest)


@given(
    tables(),
    st.sampled_from(["*", "server.*", "deposit.low", "webhook.test"]),
    st.sampled_from([None, SERVER]),
    st.integers(1, 100),
)
def test_asking_on_shows_what_is_asked_for_once_and_in_order(
    kept: tuple[list[Seen], Kept], pattern: str, resource: str | None, limit: int
) -> None:
    table, range_kept = kept
    asked = Query(after=None, pattern=pattern, resource=resource, limit=limit)
    found: list[Seen] = []
    for _ in range(2 + len(table)):
        page = look(asked, table, range_kept)
        assert len(page.events) <= limit
        assert not page.gap
        found += page.events
        asked = msgspec.structs.replace(asked, after=page.after)
        if not page.has_more:
            break
    assert asked.after == max([range_kept.forgotten, *(event.seq for event in table)])
    assert found == [event for event in table if asked.wants(event)]


@given(
    st.lists(st.booleans(), max_size=60),
    st.lists(st.integers(0, 60), max_size=40),
    st.sampled_from(["*", "deposit.low"]),
    st.integers(1, 5),
)
def test_asking_on_misses_nothing_that_becomes_visible_behind_others(
    is_mine: list[bool], there: list[int], pattern: str, limit: int
) -> None:
    """All of the others' events are there at once; `there` is how many of its own each look may see at least."""
    types = ["server.running", "deposit.low"]
    own = [seen(seq, type=types[seq % 2]) for seq, mine in enumerate(is_mine, 1) if mine]
    asked, found, visible = Query(pattern=pattern, limit=limit), list[Seen](), 0
    for many in there + [len(own)] * (len(own) + 2):
        visible = max(visible, many)
        page = look(asked, own[:visible], Kept(forgotten=0, newest=len(is_mine)))
        found += page.events
        asked = msgspec.structs.replace(asked, after=page.after)
    assert found == [event for event in own if asked.wants(event)]


@given(tables(), st.integers(0, 60), st.integers(1, 100))
def test_a_gap_is_told_where_something_is_forgotten_and_once(
    kept: tuple[list[Seen], Kept], after: int, limit: int
) -> None:
    table, range_kept = kept
    page = look(Query(after=after, limit=limit), table, range_kept)
    is_ahead = after > range_kept.newest
    assert page.gap == (is_ahead or after < range_kept.forgotten)
    assert not look(Query(after=page.after, limit=limit), table, range_kept).gap


def test_a_cursor_from_before_what_is_kept_is_told_once() -> None:
    kept = Kept(forgotten=9, newest=12)
    table = [seen(10), seen(12)]
    page = look(Query(after=8, limit=1), table, kept)
    assert (page.gap, page.after, page.has_more) == (True, 10, True)
    page = look(Query(after=page.after), table, kept)
    assert (page.gap, page.after, page.has_more) == (False, 12, False)
    assert not look(Query(after=9), table, kept).gap, "it had seen all that is forgotten"
    assert not look(Query(after=None), table, kept).gap, "nothing was seen before, so nothing is missed"
    page = look(Query(after=8), [], kept)
    assert (page.gap, page.after) == (True, 9), "nothing is left, and the gap lies behind"


def test_the_cursor_is_no_number_of_anybody_else() -> None:
    kept = Kept(forgotten=0, newest=12)
    page = look(Query(), [seen(7)], kept)
    assert (page.after, page.newest) == (7, 12)
    assert look(Query(after=8), [seen(7)], kept).after == 8
    assert look(Query(), [], kept).after == 0


def test_a_cursor_from_what_a_restored_backup_has_forgotten_begins_anew() -> None:
    kept = Kept(forgotten=2, newest=12)
    page = look(Query(after=13), [seen(3)], kept)
    assert (page.events, page.gap, page.after, page.has_more) == ((), True, 2, True)
    page = look(Query(after=page.after), [seen(3)], kept)
    assert ([event.seq for event in page.events], page.gap, page.after) == ([3], False, 3)


def test_of_nothing_at_all_the_cursor_is_good_all_the_same() -> None:
    page = look(Query(), [], Kept(forgotten=0, newest=0))
    assert (page.events, page.gap, page.after, page.has_more, page.says_nothing) == (
        (),
        False,
        0,
        False,
        True,
    )
