"""What a node says, and what we make of it: answers, refusals, and all that is neither."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from spawn_schemas.ids import Address

from spawn.evm.node import (
    AlreadyKnown,
    CallReverted,
    NodeUnavailable,
    NonceTooLow,
    OutOfGasMoney,
    SendRefused,
    Underpriced,
)
from spawn.evm.web3_node import Web3Node

ACCOUNT = Address("0x" + "1a" * 20)
HASHES = tuple(f"0x{number:064x}" for number in range(3))


class Oracle:
    """A node that says what the test tells it to."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Any] = []
        self.connections: set[Any] = set()
        self.answer: Callable[[Any], web.Response] = lambda _: web.Response(status=500)

    async def handle(self, request: web.Request) -> web.Response:
        question = await request.json()
        self.connections.add(request.transport)
        self.asked.append(question)
        return self.answer(question)

    def says(self, **answer: Any) -> None:
        self.answer = lambda question: web.json_response({"jsonrpc": "2.0", "id": question["id"], **answer})

    def refuses(self, code: int, message: str, **more: Any) -> None:
        self.says(error={"code": code, "message": message, **more})


@pytest.fixture
async def oracle() -> AsyncIterator[Oracle]:
    oracle = Oracle()
    app = web.Application()
    app.router.add_post("/", oracle.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    oracle.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield oracle
    await runner.cleanup()


@pytest.fixture
async def node(oracle: Oracle) -> AsyncIterator[Web3Node]:
    node = Web3Node(oracle.url, timeout_s=2)
    yield node
    await node.close()


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("already known", AlreadyKnown),  # geth, reth
        ("AlreadyKnown", AlreadyKnown),  # nethermind
        ("Known transaction", AlreadyKnown),  # besu
        ("nonce too low: next nonce 5, tx nonce 4", NonceTooLow),
        ("OldNonce, Current nonce: 5, nonce of rejected tx: 4", NonceTooLow),
        ("replacement transaction underpriced", Underpriced),
        ("ReplacementNotAllowed, Current nonce: 5", Underpriced),
        ("transaction underpriced: tip needed 1000000, tip permitted 1", Underpriced),
        ("max fee per gas less than block base fee: address 0x11, maxFeePerGas: 1, baseFee: 7", Underpriced),
        ("FeeTooLow, MaxFeePerGas too low. MaxFeePerGas: 1, BaseFee: 7", Underpriced),
        ("insufficient funds for gas * price + value: balance 0, tx cost 21000", OutOfGasMoney),
        ("InsufficientFunds, Account balance: 0, cumulative cost: 21000", OutOfGasMoney),
        ("intrinsic gas too low: gas 100, minimum needed 21000", SendRefused),
        ("exceeds block gas limit", SendRefused),
        ("max priority fee per gas higher than max fee per gas", SendRefused),
        ("invalid chain id for signer: have 1 want 8453", SendRefused),
    ],
)
async def test_nodes_refuse_in_words_of_their_own(
    oracle: Oracle, node: Web3Node, message: str, kind: type[SendRefused]
) -> None:
    oracle.refuses(-32000, message)
    with pytest.raises(SendRefused) as caught:
        await node.send(b"\x02")
    assert type(caught.value) is kind


async def test_a_rejection_in_unknown_words_is_a_refusal_by_its_code(oracle: Oracle, node: Web3Node) -> None:
    oracle.refuses(-32003, "we do not like it")
    with pytest.raises(SendRefused):
        await node.send(b"\x02")


@pytest.mark.parametrize(
    ("code", "message"),
    [(-32005, "rate limit exceeded"), (-32603, "internal error"), (-32000, "no backends available")],
)
async def test_an_error_of_the_way_there_refuses_nothing(
    oracle: Oracle, node: Web3Node, code: int, message: str
) -> None:
    oracle.refuses(code, message)
    with pytest.raises(NodeUnavailable):
        await node.send(b"\x02")
    with pytest.raises(NodeUnavailable):
        await node.call(ACCOUNT, b"")


