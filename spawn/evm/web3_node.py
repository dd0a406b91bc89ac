"""A chain's node over JSON-RPC, by web3: the only module that imports it.

Invariant: an answer is either of the shape we asked for or NodeUnavailable. Only an error that says so is taken as a
refusal of a transaction; one that we do not know may come from a proxy in front, and says nothing about it.
Questions go through web3's provider and are read by shape here: web3's own conversion of a block of 100 events takes
longer than settling them.
"""

import asyncio
import re
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import ClientError, ClientResponseError, ClientSession, ClientTimeout, TCPConnector
from spawn_schemas.ids import Address, parse_address
from web3 import AsyncHTTPProvider, AsyncWeb3
from web3.exceptions import Web3Exception
from web3.types import RPCEndpoint

from spawn.evm.node import (
    AlreadyKnown,
    Block,
    CallReverted,
    Log,
    NodeUnavailable,
    NonceTooLow,
    OutOfGasMoney,
    Receipt,
    SendRefused,
    Underpriced,
)

T = TypeVar("T")

_REFUSALS: Final[tuple[tuple[re.Pattern[str], type[SendRefused]], ...]] = tuple(
    (re.compile(words, re.IGNORECASE), kind)
    for words, kind in (
        (r"already known|already imported|alreadyknown|known transaction", AlreadyKnown),
        (r"nonce too low|oldnonce|nonce is too low", NonceTooLow),
        (r"insufficient funds|insufficientfunds", OutOfGasMoney),
        (r"underpriced|less than block base fee|fee ?too ?low|replacementnotallowed", Underpriced),
        (
            r"intrinsic gas|exceeds block gas limit|gas limit too high|oversized data|tip above|priority fee"
            r"|invalid chain|invalid sender|rlp|nonce too high|exceeds the configured cap",
            SendRefused,
        ),
    )
)
"""What nodes say (geth, reth, nethermind, erigon, anvil): JSON-RPC gives refusals no codes of their own."""
_REJECTED: Final = -32003  # "transaction rejected" (EIP-1474)
_HALTED: Final = re.compile(
    r"revert|out of gas|gas uint64 overflow|invalid opcode|invalid jump|stack (?:under|over)flow|stack limit"
    r"|write protection|return data out of bounds|evm error",
    re.IGNORECASE,
)
"""What nodes say of a contract that did not end well (geth's `core/vm/errors.go`; revm's begin alike)."""
_REVERTED: Final = 3  # geth's code for a call that reverted; its data is the contract's error
_BATCH_MAX: Final = 50  # public nodes refuse batches much larger
_KEPT_ALIVE_S: Final = 5
"""Less than nodes and proxies keep an idle connection: a question on one that they just closed has no answer."""

_NO_ANSWER: Final = (ClientError, Web3Exception, OSError, TimeoutError, ValueError, TypeError, AttributeError)
"""What web3 raises for a lost connection, a status, and an answer that is no JSON-RPC at all."""


class _Failure(msgspec.Struct):
    code: int = 0
    message: str = ""
    data: Any = None


class _Answer(msgspec.Struct):
    result: Any = None
    error: _Failure | None = None


class _WireBlock(msgspec.Struct, rename="camel"):
    number: str
    hash: str
    timestamp: str
    base_fee_per_gas: str = "0x0"


class _WireLog(msgspec.Struct, rename="camel"):
    address: str
    topics: list[str]
    data: str
    block_number: str
    block_hash: str
    transaction_hash: str
    log_index: str


class _WireReceipt(msgspec.Struct, rename="camel"):
    transaction_hash: str
    status: str
    block_number: str
    block_hash: str
    gas_used: str
    effective_gas_price: str
    logs: list[_WireLog]
    l1_fee: str | None = None


class _NodeRefused(NodeUnavailable):
    """The node answered with an error; only the question tells whether that error says something."""

    def __init__(self, failure: _Failure) -> None:
        super().__init__(f"the node answered with error {failure.code}: {failure.message}")
        self.failure = failure


