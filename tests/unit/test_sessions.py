"""A session token says whose it is and until when, and nobody else can say it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address

from spawn.payments.sessions import ID_BYTES, PREFIX, SESSION_S, Sessions, find_token

NOW = 1_900_000_000
KEY = b"k" * 32
ID = bytes(range(ID_BYTES))
WALLET = Address("0x" + "2f" * 20)
SESSIONS = Sessions(KEY)
TOKEN = SESSIONS.issue(WALLET, entropy=ID, now=NOW)


def refusal(token: str, *, now: int = NOW, sessions: Sessions = SESSIONS) -> str:
    with pytest.raises(SpawnError) as caught:
        sessions.verify(token, now=now)
    assert caught.value.code is Code.INVALID_SIGNATURE
    assert caught.value.details is not None
    assert "POST /v1/sessions" in str(caught.value.next)
    assert token == "" or token not in caught.value.message
    return str(caught.value.details["reason"])


@given(address=st.binary(min_size=20, max_size=20), entropy=st.binary(min_size=ID_BYTES, max_size=ID_BYTES))
def test_a_token_says_whose_it_is_and_until_when(address: bytes, entropy: bytes) -> None:
    wallet = Address("0x" + address.hex())
    session = SESSIONS.verify(SESSIONS.issue(wallet, entropy=entropy, now=NOW), now=NOW)
    assert (session.wallet, session.id, session.expires) == (wallet, entropy.hex(), NOW + SESSION_S)


def test_it_lasts_a_quarter_of_an_hour() -> None:
    assert SESSION_S == 15 * 60
    assert SESSIONS.verify(TOKEN, now=NOW + SESSION_S - 1).wallet == WALLET
    assert refusal(TOKEN, now=NOW + SESSION_S) == "session_expired"


def test_it_outlives_a_restart() -> None:
    assert Sessions(KEY).verify(TOKEN, now=NOW).wallet == WALLET


def test_another_key_is_another_service() -> None:
    assert refusal(TOKEN, sessions=Sessions(b"l" * 32)) == "session_invalid"


def test_two_tokens_of_one_second_differ() -> None:
    assert SESSIONS.issue(WALLET, entropy=bytes(ID_BYTES), now=NOW) != TOKEN


@pytest.mark.parametrize(
    "token",
    [
        "",
        PREFIX,
        PREFIX + "AAAA",
        TOKEN[:-1],
        TOKEN[:-4],
        TOKEN + "A",
        TOKEN + "=",
        TOKEN + "\n",
        TOKEN + " ",
        TOKEN.removeprefix(PREFIX),
        PREFIX + TOKEN,
        TOKEN.replace(PREFIX, PREFIX.upper()),
        f"{TOKEN}, {TOKEN}",
        TOKEN[:40] + "é" + TOKEN[41:],
        TOKEN[:40] + "." + TOKEN[40:],
    ],
)
def test_anything_else_is_no_session(token: str) -> None:
    assert refusal(token) == "session_invalid"


@given(st.integers(0, len(TOKEN) - 1), st.characters(min_codepoint=33, max_codepoint=126))
def test_no_character_can_be_exchanged(position: int, character: str) -> None:
    changed = TOKEN[:position] + character + TOKEN[position + 1 :]
    if changed != TOKEN:
        assert refusal(changed) == "session_invalid"


@given(st.text(max_size=150))
def test_no_text_crashes_the_reader(text: str) -> None:
    assert refusal(PREFIX + text) == "session_invalid"


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN} "])
def test_our_bearer_is_found(header: str) -> None:
    assert find_token(header) == TOKEN


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Bearer eyJhbGciOiJub25lIn0.e30.", "Basic c3Bhd24=", f"Basic {TOKEN}", TOKEN],
)
def test_credentials_for_somebody_else_are_not_ours(header: str) -> None:
    assert find_token(header) is None