async def test_what_a_failure_is_told_with_never_has_the_address_whose_path_is_often_a_key(
    oracle: Oracle,
) -> None:
    oracle.answer = lambda question: web.json_response({}, status=401)
    node = Web3Node(f"{oracle.url.replace('://', '://user:password@')}/v2/api-key", timeout_s=2)
    for question in (node.chain_id(), node.receipts(HASHES)):
        with pytest.raises(NodeUnavailable) as caught:
            await question
        told = str(caught.value)
        assert not any(secret in told for secret in ("api-key", "password", "Authorization")), told
    await node.close()


@pytest.mark.parametrize(
    ("error", "data"),
    [
        ({"code": 3, "message": "execution reverted: no", "data": "0x08c379a0"}, "08c379a0"),
        ({"code": -32000, "message": "VM execution error: Reverted 0x", "data": {"reason": "no"}}, ""),
        ({"code": 3, "message": "execution reverted"}, ""),
        ({"code": 3, "message": "execution reverted", "data": "Reverted"}, ""),
    ],
)
async def test_a_revert_keeps_what_the_node_hands_on(
    oracle: Oracle, node: Web3Node, error: dict[str, Any], data: str
) -> None:
    oracle.says(error=error)
    with pytest.raises(CallReverted) as caught:
        await node.call(ACCOUNT, b"")
    assert caught.value.data.hex() == data


@pytest.mark.parametrize(
    "answer",
    [
        web.Response,
        lambda: web.Response(status=503),
        lambda: web.Response(text="<html>"),
        lambda: web.Response(body=b"\xff\xfe"),
        lambda: web.json_response([]),
        lambda: web.json_response("0x1"),
        lambda: web.json_response({"id": 0, "result": 5}),
        lambda: web.json_response({"id": 0, "result": "5"}),
        lambda: web.json_response({"id": 0, "result": "0xzz"}),
        lambda: web.json_response({"id": 0, "error": "no"}),
    ],
)
async def test_nonsense_is_no_answer(
    oracle: Oracle, node: Web3Node, answer: Callable[[], web.Response]
) -> None:
    oracle.answer = lambda _: answer()
    with pytest.raises(NodeUnavailable):
        await node.nonce(ACCOUNT)
    with pytest.raises(NodeUnavailable):
        await node.code(ACCOUNT)
    with pytest.raises(NodeUnavailable):
        await node.receipts(HASHES)
    with pytest.raises(NodeUnavailable):
        await node.logs(ACCOUNT, (), first_block=0, last_block=1)


async def test_null_is_an_answer_only_where_there_may_be_none(oracle: Oracle, node: Web3Node) -> None:
    oracle.says(result=None)
    assert await node.block(7) is None
    with pytest.raises(NodeUnavailable):
        await node.nonce(ACCOUNT)
    with pytest.raises(NodeUnavailable):
        await node.logs(ACCOUNT, (), first_block=0, last_block=1)


async def test_half_a_block_is_no_block(oracle: Oracle, node: Web3Node) -> None:
    whole = {"number": "0x7", "hash": HASHES[1], "timestamp": "0x9", "baseFeePerGas": "0x5"}
    oracle.says(result=whole)
    block = await node.block()
    assert block is not None
    assert (block.number, block.at, block.base_fee_wei) == (7, 9, 5)
    for field, nonsense in (("hash", "0x12"), ("number", None), ("timestamp", "-0x1")):
        oracle.says(result=whole | {field: nonsense})
        with pytest.raises(NodeUnavailable):
            await node.block()


async def test_where_batches_are_refused_receipts_are_asked_for_one_by_one(
    oracle: Oracle, node: Web3Node
) -> None:
    def answer(question: Any) -> web.Response:
        if isinstance(question, list):
            refusal = {"code": -32600, "message": "batches are not allowed"}
            return web.json_response({"jsonrpc": "2.0", "id": None, "error": refusal})
        return web.json_response({"jsonrpc": "2.0", "id": question["id"], "result": None})

    oracle.answer = answer
    assert await node.receipts(HASHES) == (None, None, None)
    assert len(oracle.asked) == 4


