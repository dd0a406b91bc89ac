"""Several calls in one transaction, through the Multicall3 contract.

Invariant: one call that fails leaves the others alone; each has a result of its own, in the order of the calls.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from spawn_schemas.ids import Address

_AGGREGATE3: Final = bytes.fromhex("82ad56cb")  # aggregate3((address,bool,bytes)[])


class Call(msgspec.Struct, frozen=True, kw_only=True):
    to: Address
    data: bytes


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """`data` is what the call returned: its answer, or its error."""

    succeeded: bool
    data: bytes


def aggregate3(calls: Sequence[Call]) -> bytes:
    """Call data that makes these calls in order, each with `allowFailure`."""
    items = [(bytes.fromhex(call.to[2:]), True, call.data) for call in calls]
    return _AGGREGATE3 + encode(["(address,bool,bytes)[]"], [items])


def results(data: bytes) -> tuple[Result, ...]:
    """Read what `aggregate3` returned. Raises ValueError for anything else."""
    try:
        (items,) = decode(["(bool,bytes)[]"], data)
    except DecodingError as error:
        raise ValueError("that is not what aggregate3 returns") from error
    return tuple(Result(succeeded=succeeded, data=answer) for succeeded, answer in items)
