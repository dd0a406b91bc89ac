"""Several calls in one transaction, through the Multicall3 contract.

Invariant: one call that fails leaves the others alone; each has a result of its own, in the order of the calls.
Both directions are written by hand, because a library that can do any type holds the event loop up for the length of a
batch: ten milliseconds for 200 calls.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import msgspec
from spawn_schemas.ids import Address

_AGGREGATE3: Final = bytes.fromhex("82ad56cb")  # aggregate3((address,bool,bytes)[])
_WORD: Final = 32
_CALL_HEAD: Final = 3  # words before a call's bytes: address, allowFailure, where the bytes begin
_RESULT_HEAD: Final = 2  # words before a result's bytes: success, where the bytes begin
_NO_ANSWER: Final = "that is not what aggregate3 returns"


class Call(msgspec.Struct, frozen=True, kw_only=True):
    to: Address
    data: bytes


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """`data` is what the call returned: its answer, or its error."""

    succeeded: bool
    data: bytes


def aggregate3(calls: Sequence[Call]) -> bytes:
    """Call data that makes these calls in order, each with `allowFailure`."""
    items = [_call(call) for call in calls]
    begins = accumulate(map(len, items), initial=len(items) * _WORD)
    offsets = [_word(begin) for begin, _ in zip(begins, items, strict=False)]
    return b"".join((_AGGREGATE3, _word(_WORD), _word(len(items)), *offsets, *items))


def results(data: bytes) -> tuple[Result, ...]:
    """Read what `aggregate3` returned. Raises ValueError for anything else."""
    if _number(data, 0) != _WORD:
        raise ValueError(_NO_ANSWER)
    first = 2 * _WORD
    return tuple(
        _result(data, first + _number(data, first + number * _WORD)) for number in range(_number(data, _WORD))
    )


def _call(call: Call) -> bytes:
    return b"".join(
        (
            bytes(12),
            bytes.fromhex(call.to[2:]),
            _word(True),
            _word(_CALL_HEAD * _WORD),
            _word(len(call.data)),
            call.data,
            bytes(-len(call.data) % _WORD),
        )
    )


def _result(data: bytes, at: int) -> Result:
    succeeded, offset, length = (_number(data, at + number * _WORD) for number in range(3))
    begin = at + (_RESULT_HEAD + 1) * _WORD
    answer = data[begin : begin + length]
    if succeeded > 1 or offset != _RESULT_HEAD * _WORD or len(answer) != length:
        raise ValueError(_NO_ANSWER)
    return Result(succeeded=succeeded == 1, data=answer)


def _word(number: int) -> bytes:
    return number.to_bytes(_WORD, "big")


def _number(data: bytes, at: int) -> int:
    word = data[at : at + _WORD]
    if len(word) != _WORD:
        raise ValueError(_NO_ANSWER)
    return int.from_bytes(word, "big")