def receipt(hash_: str, **more: str) -> dict[str, Any]:
    return {
        "transactionHash": hash_,
        "status": "0x1",
        "blockNumber": "0x1",
        "blockHash": HASHES[0],
        "gasUsed": "0x2",
        "effectiveGasPrice": "0x3",
        "logs": [],
    } | more


async def test_what_a_rollup_takes_besides_is_part_of_the_fee(oracle: Oracle, node: Web3Node) -> None:
    oracle.answer = lambda question: web.json_response(
        [
            {"id": one["id"], "result": receipt(one["params"][0], **more)}
            for one, more in zip(question, ({}, {"l1Fee": "0xa"}), strict=True)
        ]
    )
    assert [found and found.fee_wei for found in await node.receipts(HASHES[:2])] == [6, 16]


async def test_answers_in_another_order_belong_to_their_transactions(oracle: Oracle, node: Web3Node) -> None:
    def answer(question: Any) -> web.Response:
        answers = [{"id": part["id"], "result": receipt(part["params"][0])} for part in question]
        return web.json_response(list(reversed(answers)))

    oracle.answer = answer
    assert [found and found.transaction for found in await node.receipts(HASHES)] == list(HASHES)


async def test_batches_are_small_enough_for_public_nodes(oracle: Oracle, node: Web3Node) -> None:
    oracle.answer = lambda question: web.json_response(
        [{"id": one["id"], "result": None} for one in question]
    )
    assert await node.receipts(HASHES * 40) == (None,) * 120
    assert [len(batch) for batch in oracle.asked] == [50, 50, 20]


async def test_events_come_oldest_first_in_whatever_order_they_are_told(
    oracle: Oracle, node: Web3Node
) -> None:
    where = [(2, 0), (1, 1), (1, 0)]
    oracle.says(
        result=[
            {
                "address": ACCOUNT.upper().replace("0X", "0x"),
                "topics": [],
                "data": "0x",
                "blockNumber": hex(block),
                "blockHash": HASHES[0],
                "transactionHash": HASHES[1],
                "logIndex": hex(index),
            }
            for block, index in where
        ]
    )
    found = await node.logs(ACCOUNT, (None, b"\x01", (b"\x02", b"\x03")), first_block=1, last_block=300)
    assert [(log.block_number, log.index) for log in found] == sorted(where)
    assert {log.address for log in found} == {ACCOUNT}
    (question,) = oracle.asked
    assert question["params"] == [
        {
            "address": ACCOUNT,
            "topics": [None, "0x01", ["0x02", "0x03"]],
            "fromBlock": "0x1",
            "toBlock": "0x12c",
        }
    ]


async def test_a_batch_that_is_not_answered_in_full_is_no_answer(oracle: Oracle, node: Web3Node) -> None:
    oracle.answer = lambda question: web.json_response([{"id": question[0]["id"], "result": None}])
    with pytest.raises(NodeUnavailable):
        await node.receipts(HASHES)


async def test_who_stops_waiting_for_an_answer_keeps_nobody_else_from_one(
    oracle: Oracle, node: Web3Node
) -> None:
    """web3 has a lock in common for all nodes, and loses it when it is cancelled at the wrong moment."""
    oracle.says(result="0x1")
    for moment in range(100):
        questions = [asyncio.create_task(node.chain_id()) for _ in range(3)]
        for _ in range(moment % 10):
            await asyncio.sleep(0)
        for question in questions:
            question.cancel()
        await asyncio.gather(*questions, return_exceptions=True)
    async with asyncio.timeout(10):
        assert await node.chain_id() == 1


async def test_a_connection_is_used_again(oracle: Oracle, node: Web3Node) -> None:
    """To a node elsewhere, making one takes longer than the question."""
    oracle.says(result="0x1")
    for _ in range(3):
        await node.chain_id()
    assert len(oracle.connections) == 1
