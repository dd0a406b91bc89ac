"""Making transactions: fields and a key in, the bytes that a node takes out.

Invariant: signing is deterministic (RFC 6979): the same fields and key are the same bytes and hash.
"""

import msgspec
from eth_account import Account
from spawn_schemas.ids import Address, parse_address


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """A transaction as `Node.send` takes it, and the hash (0x, 64 lower-case hex digits) it will have."""

    raw: bytes
    hash: str


def address_of(key: str) -> Address:
    """The account of a private key. Raises ValueError, which never repeats the key, for what is not one."""
    try:
        return parse_address(Account.from_key(key).address)
    except Exception:  # noqa: BLE001 - the library raises several kinds, and some repeat what they were given
        raise ValueError("a private key is 64 hex digits, and a number below the curve's order") from None


def sign(
    key: str,
    *,
    chain_id: int,
    nonce: int,
    to: Address,
    data: bytes,
    gas_limit: int,
    max_fee_wei: int,
    priority_fee_wei: int,
) -> Signed:
    """Sign a call of a contract that carries no ether, as an EIP-1559 transaction (EIP-2718 type 2).

    Fees are in wei per gas; the priority fee is part of the maximum, and may not be above it.
    """
    signed = Account.sign_transaction(
        {
            "type": 2,
            "chainId": chain_id,
            "nonce": nonce,
            "to": bytes.fromhex(to[2:]),
            "value": 0,
            "data": data,
            "gas": gas_limit,
            "maxFeePerGas": max_fee_wei,
            "maxPriorityFeePerGas": priority_fee_wei,
        },
        key,
    )
    return Signed(raw=bytes(signed.raw_transaction), hash="0x" + bytes(signed.hash).hex())
