"""What settling is measured on: anvil on a core of its own, wallets with money, and payments that they signed.

Invariant: every measurement starts on a new chain, and counts only when the chain shows each payment once and whole.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from eth_account import Account
from spawn_schemas.ids import parse_address
from spawn_schemas.money import Usdc

from spawn.payments.curve import keccak256
from spawn.payments.exact import ExactPayment
from tests.anvil import Chain, anvil
from tests.bench.processes import pinned
from tests.payments import PAYEE, authorize

WALLETS: Final = 50
VALUE: Final = 1_000
"""What each payment moves, in micro-USDC."""
_FUNDS: Final = Usdc(1_000_000_000)
_LIFE_S: Final = 86_400
_ACCOUNTS: Final = [Account.from_key(keccak256(b"payer %d" % number)) for number in range(WALLETS)]


def signed_payments(count: int) -> list[ExactPayment]:
    """`count` payments, each wallet's turn after the other's, with nonces as dear as random ones are in call data."""
    valid_before = int(time.time()) + _LIFE_S
    return [
        authorize(
            _ACCOUNTS[number % WALLETS],
            value=VALUE,
            nonce=int.from_bytes(keccak256(b"nonce %d" % number)),
            valid_before=valid_before,
        )
        for number in range(count)
    ]


@contextmanager
def stage(core: int) -> Iterator[Chain]:
    """A new chain on this core, on which every wallet has money and the payee has some."""
    with pinned(core):
        running = anvil()
        chain = running.__enter__()
    try:
        for account in _ACCOUNTS:
            chain.fund(parse_address(account.address), _FUNDS)
        chain.fund(PAYEE, VALUE)
        yield chain
    finally:
        running.__exit__(None, None, None)


def require_settled(chain: Chain, payments: Sequence[ExactPayment]) -> int:
    """How many transactions moved these payments; raises AssertionError unless each was moved once."""
    moved = chain.transfers(PAYEE)
    paid = sorted(transfer.sender for transfer in moved)
    assert paid == sorted(payment.payer for payment in payments), "the chain shows other payments"
    assert chain.balance(PAYEE) == VALUE * (1 + len(payments)), "the payee has another sum"
    return len({transfer.transaction for transfer in moved})
