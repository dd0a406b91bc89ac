"""An EVM chain that lives by the world's time: blocks come by themselves, strangers act on it, it changes its mind.

Invariant: blocks are made when somebody looks, as many as the time since the last look wants, so that a month without a
look costs nothing; and no history is undone that has as many blocks as we ask for.
"""

from collections.abc import Callable
from typing import Final

import msgspec
from spawn_schemas.ids import Address

from spawn.evm.eip3009 import TRANSFER, address_topic
from spawn.evm.node import Receipt
from spawn.payments.curve import recover
from spawn.payments.exact import ExactPayment, Terms, digest
from tests.chain_parts import Mined, Transaction
from tests.fake_node import FakeNode, Reverted

BLOCK_S: Final = 2
PROMPT: Final = 8
"""So many blocks after a look come as fast as ever; what waits in the pool is in the first of them."""
SPARSE: Final = 36
"""Into so many blocks goes all the time after those: enough to bury what came before, at any depth that we ask for."""
ROLLUP_FEE_WEI: Final = 7_000_000_007
"""What a transaction pays besides its gas (OP stack, `l1Fee`)."""
_DOMAIN_SEPARATOR: Final = bytes.fromhex("3644e515")
_IS_VALID_SIGNATURE: Final = bytes.fromhex(
    "1626ba7e"
)  # isValidSignature(bytes32,bytes), and its yes (EIP-1271)


