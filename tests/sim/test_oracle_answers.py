"""What the oracle of answers says of a good answer that the books do not have."""

import json
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest

from tests.sim.client_types import Answer, Request
from tests.sim.made_up_books import T0, WALLET, Wrong
from tests.sim.oracle.answers import Answers
from tests.sim.oracle.part import Changes, Row
from tests.sim.wallets import Kind, Proof
from tests.sim.world import World

ASKED: Final = Request(method="GET", path="/v1/servers")
LIFE_S: Final = 60
NONCE: Final = "sig_1"


class Town:
    """Books without a call, and one agent who makes one: it lists its servers by a signed request."""

    def __init__(self) -> None:
        self.ms = T0 * 1000
        self.clock = SimpleNamespace(wrong_by_s=0)
        self.process = self.twin = None
        proof = Proof(kind=Kind.SIGNED, wallet=WALLET, headers={}, name=NONCE, valid_until=T0 + LIFE_S)
        self.calls = SimpleNamespace(whose=lambda _: (SimpleNamespace(what="list", number=1), proof))
        self.oracle = Answers(cast("World", self))

    @property
    def town(self) -> "Town":
        return self

    def rows(self, sql: str, **params: Any) -> list[Row]:
        return []

    def true_ms(self) -> int:
        return self.ms

    def true_s(self) -> int:
        return self.ms // 1000

    def violation(self, promise: str, text: str) -> None:
        raise Wrong(text)

    def commit(self, at_s: int, call: Row | None) -> None:
        self.ms = at_s * 1000
        self.oracle.committed(Changes(rows={"reservation": {NONCE: call}}))

    def hear(self, *, asked_s: int) -> None:
        fee = {"spawn-fee": "0.001", "content-type": "application/json"}
        self.oracle.answered(ASKED, Answer(200, fee, b'{"servers":[]}', asked_ms=asked_s * 1000))


def done() -> Row:
    """The call as the books have it: good until its signature is, and known for so long."""
    return {
        "id": NONCE,
        "wallet": WALLET,
        "rail": "balance",
        "idempotency_key": None,
        "fingerprint": "0" * 64,
        "amount": 0,
        "seal": None,
        "valid_before": T0 + LIFE_S,
        "keep_until": T0 + LIFE_S,
        "created_ms": T0 * 1000,
        "operation_id": None,
        "state": "done",
        "answer": json.dumps({"type": "body", "body": {"servers": []}}).encode(),
        "fee": 1_000,
    }


def test_a_call_may_be_forgotten_while_its_answer_is_on_the_way() -> None:
    """docs/sim-findings.md, 26."""
    town = Town()
    town.commit(T0, done())
    town.commit(T0 + LIFE_S, None)
    town.hear(asked_s=T0)


def test_what_was_forgotten_before_it_was_asked_is_not_answered_from_the_books() -> None:
    town = Town()
    town.commit(T0, done())
    town.commit(T0 + LIFE_S, None)
    with pytest.raises(Wrong, match="the books have None"):
        town.hear(asked_s=T0 + LIFE_S + 1)


def test_a_good_answer_to_what_the_books_never_had_is_found() -> None:
    with pytest.raises(Wrong, match="the books have None"):
        Town().hear(asked_s=T0)


def test_nothing_is_forgotten_before_its_time() -> None:
    town = Town()
    town.commit(T0, done())
    with pytest.raises(Wrong, match="was to be kept until"):
        town.commit(T0 + LIFE_S - 1, None)
