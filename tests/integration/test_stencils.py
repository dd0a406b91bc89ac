"""A 402 that was filled in says what one that was worked out says."""

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import httpx
import pytest

from spawn.api.routes import ROUTES
from tests.harness import World, open_world

PLAIN = [route for route in ROUTES if route.is_priced and route.parameter is None]


def challenge(answer: httpx.Response) -> dict[str, Any]:
    header = answer.headers["PAYMENT-REQUIRED"]
    assert "=" not in header[:-2]
    read: dict[str, Any] = json.loads(b64decode(header, validate=True))
    return read


def take_nonce(read: dict[str, Any]) -> str:
    """The nonce, whether it is there to be signed or only to come back."""
    extensions = read["extensions"]
    nonce: str = extensions.get("sign-in-with-x", extensions.get("challenge"))["info"].pop("nonce")
    return nonce


def without_ids(answer: httpx.Response) -> tuple[object, ...]:
    """All of an answer but its request id and its nonce."""
    read = challenge(answer)
    take_nonce(read)
    headers = {k: v for k, v in answer.headers.items() if k not in {"x-request-id", "payment-required"}}
    headers.pop("content-length")
    body = answer.json()
    assert body.pop("request_id") == answer.headers["X-Request-Id"]
    return answer.status_code, headers, read, body


async def worked_out(world: World, method: str, path: str) -> httpx.Response:
    """A call that names itself is never filled in."""
    answer = await world.ask(method, path, X_Request_Id="by-itself")
    assert answer.headers["X-Request-Id"] == "by-itself"
    return answer


@pytest.mark.parametrize("route", PLAIN, ids=lambda route: f"{route.method} {route.template}")
async def test_an_answer_that_is_filled_in_is_the_one_that_is_worked_out(tmp_path: Path, route: Any) -> None:
    async with open_world(tmp_path) as world:
        expected = without_ids(await worked_out(world, route.method, route.template))
        answers = [await world.ask(route.method, route.template) for _ in range(3)]
        assert [without_ids(answer) for answer in answers] == [expected] * 3
        assert len({answer.headers["X-Request-Id"] for answer in answers}) == 3
        nonces = {take_nonce(challenge(answer)) for answer in answers}
        assert len(nonces) == 3
        assert all(len(nonce) == 32 and int(nonce, 16) >= 0 for nonce in nonces)


async def test_an_answer_is_filled_in_for_no_longer_than_a_second(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        first, again = [challenge(await world.ask("GET", "/v1/servers")) for _ in range(2)]
        world.clock.advance(1)
        later = challenge(await world.ask("GET", "/v1/servers"))

    def issued(read: dict[str, Any]) -> str:
        at: str = read["extensions"]["sign-in-with-x"]["info"]["issuedAt"]
        return at

    assert issued(first) == issued(again) < issued(later)


async def test_whoever_sends_something_is_not_answered_from_the_stencil(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        for _ in range(2):
            await world.ask("GET", "/v1/servers")
        assert (await world.ask("GET", "/v1/servers", Idempotency_Key="")).status_code == 400
        assert (await world.ask("GET", "/v1/servers", PAYMENT_SIGNATURE="?")).status_code == 400
        assert (await world.ask("GET", "/v1/servers?limit=0")).status_code == 400
        readable = await world.ask("GET", "/v1/servers", Origin="https://elsewhere.example")
        assert readable.headers["Access-Control-Allow-Origin"] == "*"


async def test_filled_in_answers_count_against_the_address(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_address_per_minute=5) as world:
        statuses = [(await world.ask("GET", "/v1/servers")).status_code for _ in range(7)]
        assert statuses == [402] * 5 + [429] * 2
        deposits = [(await world.ask("POST", "/v1/balance/deposit")).status_code for _ in range(7)]
        assert deposits == [402] * 7
