"""What an attack is, and what must be true after it.

Invariant: an attack gets exactly the answer its entry names, and moves exactly what its entry allows, which is nothing
for nearly all of them: every row of the database, every transfer on the chain and every machine of the cloud is
compared.
"""

import asyncio
import json
import re
from base64 import b64decode
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import httpx

from spawn.payments.sessions import PREFIX
from tests.attacks.scene import Bytes, Scene, Wire, written
from tests.integration.paid_calls import challenge, refusal

REQUEST_ID: Final = re.compile("[A-Za-z0-9_-]{1,64}")
ROOM_MAX: Final = 60
"""Requests that one attack may send."""


@dataclass(frozen=True)
class Answer:
    """What a caller is told, in as many words as a program reads. `reason` is the finer word of payments and proofs."""

    status: int
    code: str = ""
    reason: str | None = None
    replayed: bool = False


def unpaid(reason: str = "payment_required") -> Answer:
    """A challenge: 402, and what would be enough."""
    return Answer(402, "payment_required", reason)


def refused(status: int, code: str, reason: str | None = None) -> Answer:
    """A refusal that asks for no money."""
    return Answer(status, code, reason)


def served(status: int = 200) -> Answer:
    """Done, now: for what an honest caller is owed although somebody attacks."""
    return Answer(status)


def replayed(status: int = 200) -> Answer:
    """The stored answer of what was done before."""
    return Answer(status, replayed=True)


NOTHING_THERE: Final = refused(404, "not_found")
NOT_OFFERED: Final = refused(405, "method_not_allowed")
NOT_YOURS: Final = refused(403, "forbidden")
BAD_REQUEST: Final = refused(400, "invalid_request")
BAD_PAYMENT: Final = refused(400, "invalid_payment")
OTHER_REQUEST: Final = refused(409, "idempotency_conflict")


Sent = Wire | Bytes
Stage = Callable[[Scene], Awaitable[Sent | Sequence[Sent]]]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One way to get what is not paid for or not one's own, and what comes of it.

    `stage` does what honest people do beforehand, and returns the hostile requests; they are sent in turn, or with
    `at_once` together. `answer` is what each gets, or how many get what, in this order unless they are sent together.
    `effect` is the change of `Scene.totals` that is due; where it is empty, nothing at all may change. `or_effect` is
    due instead where another request is the first of all. `why` says which rule or incident it is about; a number with
    # is an issue of github.com/x402-foundation/x402. An attack that is `alone`, or has `settings`, has a scene of its
    own. No answer says any of `hidden`.
    """

    name: str
    why: str
    stage: Stage
    answer: Answer | Mapping[Answer, int]
    effect: Mapping[str, int] = field(default_factory=dict)
    or_effect: Mapping[str, int] = field(default_factory=dict)
    at_once: bool = False
    alone: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    hidden: Callable[[Scene], Sequence[str]] = lambda _: ()

    @property
    def needs_own_scene(self) -> bool:
        return self.alone or self.at_once or bool(self.effect) or bool(self.settings)


class Theme:
    """Attacks of one kind: a decorator that makes one of each stage it is put on, and the table of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.attacks: list[Attack] = []

    def __call__(
        self, name: str, why: str, answer: Answer | Mapping[Answer, int], **options: Any
    ) -> Callable[[Stage], Stage]:
        def entered(stage: Stage) -> Stage:
            self.attacks.append(
                Attack(name=f"{self._name}: {name}", why=why, stage=stage, answer=answer, **options)
            )
            return stage

        return entered


class Broke(AssertionError):
    """A 500: the service broke on the attack, which is neither a defence nor a success."""


def _whole(answers: Sequence[httpx.Response]) -> None:
    if broken := [answer.text for answer in answers if answer.status_code == 500]:
        raise Broke(broken)


