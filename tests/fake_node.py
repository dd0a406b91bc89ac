"""A chain in memory: a token as USDC has it, Multicall3, a mempool, blocks, and everything that goes wrong.

Invariant: what a mined transaction does follows from its bytes alone; nothing knows about our service. It stands in
for anvil where a test needs thousands of faults, and shares no code with what it tests but encoders and keccak.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from eth_abi.abi import decode, encode
from eth_account import Account
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from hexbytes import HexBytes
from spawn_schemas.ids import Address

from spawn.evm.eip3009 import AUTHORIZATION_CANCELED, AUTHORIZATION_USED, TRANSFER, address_topic
from spawn.evm.node import (
    AlreadyKnown,
    Block,
    CallReverted,
    Log,
    NodeUnavailable,
    NonceTooLow,
    OutOfGasMoney,
    Receipt,
    Underpriced,
)
from spawn.payments.curve import keccak256
from spawn.payments.exact import ExactPayment, PaymentInvalid, Terms, require_signature
from tests.calldata import (
    AGGREGATE3,
    AUTHORIZATION_STATE,
    BALANCE_OF,
    TRANSFER_BY_BYTES,
    TRANSFER_BY_KEY,
    address_in,
    payment_in,
)
from tests.chain_parts import Mined, NodeFaults, State, Transaction, make_receipt, matches

MULTICALL: Final = Address("0xca11bde05977b3631167028862be2a173976ca11")
GWEI: Final = 10**9


class Reverted(Exception):
    """The contract undoes what it was asked to do."""


class FakeNode:
    """A `Node` and the hands that move its chain. With `automine` each transaction gets a block at once."""

    def __init__(self, terms: Terms, *, now: Callable[[], int], automine: bool = True) -> None:
        self.faults = NodeFaults()
        self.automine = automine
        self.base_fee_wei = GWEI // 100
        self.tip_wei = GWEI // 1000
        self.codes: dict[str, bytes] = {MULTICALL: b"\x60", terms.asset: b"\x60"}
        self.wallets: set[str] = set()
        """Accounts whose code accepts every signature (EIP-1271)."""
        self.greedy: set[str] = set()
        """Accounts whose code uses up all gas when it is mined, and none when it is tried."""
        self.hungry: set[str] = set()
        """Accounts whose code leaves nothing for those who come after it, mined or tried."""
        self.gas_needed: dict[str, int] = {}
        """Accounts whose code needs so much gas, when it is tried alone."""
        self.attempts: list[str] = []
        """The hash of everything that reached the node, accepted or not."""
        self._terms = terms
        self._now = now
        self._state = State()
        self._given_usdc: dict[str, int] = {}
        self._given_wei: dict[str, int] = {}
        self._pool: dict[tuple[Address, int], Transaction] = {}
        self._salt = 0
        self._chain = [Mined(block=self._block(0), before=self._state)]
        self._receipts: dict[str, Receipt] = {}

    # --- Node ---------------------------------------------------------------------------------------------------

    async def chain_id(self) -> int:
        await self._answer("chain_id")
        return self._terms.chain_id

    async def block(self, number: int | None = None) -> Block | None:
        await self._answer("block")
        if number is None:
            return self._head
        return self._chain[number].block if 0 <= number < len(self._chain) else None

    async def nonce(self, account: Address) -> int:
        await self._answer("nonce")
        return self._state.nonces.get(account, 0)

    async def balance_wei(self, account: Address) -> int:
        await self._answer("balance_wei")
        return self.ether_wei(account)

    async def code(self, account: Address) -> bytes:
        await self._answer("code")
        return self.codes.get(account, b"")

    async def call(
        self,
        to: Address,
        data: bytes,
        *,
        sender: Address | None = None,
        gas: int | None = None,
        block: int | None = None,
    ) -> bytes:
        await self._answer("call")
        if to not in self.codes:
            return b""
        payer = address_in(data[4:36])
        if gas is not None and to == self._terms.asset and gas < self.gas_needed.get(payer, 0):
            raise CallReverted
        number = self._head.number if block is None else block
        if number > self._head.number:
            raise NodeUnavailable("header not found")
        after = self._state if number == self._head.number else self._chain[number + 1].before
        kept, self._state = self._state, after.copy()
        try:
            answer, _ = self._execute(to, data, self._chain[number].block.at, mined=False)
        except Reverted as error:
            raise CallReverted from error
        finally:
            self._state = kept
        return answer

    async def priority_fee_wei(self) -> int:
        await self._answer("priority_fee_wei")
        return self.tip_wei

    async def send(self, raw: bytes) -> None:
        await self._answer("send")
        if self.faults.take("lose_request"):
            raise NodeUnavailable("the request was lost")
        transaction = self._decode(raw)
        self.attempts.append(transaction.hash)
        self._admit(transaction)
        if self.faults.take("swallow"):
            del self._pool[transaction.sender, transaction.nonce]
        elif self.automine:
            self.mine()
        self.faults.on_call("send")
        if self.faults.take("lose_answer"):
            raise NodeUnavailable("the answer was lost")

    async def receipts(self, transactions: tuple[str, ...]) -> tuple[Receipt | None, ...]:
        await self._answer("receipts")
        return tuple(self._receipts.get(transaction) for transaction in transactions)

    async def logs(
        self,
        address: Address,
        topics: tuple[bytes | tuple[bytes, ...] | None, ...],
        *,
        first_block: int,
        last_block: int,
    ) -> tuple[Log, ...]:
        await self._answer("logs")
        return tuple(
            log
            for mined in self._chain[first_block : last_block + 1]
            for receipt in mined.receipts
            for log in receipt.logs
            if log.address == address and matches(log, topics)
        )

    # --- the hands of others --------------------------------------------------------------------------------------

    @property
    def _head(self) -> Block:
        return self._chain[-1].block

    @property
    def pending(self) -> list[str]:
        """Hashes of the transactions that no block has."""
        return [transaction.hash for transaction in self._pool.values()]

    def fund(self, wallet: str, usdc: int) -> None:
        """Give somebody money, in the block that is there."""
        self._given_usdc[wallet] = self._given_usdc.get(wallet, 0) + usdc

    def give_ether(self, account: str, wei: int) -> None:
        self._given_wei[account] = self._given_wei.get(account, 0) + wei

    def balance(self, wallet: str) -> int:
        return self._given_usdc.get(wallet, 0) + self._state.balances.get(wallet, 0)

    def ether_wei(self, account: str) -> int:
        return self._given_wei.get(account, 0) + self._state.ether_wei.get(account, 0)

    def used(self, account: str) -> int:
        """How many transactions of the account are in blocks."""
        return self._state.nonces.get(account, 0)

    def transfers(self) -> list[tuple[str, str]]:
        """(payer, nonce) of every authorization that moved money to the payee, in the chain as it is."""
        return [key for keys in self.transfers_by_transaction().values() for key in keys]

    def transfers_by_transaction(self) -> dict[str, list[tuple[str, str]]]:
        """The same, by the hash of the transaction."""
        return {
            receipt.transaction: [
                ("0x" + log.topics[1][12:].hex(), "0x" + log.topics[2].hex())
                for log in receipt.logs
                if log.topics[0] == AUTHORIZATION_USED
            ]
            for mined in self._chain
            for receipt in mined.receipts
        }

    def is_spent(self, payment: ExactPayment) -> bool:
        """Whether the nonce was used or cancelled."""
        return (payment.payer, payment.nonce) in self._state.spent

    def mine(self, count: int = 1, *, only: Iterable[str] | None = None) -> None:
        """Make blocks; the first takes what can be mined (or what of `only` can)."""
        for _ in range(count):
            self._mine(None if only is None else set(only))

    def forget(self) -> list[str]:
        """Drop every transaction that no block has."""
        dropped = self.pending
        self._pool.clear()
        return dropped

    def reorganise(self, depth: int, *, lose: bool = False) -> None:
        """Take back blocks, and make as many empty ones and one more; their transactions wait again, or are lost."""
        undone = self._chain[len(self._chain) - depth :]
        del self._chain[len(self._chain) - depth :]
        self._state = undone[0].before
        for receipt in (receipt for mined in undone for receipt in mined.receipts):
            del self._receipts[receipt.transaction]
        for transaction in (transaction for mined in undone for transaction in mined.transactions):
            if not lose and transaction.raw:
                self._pool.setdefault((transaction.sender, transaction.nonce), transaction)
        self.mine(depth + 1, only=())

    def submit(self, payment: ExactPayment) -> None:
        """A stranger brings somebody's authorization to the chain, in a block of its own; it has to be good."""
        before, self._state = self._state, self._state.copy()
        logs = self._transfer(payment, max(self._now(), self._head.at))
        self._block_of_stranger(before, logs)

    def cancel(self, payer: str, nonce: str) -> None:
        """The payer's `cancelAuthorization`, in a block of its own; too late, it does nothing."""
        if (payer, nonce) in self._state.spent:
            return
        before, self._state = self._state, self._state.copy()
        self._state.spent.add((payer, nonce))
        topics = (AUTHORIZATION_CANCELED, address_topic(payer), bytes.fromhex(nonce[2:]))
        self._block_of_stranger(before, [(self._terms.asset, topics, b"")])

    def spend_nonce(self, account: Address) -> None:
        """Somebody who has the same key sends a transaction of his own."""
        before, self._state = self._state, self._state.copy()
        self._pool.pop((account, self.used(account)), None)
        self._state.nonces[account] = self.used(account) + 1
        self._block_of_stranger(before, [])

    # --- the machine ----------------------------------------------------------------------------------------------

    async def _answer(self, name: str) -> None:
        await asyncio.sleep(0)
        if self.faults.down:
            raise NodeUnavailable("nobody answers")
        self.faults.on_call(name)

    def _block(self, number: int) -> Block:
        self._salt += 1
        at = self._now() if number == 0 else max(self._now(), self._head.at)
        hash_ = "0x" + keccak256(b"block %d" % self._salt).hex()
        return Block(number=number, hash=hash_, at=at, base_fee_wei=self.base_fee_wei)

    def _decode(self, raw: bytes) -> Transaction:
        fields = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
        return Transaction(
            raw=raw,
            hash="0x" + keccak256(raw).hex(),
            sender=Address(str(Account.recover_transaction(raw)).lower()),
            nonce=int(fields["nonce"]),
            to=Address("0x" + bytes(fields["to"]).hex()),
            data=bytes(fields["data"]),
            gas_limit=int(fields["gas"]),
            max_fee_wei=int(fields["maxFeePerGas"]),
            tip_wei=int(fields["maxPriorityFeePerGas"]),
        )

    def _admit(self, new: Transaction) -> None:
        old = self._pool.get((new.sender, new.nonce))
        if old is not None and old.hash == new.hash:
            raise AlreadyKnown("already known")
        if new.nonce < self._state.nonces.get(new.sender, 0):
            raise NonceTooLow("nonce too low")
        if new.gas_limit * new.max_fee_wei > self.ether_wei(new.sender):
            raise OutOfGasMoney("insufficient funds for gas * price + value")
        if new.tip_wei < self.faults.least_tip_wei:
            raise Underpriced("transaction underpriced")
        if old is not None and (
            new.max_fee_wei * 10 < old.max_fee_wei * 11 or new.tip_wei * 10 < old.tip_wei * 11
        ):
            raise Underpriced("replacement transaction underpriced")
        self._pool[new.sender, new.nonce] = new

    def _mine(self, only: set[str] | None) -> None:
        mined = Mined(block=self._block(len(self._chain)), before=self._state)
        for transaction in sorted(self._pool.values(), key=lambda one: one.nonce):
            if only is not None and transaction.hash not in only:
                continue
            fits = transaction.max_fee_wei >= self.base_fee_wei
            if fits and transaction.nonce == self._state.nonces.get(transaction.sender, 0):
                del self._pool[transaction.sender, transaction.nonce]
                if not mined.transactions:
                    self._state = self._state.copy()
                mined.transactions.append(transaction)
                self._keep(mined, self._run(transaction, mined))
        self._chain.append(mined)

    def _run(self, transaction: Transaction, mined: Mined) -> Receipt:
        state = self._state
        state.nonces[transaction.sender] = transaction.nonce + 1
        logs: list[tuple[Address, tuple[bytes, ...], bytes]] = []
        succeeded = True
        try:
            _, logs = self._execute(transaction.to, transaction.data, mined.block.at, mined=True)
        except Reverted:
            succeeded = False
        gas_used = 21_000 + 40_000 * len(logs)
        price = min(transaction.max_fee_wei, self.base_fee_wei + transaction.tip_wei)
        state.ether_wei[transaction.sender] = state.ether_wei.get(transaction.sender, 0) - gas_used * price
        return make_receipt(
            transaction.hash, mined, logs, succeeded=succeeded, gas_used=gas_used, price=price
        )

    def _block_of_stranger(self, before: State, logs: list[tuple[Address, tuple[bytes, ...], bytes]]) -> None:
        mined = Mined(block=self._block(len(self._chain)), before=before)
        hash_ = "0x" + keccak256(b"stranger %d" % self._salt).hex()
        self._keep(mined, make_receipt(hash_, mined, logs, succeeded=True, gas_used=60_000, price=1))
        self._chain.append(mined)

    def _keep(self, mined: Mined, receipt: Receipt) -> None:
        mined.receipts.append(receipt)
        self._receipts[receipt.transaction] = receipt

    def _execute(
        self, to: Address, data: bytes, at: int, *, mined: bool
    ) -> tuple[bytes, list[tuple[Address, tuple[bytes, ...], bytes]]]:
        if to == MULTICALL and data[:4] == AGGREGATE3 and to in self.codes:
            return self._aggregate(data, at, mined=mined)
        if to != self._terms.asset:
            return b"", []
        words = [data[index : index + 32] for index in range(4, len(data), 32)]
        match data[:4]:
            case selector if selector in {TRANSFER_BY_KEY, TRANSFER_BY_BYTES}:
                if mined and address_in(words[0]) in self.greedy:
                    raise Reverted
                return b"", self._transfer(payment_in(data[:4], words), at)
            case selector if selector == AUTHORIZATION_STATE:
                spent = (address_in(words[0]), "0x" + words[1].hex()) in self._state.spent
                return int(spent).to_bytes(32, "big"), []
            case selector if selector == BALANCE_OF:
                return self.balance(address_in(words[0])).to_bytes(32, "big"), []
            case _:
                raise Reverted

    def _aggregate(
        self, data: bytes, at: int, *, mined: bool
    ) -> tuple[bytes, list[tuple[Address, tuple[bytes, ...], bytes]]]:
        (calls,) = decode(["(address,bool,bytes)[]"], data[4:])
        answers, logs = [], []
        out_of_gas = False
        for to, _, item in calls:
            words = [item[index : index + 32] for index in range(4, len(item), 32)]
            out_of_gas = out_of_gas or (mined and address_in(words[0]) in self.greedy)
            try:
                if out_of_gas:
                    raise Reverted
                answer, more = self._execute(Address(to), item, at, mined=mined)
            except Reverted:
                answers.append((False, b""))
            else:
                answers.append((True, answer))
                logs += more
            out_of_gas = out_of_gas or address_in(words[0]) in self.hungry
        return encode(["(bool,bytes)[]"], [answers]), logs

    def _transfer(self, payment: ExactPayment, at: int) -> list[tuple[Address, tuple[bytes, ...], bytes]]:
        state = self._state
        if not payment.valid_after < at < payment.valid_before:
            raise Reverted
        if (payment.payer, payment.nonce) in state.spent:
            raise Reverted
        if not self._stands_by(payment) or self.balance(payment.payer) < payment.value:
            raise Reverted
        state.spent.add((payment.payer, payment.nonce))
        state.balances[payment.payer] = state.balances.get(payment.payer, 0) - payment.value
        state.balances[payment.pay_to] = state.balances.get(payment.pay_to, 0) + payment.value
        payer = address_topic(payment.payer)
        used = (AUTHORIZATION_USED, payer, bytes.fromhex(payment.nonce[2:]))
        moved = (TRANSFER, payer, address_topic(payment.pay_to))
        return [
            (self._terms.asset, used, b""),
            (self._terms.asset, moved, payment.value.to_bytes(32, "big")),
        ]

    def _stands_by(self, payment: ExactPayment) -> bool:
        """Whether the payer's key or code accepts the signature."""
        if payment.payer in self.wallets:
            return True
        try:
            require_signature(payment, self._terms)
        except PaymentInvalid:
            return False
        return True