class Web3Node:
    """Implements `spawn.evm.node.Node`."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        """Nothing is asked yet. `timeout_s` bounds each question, and none is asked twice."""
        self._web3 = AsyncWeb3(
            AsyncHTTPProvider(
                url,
                request_kwargs={"timeout": ClientTimeout(total=timeout_s)},
                exception_retry_configuration=None,
            )
        )
        self._connecting: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        await asyncio.gather(*self._asking, return_exceptions=True)
        if self._connecting is not None:
            await self._connecting
        await self._web3.provider.disconnect()

    async def _provider(self) -> AsyncHTTPProvider:
        """web3's, with connections that are used again: left to itself it makes a new one for every question."""
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
        await asyncio.shield(self._connecting)
        return self._web3.provider

    async def _connect(self) -> None:
        connector = TCPConnector(keepalive_timeout=_KEPT_ALIVE_S)
        session = ClientSession(raise_for_status=True, connector=connector)
        await self._web3.provider.cache_async_session(session)

    async def chain_id(self) -> int:
        """See `Node.chain_id`."""
        return await self._number("eth_chainId")

    async def block(self, number: int | None = None) -> Block | None:
        """See `Node.block`."""
        which = "latest" if number is None else hex(number)
        answer = await self._ask("eth_getBlockByNumber", which, False)
        if answer is None:
            return None
        with _reading():
            wire = msgspec.convert(answer, _WireBlock)
            return Block(
                number=_int(wire.number),
                hash=_hash(wire.hash),
                at=_int(wire.timestamp),
                base_fee_wei=_int(wire.base_fee_per_gas),
            )

    async def nonce(self, account: Address) -> int:
        """See `Node.nonce`."""
        return await self._number("eth_getTransactionCount", account, "latest")

    async def balance_wei(self, account: Address) -> int:
        """See `Node.balance_wei`."""
        return await self._number("eth_getBalance", account, "latest")

    async def code(self, account: Address) -> bytes:
        """See `Node.code`."""
        return await self._bytes("eth_getCode", account, "latest")

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
        message = {"to": to, "data": _hex(data)}
        message |= {} if sender is None else {"from": sender}
        message |= {} if gas is None else {"gas": hex(gas)}
        try:
            return await self._bytes("eth_call", message, "latest" if block is None else hex(block))
        except _NodeRefused as error:
            if error.failure.code != _REVERTED and not _HALTED.search(error.failure.message):
                raise
            raise CallReverted(_revert_data(error.failure.data)) from error

    async def priority_fee_wei(self) -> int:
        """See `Node.priority_fee_wei`."""
        return await self._number("eth_maxPriorityFeePerGas")

    async def send(self, raw: bytes) -> None:
        """See `Node.send`."""
        try:
            await self._bytes("eth_sendRawTransaction", _hex(raw))
        except _NodeRefused as error:
            for words, refusal in _REFUSALS:
                if words.search(error.failure.message):
                    raise refusal(error.failure.message) from error
            if error.failure.code == _REJECTED:
                raise SendRefused(error.failure.message) from error
            raise

    async def receipts(self, transactions: tuple[str, ...]) -> tuple[Receipt | None, ...]:
        """See `Node.receipts`."""
        found: dict[str, Receipt] = {}
        for start in range(0, len(transactions), _BATCH_MAX):
            for answer in await self._ask_for_each(
                "eth_getTransactionReceipt", transactions[start : start + _BATCH_MAX]
            ):
                if answer is None:
                    continue
                with _reading():
                    receipt = _receipt(msgspec.convert(answer, _WireReceipt))
                found[receipt.transaction] = receipt
        return tuple(found.get(transaction) for transaction in transactions)

    async def logs(
        self,
        address: Address,
        topics: tuple[bytes | tuple[bytes, ...] | None, ...],
        *,
        first_block: int,
        last_block: int,
    ) -> tuple[Log, ...]:
        """See `Node.logs`."""
        wanted = [
            list(map(_hex, topic)) if isinstance(topic, tuple) else topic and _hex(topic) for topic in topics
        ]
        question = {
            "address": address,
            "topics": wanted,
            "fromBlock": hex(first_block),
            "toBlock": hex(last_block),
        }
        answer = await self._ask("eth_getLogs", question)
        with _reading():
            found = map(_log, msgspec.convert(answer, list[_WireLog]))
            return tuple(sorted(found, key=lambda log: (log.block_number, log.index)))

    async def _number(self, method: str, *parameters: Any) -> int:
        answer = await self._ask(method, *parameters)
        with _reading():
            return _int(msgspec.convert(answer, str))

    async def _bytes(self, method: str, *parameters: Any) -> bytes:
        answer = await self._ask(method, *parameters)
        with _reading():
            return _unhex(msgspec.convert(answer, str))

    async def _ask(self, method: str, *parameters: Any) -> Any:
        try:
            provider = await self._provider()
            answer = await self._uncut(provider.make_request(RPCEndpoint(method), parameters))
        except _NO_ANSWER as error:
            raise NodeUnavailable(f"the node does not answer {method}: {_why(error)}") from error
        return _result(answer)

    async def _uncut(self, asking: Coroutine[Any, Any, T]) -> T:
        """Let web3 end what it began, whether or not anybody still waits for it.

        It takes a lock that all its providers share, and one that is cancelled at that moment never gives it back:
        no question would be answered any more. `timeout_s` bounds how long it goes on.
        """
        task = asyncio.create_task(asking)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return await asyncio.shield(task)

    async def _ask_for_each(self, method: str, arguments: tuple[str, ...]) -> list[Any]:
        """The answers to one question about several things, in any order; one by one where batches are refused."""
        batch = [(RPCEndpoint(method), (argument,)) for argument in arguments]
        try:
            provider = await self._provider()
            answers = await self._uncut(provider.make_batch_request(batch))
        except _NO_ANSWER as error:
            raise NodeUnavailable(f"the node does not answer {method}: {_why(error)}") from error
        if not isinstance(answers, list):
            return [await self._ask(method, argument) for argument in arguments]
        if len(answers) != len(arguments):
            raise NodeUnavailable(f"the node answered {len(answers)} of {len(arguments)} questions")
        return [_result(answer) for answer in answers]


