"""What a fuzz target is, and the ways in which every target's input is spoiled.

Invariant: a mutation is a function of its input and of the dice it is handed, so that a finding can be repeated.
"""

import base64
import json
from binascii import Error as NotBase64
from collections.abc import Callable
from random import Random
from typing import Any, Final, TypeVar

import msgspec
from spawn_schemas.errors import Code, SpawnError

T = TypeVar("T")
Mutate = Callable[[bytes, Random], bytes]

NUMBERS: Final = (
    0,
    -1,
    1,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    2**256 - 1,
    2**256,
    10**77,
    10**78,
    1.5,
    1e308,
)
TEXTS: Final = (
    "",
    "0",
    "-1",
    "00",
    "0x",
    "1e9",
    " ",
    "\n",
    "\0",
    "\u0660",
    "\uff10",
    "\u0130",
    "\u2028",
    "\ud800",
)
PIECES: Final = (
    b"\0",
    b"\n",
    b"\r",
    b"\t",
    b" ",
    b'"',
    b"\\",
    b",",
    b";",
    b"=",
    b":",
    b"\x7f",
    b"\xff",
    b"\xc3\xa9",
)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A parser under test.

    `check` returns whether the input was accepted, and raises AssertionError, or whatever the parser should not have
    raised, for a defect. `seeds` are inputs to begin with, the first of which is accepted.
    """

    seeds: tuple[bytes, ...]
    check: Callable[[bytes], bool]
    mutate: Mutate


def attempt(read: Callable[[], T], *refusals: Code) -> T | None:
    """What was read, or None where it was refused with one of these. Whatever else is raised is a defect."""
    try:
        return read()
    except SpawnError as refused:
        if refused.code not in refusals:
            raise
        return None


def assert_plain_base64(header: bytes) -> None:
    """Raise AssertionError unless this is the one spelling of what it holds: one payment has one header."""
    assert base64.b64encode(base64.b64decode(header)) == header


def spoil_bytes(data: bytes, dice: Random) -> bytes:
    """Cut, double, replace or insert a piece."""
    at, to = sorted((dice.randrange(len(data) + 1), dice.randrange(len(data) + 1)))
    to = min(to, at + dice.choice((1, 1, 2, 4, 64)))
    piece = dice.choice(
        (b"", data[at:to] * 2, dice.choice(PIECES), dice.randbytes(1), data[at:to].swapcase())
    )
    return data[:at] + piece + data[to:]


def spoil_text(text: str, dice: Random) -> str:
    """The same for text; lone surrogates come out as question marks."""
    if dice.random() < 0.2:
        return dice.choice(TEXTS)
    return spoil_bytes(text.encode(errors="replace"), dice).decode(errors="replace")


def spoil_json(value: Any, dice: Random) -> Any:
    """Change one place, somewhere, of a JSON value."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        name = dice.choice(list(value))
        match dice.randrange(8):
            case 0:
                return {key: item for key, item in value.items() if key != name}
            case 1:
                return {(spoil_text(key, dice) if key == name else key): item for key, item in value.items()}
            case _:
                return {**value, name: spoil_json(value[name], dice)}
    if isinstance(value, list) and value and dice.random() < 0.9:
        at = dice.randrange(len(value))
        return [*value[:at], spoil_json(value[at], dice), *value[at + dice.randrange(2) :]]
    if isinstance(value, str) and dice.random() < 0.7:
        return spoil_text(value, dice)
    return dice.choice(
        (None, True, [], {}, [value], {"": value}, dice.choice(NUMBERS), str(dice.choice(NUMBERS)))
    )


def spoil_base64_json(data: bytes, dice: Random, again: Callable[[Any], Any]) -> bytes:
    """Spoil the JSON in a base64 header; `again` makes its signature hold once more, if it can, every other time."""
    try:
        value = json.loads(base64.b64decode(data))
    except (NotBase64, ValueError, RecursionError):
        return spoil_bytes(data, dice)
    for _ in range(dice.randrange(1, 4)):
        value = spoil_json(value, dice)
    if dice.random() < 0.5:
        value = again(value)
    text = json.dumps(value, ensure_ascii=dice.random() < 0.5).encode(errors="replace")
    if dice.random() < 0.1:
        text = spoil_bytes(text, dice)
    return base64.b64encode(text)
