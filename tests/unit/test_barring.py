"""What an operator may make of a wallet, verb by verb."""

import pytest
from spawn_schemas.errors import Code, SpawnError

from spawn.domain.barring import Barred, Verb, barred_after, barred_error

S, B = Barred.SUSPENDED, Barred.BLOCKED
REFUSED = "refused"

TABLE: dict[tuple[Verb, Barred | None], Barred | str | None] = {
    (Verb.SUSPEND, None): S,
    (Verb.SUSPEND, S): S,
    (Verb.SUSPEND, B): REFUSED,
    (Verb.RESTORE, None): None,
    (Verb.RESTORE, S): None,
    (Verb.RESTORE, B): REFUSED,
    (Verb.BLOCK, None): B,
    (Verb.BLOCK, S): B,
    (Verb.BLOCK, B): B,
    (Verb.UNBLOCK, None): None,
    (Verb.UNBLOCK, S): REFUSED,
    (Verb.UNBLOCK, B): None,
}


def test_the_table_is_whole() -> None:
    assert set(TABLE) == {(verb, current) for verb in Verb for current in (None, *Barred)}


@pytest.mark.parametrize(("verb", "current"), TABLE)
def test_each_verb_on_each_wallet(verb: Verb, current: Barred | None) -> None:
    expected = TABLE[verb, current]
    if expected != REFUSED:
        assert barred_after(verb, current) == expected
        return
    with pytest.raises(SpawnError) as refused:
        barred_after(verb, current)
    assert refused.value.code is Code.CONFLICT
    assert refused.value.next is not None
    assert "spawn admin" in refused.value.next


@pytest.mark.parametrize("barred", Barred)
def test_whoever_is_barred_is_told_what_is_left_to_do(barred: Barred) -> None:
    error = barred_error(barred)
    assert error.code is Code.SUSPENDED
    assert error.details == {"barred": barred.value}
    assert barred.value in error.message
    assert "destroy" in error.message
    assert error.next is not None
    assert "/v1/events" in error.next
