"""Batches of calls beside web3's encoding of the same."""

import pytest
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st
from spawn_schemas.ids import Address
from web3 import Web3

from spawn.evm.multicall import Call, Result, aggregate3, results

_CALL3 = [("target", "address"), ("allowFailure", "bool"), ("callData", "bytes")]
MULTICALL3 = Web3().eth.contract(
    abi=[
        {
            "type": "function",
            "name": "aggregate3",
            "stateMutability": "payable",
            "inputs": [
                {
                    "name": "calls",
                    "type": "tuple[]",
                    "components": [{"name": name, "type": kind} for name, kind in _CALL3],
                }
            ],
            "outputs": [],
        }
    ]
)


@given(st.lists(st.tuples(st.binary(min_size=20, max_size=20), st.binary(max_size=300)), max_size=6))
def test_a_batch_is_encoded_as_web3_does_it(items: list[tuple[bytes, bytes]]) -> None:
    ours = aggregate3([Call(to=Address(f"0x{to.hex()}"), data=data) for to, data in items])
    theirs = MULTICALL3.encode_abi(
        "aggregate3", [[(Web3.to_checksum_address(to), True, data) for to, data in items]]
    )
    assert "0x" + ours.hex() == theirs


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=100)), max_size=6))
def test_results_are_read_in_the_order_of_the_calls(items: list[tuple[bool, bytes]]) -> None:
    read = results(encode(["(bool,bytes)[]"], [items]))
    assert read == tuple(Result(succeeded=succeeded, data=data) for succeeded, data in items)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        bytes(32),
        b"\xff" * 64,
        encode(["(bool,bytes)[]"], [[(True, b"x")]])[:-32],
        encode(["(uint256,bytes)[]"], [[(2, b"x")]]),
        encode(["(bool,uint256,uint256)[]"], [[(True, 32, 0)]]),
        encode(["uint256", "uint256"], [32, 2**255]),
    ],
)
def test_what_is_no_answer_of_aggregate3_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="aggregate3"):
        results(data)
