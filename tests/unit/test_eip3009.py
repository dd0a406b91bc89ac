"""Calls of the token beside web3's encoding of the same, and what its events say about who paid."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spawn_schemas.ids import Address
from web3 import Web3

from spawn.evm.eip3009 import (
    AUTHORIZATION_CANCELED,
    AUTHORIZATION_USED,
    TRANSFER,
    Move,
    address_topic,
    authorization_state_call,
    balance_of_call,
    moves,
    transfer_call,
)
from spawn.evm.node import Log
from spawn.payments.curve import keccak256

_AUTHORIZATION = [
    ("from", "address"),
    ("to", "address"),
    ("value", "uint256"),
    ("validAfter", "uint256"),
    ("validBefore", "uint256"),
    ("nonce", "bytes32"),
]


def _function(name: str, *inputs: tuple[str, str]) -> dict[str, Any]:
    return {
        "type": "function",
        "name": name,
        "stateMutability": "nonpayable",
        "inputs": [{"name": label, "type": kind} for label, kind in inputs],
        "outputs": [],
    }


TOKEN = Web3().eth.contract(
    abi=[
        _function(
            "transferWithAuthorization", *_AUTHORIZATION, ("v", "uint8"), ("r", "bytes32"), ("s", "bytes32")
        ),
        _function("transferWithAuthorization", *_AUTHORIZATION, ("signature", "bytes")),
        _function("authorizationState", ("authorizer", "address"), ("nonce", "bytes32")),
        _function("balanceOf", ("account", "address")),
    ]
)
BY_KEY = "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)"
BY_BYTES = "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"

ADDRESSES = st.binary(min_size=20, max_size=20)
WORDS = st.integers(0, 2**256 - 1)
NONCES = st.binary(min_size=32, max_size=32)


@given(
    ADDRESSES,
    ADDRESSES,
    WORDS,
    WORDS,
    WORDS,
    NONCES,
    st.binary(max_size=200) | st.binary(min_size=65, max_size=65),
)
def test_a_transfer_is_encoded_as_web3_does_it(
    payer: bytes, pay_to: bytes, value: int, after: int, before: int, nonce: bytes, signature: bytes
) -> None:
    ours = transfer_call(
        payer=f"0x{payer.hex()}",
        pay_to=f"0x{pay_to.hex()}",
        value=value,
        valid_after=after,
        valid_before=before,
        nonce=f"0x{nonce.hex()}",
        signature=f"0x{signature.hex()}",
    )
    authorization = [
        Web3.to_checksum_address(payer),
        Web3.to_checksum_address(pay_to),
        value,
        after,
        before,
        nonce,
    ]
    if len(signature) == 65:
        arguments = [*authorization, signature[64], signature[:32], signature[32:64]]
        theirs = TOKEN.encode_abi(BY_KEY, arguments)
    else:
        theirs = TOKEN.encode_abi(BY_BYTES, [*authorization, signature])
    assert "0x" + ours.hex() == theirs


@pytest.mark.parametrize("field", ["value", "valid_after", "valid_before"])
def test_a_number_that_the_chain_cannot_hold_is_refused(field: str) -> None:
    numbers = {"value": 0, "valid_after": 0, "valid_before": 0} | {field: 2**256}
    with pytest.raises(OverflowError):
        transfer_call(
            payer="0x" + "11" * 20, pay_to="0x" + "22" * 20, nonce="0x" + "00" * 32, signature="0x", **numbers
        )


@given(ADDRESSES, NONCES)
def test_questions_are_encoded_as_web3_does_it(account: bytes, nonce: bytes) -> None:
    text = f"0x{account.hex()}"
    state = TOKEN.encode_abi("authorizationState", [Web3.to_checksum_address(account), nonce])
    balance = TOKEN.encode_abi("balanceOf", [Web3.to_checksum_address(account)])
    assert "0x" + authorization_state_call(text, f"0x{nonce.hex()}").hex() == state
    assert "0x" + balance_of_call(text).hex() == balance


def test_topics_are_the_events_of_the_standard() -> None:
    assert keccak256(b"Transfer(address,address,uint256)") == TRANSFER
    assert keccak256(b"AuthorizationUsed(address,bytes32)") == AUTHORIZATION_USED
    assert keccak256(b"AuthorizationCanceled(address,bytes32)") == AUTHORIZATION_CANCELED


ASSET = Address("0x" + "05" * 20)
US = Address("0x" + "aa" * 20)
ALICE = Address("0x" + "a1" * 20)
BOB = Address("0x" + "b0" * 20)


def _log(
    index: int, *topics: bytes, data: bytes = b"", address: Address = ASSET, transaction: int = 1
) -> Log:
    return Log(
        address=address,
        topics=topics,
        data=data,
        block_number=7,
        block_hash="0x" + "bb" * 32,
        transaction=f"0x{transaction:064x}",
        index=index,
    )


def _used(index: int, who: Address, nonce: int, **other: Any) -> Log:
    return _log(index, AUTHORIZATION_USED, address_topic(who), nonce.to_bytes(32), **other)


def _transfer(index: int, sender: Address, to: Address, amount: int, **other: Any) -> Log:
    topics = (TRANSFER, address_topic(sender), address_topic(to))
    return _log(index, *topics, data=amount.to_bytes(32), **other)


def _read(*logs: Log) -> list[tuple[Address, int, int | None]]:
    found = moves(logs, asset=ASSET, pay_to=US)
    return [(move.sender, move.amount, None if move.nonce is None else int(move.nonce, 16)) for move in found]


def test_a_move_names_its_log_and_nonce() -> None:
    used, transfer = _used(0, ALICE, 9), _transfer(1, ALICE, US, 5)
    move = Move(sender=ALICE, amount=5, nonce=f"0x{9:064x}", log=transfer)
    assert moves([used, transfer], asset=ASSET, pay_to=US) == (move,)


def test_each_nonce_of_a_batch_belongs_to_its_own_transfer() -> None:
    logs = [
        _used(0, ALICE, 1),
        _transfer(1, ALICE, US, 10),
        _used(2, ALICE, 2),
        _transfer(3, ALICE, BOB, 20),
        _used(4, BOB, 3),
        _transfer(5, BOB, US, 30),
        _transfer(6, BOB, US, 40),
    ]
    assert _read(*logs) == [(ALICE, 10, 1), (BOB, 30, 3), (BOB, 40, None)]


@pytest.mark.parametrize(
    "before",
    [
        _used(0, BOB, 1),
        _used(0, ALICE, 1, address=Address("0x" + "06" * 20)),
        _used(0, ALICE, 1, transaction=2),
        _log(0, AUTHORIZATION_CANCELED, address_topic(ALICE), (1).to_bytes(32)),
        _log(0, AUTHORIZATION_USED, address_topic(ALICE)),
    ],
)
def test_a_nonce_of_somebody_or_something_else_is_not_the_transfer_s(before: Log) -> None:
    assert _read(before, _transfer(1, ALICE, US, 5)) == [(ALICE, 5, None)]


def test_a_nonce_further_away_is_not_the_transfer_s() -> None:
    assert _read(_used(0, ALICE, 1), _transfer(2, ALICE, US, 5)) == [(ALICE, 5, None)]


@pytest.mark.parametrize(
    "log",
    [
        _transfer(1, ALICE, BOB, 5),
        _transfer(1, US, ALICE, 5),
        _transfer(1, ALICE, US, 5, address=Address("0x" + "06" * 20)),
        _log(1, TRANSFER, address_topic(ALICE), address_topic(US), data=b""),
        _log(1, TRANSFER, address_topic(ALICE), address_topic(US), (5).to_bytes(32)),  # an NFT's (ERC-721)
        _log(1, data=b"anonymous"),
        _used(1, ALICE, 1),
    ],
)
def test_what_is_no_transfer_to_us_is_no_move(log: Log) -> None:
    assert _read(log) == []


def test_moves_reads_no_order_but_the_given_one() -> None:
    assert _read(_transfer(1, ALICE, US, 5), _used(0, ALICE, 1)) == [(ALICE, 5, None)]
    assert moves([], asset=ASSET, pay_to=US) == ()