class SimNode(FakeNode):
    """The node, and the hands of strangers."""

    def __init__(self, terms: Terms, *, now: Callable[[], int], tell: Callable[[str], None]) -> None:
        """`now` is the true time in unix seconds; `tell` hears of each block that has something in it."""
        self._true_s = now
        self._at = now()
        self._tell = tell
        self.owners: dict[str, str] = {}
        """Accounts with code that stands by what these keys sign (EIP-1271); the same account: delegated (EIP-7702)."""
        self.stalled_until = 0
        self.choosy_until = 0
        self.dear_until = 0
        self.dear_wei = 0
        self._deeds: dict[str, Callable[[], object]] = {}
        """What strangers did, by the hash of its block."""
        super().__init__(terms, now=lambda: self._at, automine=False)
        self._usual_wei = self.base_fee_wei

    # --- time ---------------------------------------------------------------------------------------------------

    async def _answer(self, name: str) -> None:
        """Ways, losses and outages are the port's."""
        self.catch_up()

    def catch_up(self) -> None:
        """Make the blocks that came since the last look."""
        self._at = now = self._true_s()
        if now >= self.choosy_until:
            self.faults.least_tip_wei = 0
        behind = now - self._head.at
        if behind < BLOCK_S or now < self.stalled_until:
            return
        for at in _times(self._head.at, now):
            self._at = at
            self.base_fee_wei = self.dear_wei if at < self.dear_until else self._usual_wei
            self.mine()
        self._at = now

    def relax(self) -> None:
        """Nothing stands in the way of transactions any more."""
        self.stalled_until = self.dear_until = 0
        self.faults.least_tip_wei = self.faults.swallow = 0
        self.base_fee_wei = self._usual_wei
        self.greedy.clear()
        self.hungry.clear()
        self.catch_up()

    @property
    def height(self) -> int:
        """The number of the newest block."""
        return self._head.number

    def receipts_in(self, number: int) -> list[Receipt]:
        """What is in this block."""
        return self._chain[number].receipts

    def receipt_of(self, transaction: str) -> Receipt | None:
        """The receipt of what is in a block."""
        return self._receipts.get(transaction)

    # --- strangers ----------------------------------------------------------------------------------------------

    def bring(self, payment: ExactPayment) -> str | None:
        """Somebody submits this authorization; the transaction's hash, or None where the token refuses it."""
        self.catch_up()
        try:
            self.submit(payment)
        except Reverted:
            return None
        return self._done(lambda: self.bring(payment), "an authorization by a stranger")

    def annul(self, payer: str, nonce: str) -> None:
        """The payer cancels an authorization; too late, nothing happens."""
        self.catch_up()
        before = self.height
        self.cancel(payer, nonce)
        if self.height > before:
            self._done(lambda: self.annul(payer, nonce), "a cancellation")

    def give(self, sender: str, recipient: str, amount: int) -> str | None:
        """An ordinary transfer; None where it is not covered."""
        self.catch_up()
        if self.balance(sender) < amount:
            return None
        before, self._state = self._state, self._state.copy()
        balances = self._state.balances
        balances[sender] = balances.get(sender, 0) - amount
        balances[recipient] = balances.get(recipient, 0) + amount
        topics = (TRANSFER, address_topic(sender), address_topic(recipient))
        self._block_of_stranger(before, [(self._terms.asset, topics, amount.to_bytes(32, "big"))])
        return self._done(lambda: self.give(sender, recipient, amount), "a transfer")

    def reorganise(self, depth: int, *, lose: bool = False) -> None:
        """See FakeNode; what strangers did in the undone blocks comes again with the rest."""
        undone = [self._deeds.pop(mined.block.hash, None) for mined in self._chain[-depth:]]
        super().reorganise(depth, lose=lose)
        for deed in undone:
            if deed is not None and not lose:
                deed()

    def _done(self, deed: Callable[[], object], what: str) -> str:
        mined = self._chain[-1]
        self._deeds[mined.block.hash] = deed
        self._tell(f"block {mined.block.number}: {what}")
        return mined.receipts[-1].transaction

    # --- accounts with code ---------------------------------------------------------------------------------------

    def deploy(self, account: str, owner: str) -> None:
        """Put code at the account that stands by what the owner's key signs."""
        self.codes[account] = b"\xef\x01\x00" if account == owner else b"\x60"
        self.owners[account] = owner

    async def call(
        self,
        to: Address,
        data: bytes,
        *,
        sender: Address | None = None,
        gas: int | None = None,
        block: int | None = None,
    ) -> bytes:
        """See `Node.call`."""
        if to in self.owners and data[:4] == _IS_VALID_SIGNATURE:
            length = int.from_bytes(data[68:100], "big")
            fine = _approves(self.owners[to], data[4:36], data[100 : 100 + length])
            return (_IS_VALID_SIGNATURE if fine else b"\xff" * 4) + bytes(28)
        if to == self._terms.asset and data == _DOMAIN_SEPARATOR:
            return self._terms.domain_separator
        return await super().call(to, data, sender=sender, gas=gas, block=block)

    def stands_by(self, payment: ExactPayment) -> bool:
        """Whether the token would take the signature."""
        return self._stands_by(payment)

    def _stands_by(self, payment: ExactPayment) -> bool:
        owner = self.owners.get(payment.payer)
        if owner is None:
            return super()._stands_by(payment)
        signature = bytes.fromhex(payment.signature[2:])
        return _approves(owner, digest(payment, self._terms), signature)

    # --- blocks ---------------------------------------------------------------------------------------------------

    def _mine(self, only: set[str] | None) -> None:
        super()._mine(only)
        mined = self._chain[-1]
        if mined.transactions:
            self._tell(f"block {mined.block.number}: {len(mined.transactions)} transactions")

    def _run(self, transaction: Transaction, mined: Mined) -> Receipt:
        """A rollup takes a fee besides the gas."""
        receipt = super()._run(transaction, mined)
        self._state.ether_wei[transaction.sender] -= ROLLUP_FEE_WEI
        return msgspec.structs.replace(receipt, rollup_fee_wei=ROLLUP_FEE_WEI)


def _approves(owner: str, hashed: bytes, signature: bytes) -> bool:
    """The owner's signature, with whatever its wallet puts behind it."""
    try:
        return recover(hashed, signature[:65]) == owner
    except ValueError:
        return False


def _times(last: int, now: int) -> list[int]:
    """When the blocks after `last` were made: at the usual pace if they are few, else the later ones far apart."""
    prompt = list(range(last + BLOCK_S, now + 1, BLOCK_S)[: PROMPT + SPARSE])
    if last + BLOCK_S * (PROMPT + SPARSE) >= now - BLOCK_S:
        return prompt
    begin = last + BLOCK_S * PROMPT
    return prompt[:PROMPT] + [begin + (now - begin) * number // SPARSE for number in range(1, SPARSE + 1)]
