"""Signed transactions, read back by eth-account and by the signature itself."""

import pytest
from eth_account import Account
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from eth_keys.backends import get_backend
from eth_keys.backends.coincurve import CoinCurveECCBackend
from hexbytes import HexBytes
from hypothesis import given
from hypothesis import strategies as st
from spawn_schemas.ids import Address, parse_address

from spawn.evm.transactions import address_of, sign
from spawn.payments.curve import keccak256

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
KEYS = st.integers(1, ORDER - 1).map(lambda number: f"0x{number:064x}")
FEES = st.integers(0, 10**15)


@given(
    KEYS,
    st.integers(1, 2**53),
    st.integers(0, 2**40),
    st.binary(min_size=20, max_size=20),
    st.binary(max_size=300),
    st.integers(21_000, 30_000_000),
    FEES,
    FEES,
)
def test_a_signed_transaction_says_what_was_asked_and_who_by(
    key: str, chain_id: int, nonce: int, to: bytes, data: bytes, gas_limit: int, fee: int, tip: int
) -> None:
    signed = sign(
        key,
        chain_id=chain_id,
        nonce=nonce,
        to=Address(f"0x{to.hex()}"),
        data=data,
        gas_limit=gas_limit,
        max_fee_wei=fee + tip,
        priority_fee_wei=tip,
    )
    read = TypedTransaction.from_bytes(HexBytes(signed.raw)).as_dict()
    assert signed.raw[0] == 2
    assert signed.hash == "0x" + keccak256(signed.raw).hex()
    assert parse_address(Account.recover_transaction(signed.raw)) == address_of(key)
    assert (read["chainId"], read["nonce"], read["gas"], read["value"]) == (chain_id, nonce, gas_limit, 0)
    assert (bytes(read["to"]), bytes(read["data"])) == (to, data)
    assert (read["maxFeePerGas"], read["maxPriorityFeePerGas"]) == (fee + tip, tip)
    assert read["accessList"] == ()


def test_signing_twice_gives_the_same_bytes() -> None:
    fields = {"chain_id": 1, "nonce": 0, "gas_limit": 21_000, "max_fee_wei": 2, "priority_fee_wei": 1}
    first, again = (sign("11" * 32, to=Address("0x" + "22" * 20), data=b"", **fields) for _ in range(2))
    assert first == again


def test_signing_is_done_in_c() -> None:
    """The fallback in Python takes 20 times as long, on the event loop."""
    assert isinstance(get_backend(), CoinCurveECCBackend)


@pytest.mark.parametrize("key", ["11" * 32, "0x" + "11" * 32])
def test_a_key_may_have_its_prefix_or_not(key: str) -> None:
    assert address_of(key) == "0x19e7e376e7c213b7e7e7e46cc70a5dd086daff2a"


@pytest.mark.parametrize("key", ["", "0x", "5ecre7" * 11, "0x" + "00" * 32, f"{ORDER:064x}", "11" * 33])
def test_what_is_no_key_is_refused_and_never_repeated(key: str) -> None:
    with pytest.raises(ValueError, match="64 hex digits") as caught:
        address_of(key)
    assert not key or key not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