async def prepare(attack: Attack, scene: Scene) -> Sequence[Sent]:
    """Everything before the attack itself; what fails here is a defect of the scene or of an honest call."""
    made = await attack.stage(scene)
    wires = [made] if isinstance(made, Sent) else list(made)
    if not 0 < len(wires) <= ROOM_MAX:
        raise ValueError(f"{attack.name} sends {len(wires)} requests")
    return wires


async def strike(attack: Attack, scene: Scene, wires: Sequence[Sent]) -> None:
    """Send the hostile requests; AssertionError when the attack got another answer or effect than its entry says."""
    before, had = await scene.snapshot(), await scene.totals()
    expected = {attack.answer: len(wires)} if isinstance(attack.answer, Answer) else attack.answer
    if attack.at_once:
        answers = [*chain(*await asyncio.gather(*(_answers(scene, wire) for wire in wires)))]
        _whole(answers)
        assert Counter(map(seen, answers)) == Counter(expected), [answer.text for answer in answers]
    else:
        answers = [*chain(*[await _answers(scene, wire) for wire in wires])]
        _whole(answers)
        in_turn = [answer for answer, count in expected.items() for _ in range(count)]
        assert [*map(seen, answers)] == in_turn, [answer.text for answer in answers]
    hidden = attack.hidden(scene)
    assert not [answer.text for answer in answers if any(text in answer.text for text in hidden)]
    if attack.effect:
        has = await scene.totals()
        moved = {name: has[name] - had[name] for name in has if has[name] != had[name]}
        assert moved in [dict(due) for due in (attack.effect, attack.or_effect) if due], moved
    else:
        after = await scene.snapshot()
        assert after == before, {
            name: (before[name], after[name]) for name in after if before[name] != after[name]
        }


async def _answers(scene: Scene, sent: Sent) -> list[httpx.Response]:
    """What came back, be it more or less than one answer; whatever was sent, the next caller must be served."""
    if isinstance(sent, Wire):
        return [await scene.send(sent)]
    answers = await scene.converse(sent)
    (beside,) = await scene.converse(Bytes((written(scene.ask("GET", "/v1/catalog")),)))
    assert beside.status_code == 200, beside.text
    return answers


def seen(answer: httpx.Response) -> Answer:
    """What the answer says; AssertionError for one that no caller may ever get."""
    assert "Set-Cookie" not in answer.headers
    # Nothing of the caller's gets into a header but a request id that is fit for a log.
    assert all(value.isprintable() for value in answer.headers.values()), answer.headers
    assert REQUEST_ID.fullmatch(answer.headers.get("X-Request-Id", "none")), answer.headers
    assert "Access-Control-Allow-Credentials" not in answer.headers
    if answer.is_success:
        # What was paid for belongs to the payer: no cache between us may keep it (SDKs set the same).
        kept_away = "no-store" in answer.headers.get("Cache-Control", "")
        assert kept_away or "Spawn-Fee" not in answer.headers, answer.headers
        replayed = answer.headers.get("Idempotent-Replayed") == "true"
        # Whoever has seen a request can repeat it: what only one may know is told once.
        once = (PREFIX, '"root_password":"', "whsec_")
        assert not (replayed and any(secret in answer.text for secret in once))
        return Answer(answer.status_code, replayed=replayed)
    if answer.headers["Content-Type"] != "application/json":
        return Answer(answer.status_code)
    assert answer.headers["Cache-Control"] == "no-store"
    if "PAYMENT-REQUIRED" in answer.headers:
        required = json.loads(b64decode(answer.headers["PAYMENT-REQUIRED"]))
        if required["accepts"]:
            challenge(answer, required["error"])
        else:
            # Where nothing can be bought, the caller is told how else to say who asks.
            assert "sign-in-with-x" in required["extensions"]
        return Answer(answer.status_code, answer.json()["code"], required["error"])
    error = refusal(answer, answer.status_code, answer.json()["error"]["code"])
    return refused(answer.status_code, error["code"], (error["details"] or {}).get("reason"))
