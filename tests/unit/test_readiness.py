"""What a machine's reports change, in whichever order they come, and what of its log is shown."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from spawn_schemas.ids import ServerId

from spawn.domain.readiness import (
    LOG_CHARS_MAX,
    CloudInit,
    Readiness,
    began_anew,
    harmless,
    told_cloud_init,
    told_ssh,
)

ORDERED = Readiness(
    server_id=ServerId("srv_a"),
    host_key="ssh-ed25519 AAAA",
    token_hash="first",
    next_hash="second",
    since=100,
)


def test_both_parts_are_told_in_either_order() -> None:
    states = []
    for order in permutations(("ssh", "cloud_init")):
        state: Readiness | None = ORDERED
        for part in order:
            assert state is not None
            ended = told_cloud_init(state, CloudInit.FAILED, "no\n", 130)
            state = told_ssh(state, 130) if part == "ssh" else ended
        states.append(state)
    assert states[0] == states[1]
    assert states[0] == replace(ORDERED, ssh_at=130, cloud_init=CloudInit.FAILED, log="no\n", reported_at=130)


def test_a_repetition_changes_nothing_and_a_contradiction_is_none() -> None:
    ended = told_cloud_init(told_ssh(ORDERED, 110), CloudInit.DONE, "a\x00", 120)
    assert ended is not None
    assert told_ssh(ended, 999) is ended
    assert told_cloud_init(ended, CloudInit.DONE, "a\x00", 999) is ended
    for other, log in ((CloudInit.FAILED, "a\x00"), (CloudInit.DONE, "b"), (CloudInit.DONE, None)):
        assert told_cloud_init(ended, other, log, 121) is None


def test_a_rebuild_keeps_the_key_and_forgets_what_was_told() -> None:
    ended = told_cloud_init(told_ssh(ORDERED, 110), CloudInit.DONE, "a", 120)
    assert ended is not None
    anew = Readiness(
        server_id=ORDERED.server_id, host_key=ORDERED.host_key, token_hash="second", next_hash=None, since=500
    )
    assert began_anew(ended, 500) == anew
    with pytest.raises(ValueError, match="srv_a"):
        began_anew(anew, 600)


@given(st.text())
def test_what_is_shown_has_no_controls_and_is_the_end(text: str) -> None:
    shown = harmless(text)
    assert all(letter in "\n\t" or letter.isprintable() or ord(letter) > 0x9F for letter in shown)
    assert "\x1b" not in shown
    shown.encode()
    assert len(shown) <= LOG_CHARS_MAX
    assert harmless(shown) == shown


def test_the_end_of_a_long_log_is_what_is_kept() -> None:
    assert harmless("a" + "b" * LOG_CHARS_MAX) == "b" * LOG_CHARS_MAX


@pytest.mark.parametrize("plain", ["Größe\t5 €\n", "日本語\n", "emoji 🙂\n"])
def test_plain_text_stays(plain: str) -> None:
    assert harmless(plain) == plain