def _why(error: BaseException) -> str:
    """The kind of failure. What libraries say of one quotes the address, which holds the provider's key."""
    if isinstance(error, ClientResponseError):
        return f"HTTP status {error.status}"
    reason = getattr(error, "strerror", None)
    return f"{type(error).__name__} ({reason})" if isinstance(reason, str) else type(error).__name__


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except (ValueError, msgspec.ValidationError) as error:
        raise NodeUnavailable(f"the node's answer cannot be read: {error}") from error


def _result(answer: object) -> Any:
    with _reading():
        read = msgspec.convert(answer, _Answer)
    if read.error is not None:
        raise _NodeRefused(read.error)
    return read.result


def _receipt(wire: _WireReceipt) -> Receipt:
    return Receipt(
        transaction=_hash(wire.transaction_hash),
        succeeded=_int(wire.status) == 1,
        block_number=_int(wire.block_number),
        block_hash=_hash(wire.block_hash),
        gas_used=_int(wire.gas_used),
        gas_price_wei=_int(wire.effective_gas_price),
        rollup_fee_wei=0 if wire.l1_fee is None else _int(wire.l1_fee),
        logs=tuple(map(_log, wire.logs)),
    )


def _log(wire: _WireLog) -> Log:
    return Log(
        address=parse_address(wire.address),
        topics=tuple(map(_unhex, wire.topics)),
        data=_unhex(wire.data),
        block_number=_int(wire.block_number),
        block_hash=_hash(wire.block_hash),
        transaction=_hash(wire.transaction_hash),
        index=_int(wire.log_index),
    )


def _revert_data(data: object) -> bytes:
    """What the contract returned, where the node hands it on as geth does; nodes that do not leave it unknown."""
    try:
        return _unhex(data) if isinstance(data, str) else b""
    except ValueError:
        return b""


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


def _unhex(text: str) -> bytes:
    if not text.startswith("0x"):
        raise ValueError("bytes begin with 0x")
    return bytes.fromhex(text[2:])


def _int(text: str) -> int:
    if not text.startswith("0x"):
        raise ValueError("a number begins with 0x")
    return int(text, 16)


def _hash(text: str) -> str:
    if len(_unhex(text)) != 32:
        raise ValueError("a hash is 32 bytes")
    return text.lower()
