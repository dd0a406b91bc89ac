"""EIP-3009 as USDC implements it: the calls that we make, and what its events say about who paid us.

Invariant: `moves` names a nonce only for the transfer that spent it. Calls are encoded by hand, because every word of
them is fixed in width and settling encodes thousands a second.
"""

from collections.abc import Iterable
from typing import Final

import msgspec
from spawn_schemas.ids import Address

from spawn.evm.node import Log

TRANSFER: Final = bytes.fromhex("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef")
"""`Transfer(address indexed from, address indexed to, uint256 value)` of ERC-20."""
AUTHORIZATION_USED: Final = bytes.fromhex("98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5")
"""`AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce)`: the nonce moved money."""
AUTHORIZATION_CANCELED: Final = bytes.fromhex(
    "1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81"
)
"""`AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce)`: the nonce never will."""

_TRANSFER_BY_KEY: Final = bytes.fromhex("e3ee160e")  # transferWithAuthorization(…, uint8, bytes32, bytes32)
_TRANSFER_BY_BYTES: Final = bytes.fromhex("cf092995")  # transferWithAuthorization(…, bytes)
_AUTHORIZATION_STATE: Final = bytes.fromhex("e94a0102")
_BALANCE_OF: Final = bytes.fromhex("70a08231")
_WORD: Final = 32
_SIGNATURE_AT: Final = (7 * _WORD).to_bytes(_WORD, "big")  # where the seventh, dynamic argument begins


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """One transfer to us: `amount` in the token's smallest unit, `log` its Transfer event.

    `nonce` (0x, 64 lower-case hex digits) is that of the sender's authorization; None for an ordinary transfer.
    """

    sender: Address
    amount: int
    nonce: str | None
    log: Log


def transfer_call(
    *,
    payer: str,
    pay_to: str,
    value: int,
    valid_after: int,
    valid_before: int,
    nonce: str,
    signature: str,
) -> bytes:
    """Call data of `transferWithAuthorization`. Raises OverflowError for a number that 32 bytes cannot hold.

    A signature of 65 bytes goes by the overload of EIP-3009 itself (v, r, s), which costs less gas; any other length
    is a contract wallet's, for the overload with `bytes signature` that USDC has since its version 2.2.
    """
    authorization = b"".join(
        (
            _address(payer),
            _address(pay_to),
            value.to_bytes(_WORD, "big"),
            valid_after.to_bytes(_WORD, "big"),
            valid_before.to_bytes(_WORD, "big"),
            bytes.fromhex(nonce[2:]),
        )
    )
    signed = bytes.fromhex(signature[2:])
    if len(signed) == 65:
        return _TRANSFER_BY_KEY + authorization + bytes(31) + signed[64:] + signed[:64]
    padding = bytes(-len(signed) % _WORD)
    return (
        _TRANSFER_BY_BYTES
        + authorization
        + _SIGNATURE_AT
        + len(signed).to_bytes(_WORD, "big")
        + signed
        + padding
    )


def authorization_state_call(payer: str, nonce: str) -> bytes:
    """Call data of `authorizationState`: true once the nonce was used or cancelled; which, only events tell."""
    return _AUTHORIZATION_STATE + _address(payer) + bytes.fromhex(nonce[2:])


def balance_of_call(address: str) -> bytes:
    """Call data of `balanceOf`."""
    return _BALANCE_OF + _address(address)


def address_topic(address: str) -> bytes:
    """An account as an indexed argument of an event."""
    return _address(address)


def moves(logs: Iterable[Log], *, asset: Address, pay_to: Address) -> tuple[Move, ...]:
    """What these events moved to `pay_to`, in their order.

    `logs` are whole receipts' events in the chain's order: a nonce belongs to the transfer that follows
    AuthorizationUsed at once in the same transaction, as EIP-3009's reference implementation and USDC emit them.
    """
    found = []
    before: Log | None = None
    for log in logs:
        move = _move(log, before, asset=asset, pay_to=pay_to)
        if move is not None:
            found.append(move)
        before = log
    return tuple(found)


def _move(log: Log, before: Log | None, *, asset: Address, pay_to: Address) -> Move | None:
    match log.topics:
        case (topic, payer, payee) if topic == TRANSFER and payee == _address(pay_to):
            pass
        case _:
            return None
    if log.address != asset or len(log.data) != _WORD:
        return None
    nonce = None
    if (
        before is not None
        and (before.transaction, before.index + 1) == (log.transaction, log.index)
        and before.address == asset
        and before.topics[:2] == (AUTHORIZATION_USED, payer)
        and len(before.topics) == 3
    ):
        nonce = "0x" + before.topics[2].hex()
    sender = Address("0x" + payer[12:].hex())
    return Move(sender=sender, amount=int.from_bytes(log.data, "big"), nonce=nonce, log=log)


def _address(address: str) -> bytes:
    return bytes(12) + bytes.fromhex(address[2:])
