"""What a chain, and others on it, do with transactions while we wait for them."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType

from spawn.payments.exact import ExactPayment
from tests.anvil import Chain, anvil
from tests.e2e.anvil_crashing import PAY_TO, Weather
from tests.harness import START_S
from tests.wallets import Wallet


@contextlib.contextmanager
def new_chain() -> Iterator[Chain]:
    """A chain on which customers 1 and 2 have money."""
    with anvil(at=START_S) as chain:
        for wallet in map(Wallet.numbered, (1, 2)):
            chain.fund(wallet.address, 100_000_000)
        chain.mine(5)  # what is replaced must not be what was given without a transaction
        yield chain


class Slow(Weather):
    """Transactions wait for the next turn's block."""

    def begin(self, chain: Chain, payments: Sequence[ExactPayment]) -> None:
        chain.set_automine(False)


class Dropping(Slow):
    """The node forgets what it was given, twice."""

    def __init__(self) -> None:
        self.drops = 2

    def turn(self, chain: Chain, now: int) -> None:
        if self.drops and chain.pending():
            self.drops -= 1
            chain.drop_all()
        super().turn(chain, now)


class Delaying(Slow):
    """No block for so long that the relayer offers more, three times."""

    def __init__(self) -> None:
        self.turns = 28

    def turn(self, chain: Chain, now: int) -> None:
        if self.turns and chain.pending():
            self.turns -= 1
        else:
            super().turn(chain, now)


class Reorganising(Weather):
    """What had our transaction is replaced by blocks without it, before it was deep enough."""

    settings = MappingProxyType({"confirmations": 3})

    def __init__(self) -> None:
        self.is_due = True

    def turn(self, chain: Chain, now: int) -> None:
        super().turn(chain, now)
        if self.is_due and chain.transfers(PAY_TO):
            self.is_due = False
            chain.reorg(2)
            assert chain.transfers(PAY_TO) == []


class Rewriting(Slow):
    """We offered more and that was mined; then the chain changes its mind, for our first version."""

    settings = MappingProxyType({"confirmations": 3})

    def __init__(self) -> None:
        self.first: str | None = None
        self.raw = b""

    def turn(self, chain: Chain, now: int) -> None:
        waiting = chain.pending()
        if self.first is None and waiting:
            self.first, self.raw = waiting[0], _raw(chain, waiting[0])
        if waiting == [self.first]:
            return  # no block until there is another version
        super().turn(chain, now)
        if self.raw and chain.transfers(PAY_TO):
            chain.reorg(1, self.raw)
            self.raw = b""
            assert [one.transaction for one in chain.transfers(PAY_TO)] == [self.first]


class Reordering(Slow):
    """A stranger submits the authorization as we do. One transaction moves the money and the other fails; then the
    chain has them the other way round.
    """

    settings = MappingProxyType({"confirmations": 3})

    def __init__(self) -> None:
        self.stranger: str | None = None
        self.is_due = True

    def begin(self, chain: Chain, payments: Sequence[ExactPayment]) -> None:
        super().begin(chain, payments)
        (self._payment,) = payments

    def at_point(self, chain: Chain, label: str) -> None:
        if self.stranger is None and label == "before node.send":
            self.stranger = chain.submit(self._payment)

    def turn(self, chain: Chain, now: int) -> None:
        raw = {one: _raw(chain, one) for one in chain.pending()}
        mark = chain.snapshot()
        super().turn(chain, now)
        if self.is_due and len(raw) == 2:
            self.is_due = False
            (first,) = chain.transfers(PAY_TO)
            chain.revert(mark)
            chain.drop_all()
            for one in sorted(raw, key=lambda one: one == first.transaction):
                chain.ask("eth_sendRawTransaction", "0x" + raw[one].hex())
                chain.mine()
            (then,) = chain.transfers(PAY_TO)
            assert then.transaction != first.transaction


def _raw(chain: Chain, transaction: str) -> bytes:
    return bytes.fromhex(chain.ask("eth_getRawTransactionByHash", transaction)[2:])


class Meddling(Weather):
    """Somebody else spends the nonce of our customer's authorization: before we see it, just before our
    transaction is sent, or in the block that has it.
    """

    def __init__(self, when: str, spend: Callable[[Chain, ExactPayment], str]) -> None:
        self.when = when
        self.transaction: str | None = None
        self._spend = spend

    def begin(self, chain: Chain, payments: Sequence[ExactPayment]) -> None:
        (self._payment,) = payments
        if self.when == "before":
            self.transaction = self._spend(chain, self._payment)

    def at_point(self, chain: Chain, label: str) -> None:
        if self.transaction is None and label == "before node.send":
            chain.set_automine(self.when != "same block")
            self.transaction = self._spend(chain, self._payment)

    def turn(self, chain: Chain, now: int) -> None:
        super().turn(chain, now)
        chain.set_automine(True)


def submit(chain: Chain, payment: ExactPayment) -> str:
    """A stranger brings the authorization to the chain."""
    return chain.submit(payment)


def cancel(chain: Chain, payment: ExactPayment) -> str:
    """Its payer takes it back."""
    payer = next(one for one in map(Wallet.numbered, (1, 2)) if one.address == payment.payer)
    return chain.cancel(payer.account, payment.nonce)
