"""Requests that mean nothing: broken bodies, odd paths and parameters. Each is told so, and changes nothing."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import msgspec
import pytest

from tests.harness import ORDER, World, open_world
from tests.integration.paid_calls import PUBLIC_KEY, challenge, nothing_changes, refusal

SELF_RAIL = """
import contextlib
from spawn.clock import SystemClock, SystemEntropy
from spawn.rails import open_rail
from spawn.setting_reader import read_settings
url, key, ours = "http://127.0.0.1:1", "11" * 32, "0x" + "22" * 20
settings = read_settings({}, payments="self", rpc_url=url, relayer_key=key, x402_pay_to=ours)
open_rail(settings, None, SystemClock(), SystemEntropy(), contextlib.AsyncExitStack())
"""
ENCODED = msgspec.json.encode(ORDER)
NEEDS_BODY = [
    ("POST", "/v1/servers"),
    ("PATCH", "/v1/servers/srv_x"),
    ("POST", "/v1/servers/srv_x/deposit"),
    ("POST", "/v1/servers/srv_x/resize"),
    ("POST", "/v1/servers/srv_x/rebuild"),
    ("POST", "/v1/ssh-keys"),
]

BROKEN = {
    "white space": b" ",
    "truncated": ENCODED[:-1],
    "two texts": ENCODED * 2,
    "something behind": ENCODED + b"x",
    "not UTF-8": ENCODED.replace(b"web", b"w\xffb"),
    "not UTF-8 outside of strings": b"\xff\xfe",
    "UTF-16": ENCODED.decode().encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + ENCODED,
    "a lone surrogate": ENCODED.replace(b"web", b"w\\ud800b"),
    "an encoded surrogate": ENCODED.replace(b"web", b"w\xed\xa0\x80b"),
    "NaN": b"NaN",
    "a form": b"name=web&type=small",
    "an endless number": b'{"name":' + b"9" * 5_000 + b"}",
    "nested arrays": b"[" * 5_000 + b"]" * 5_000,
    "nested objects": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "nested without end": b"[" * 5_000,
    "nested in a field": b'{"name":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
}

UNFIT: list[Any] = [
    [],
    "text",
    17,
    True,
    {},
    ORDER | {"unknown": 1},
    ORDER | {"Name": "web"},
    {name: value for name, value in ORDER.items() if name != "location"},
    ORDER | {"name": 17},
    ORDER | {"name": None},
    ORDER | {"name": ""},
    ORDER | {"name": "a" * 64},
    ORDER | {"name": "-web"},
    ORDER | {"name": "web.example"},
    ORDER | {"name": "web\n"},
    ORDER | {"name": "w\x00b"},
    ORDER | {"name": "wéb"},
    ORDER | {"type": ["small"]},
    ORDER | {"type": "small\n"},
    ORDER | {"image": "ubuntu-24.04\n"},
    ORDER | {"location": "nbg1\n"},
    ORDER | {"fund": "6.00\n"},
    ORDER | {"image": "../../etc/passwd"},
    ORDER | {"location": "NBG1"},
    ORDER | {"network": "ipv5"},
    ORDER | {"auto_renew": 2},
    ORDER | {"auto_renew": "perhaps"},
    ORDER | {"auto_renew": "true"},
    ORDER | {"auto_renew": 1},
    ORDER | {"ssh_keys": "key_x"},
    ORDER | {"ssh_keys": [1]},
    ORDER | {"ssh_keys": ["key_x"] * 21},
    ORDER | {"user_data": "x" * 32_769},
    ORDER | {"deposit": 5},
    ORDER | {"deposit": ""},
    ORDER | {"deposit": "NaN"},
    ORDER | {"deposit": "1,00"},
    ORDER | {"fund": 6.0},
    ORDER | {"fund": "0.0000001"},
    ORDER | {"fund": "9" * 40},
    ORDER | {"fund": "\u0661"},
]

BAD_QUERIES = [
    "/v1/servers?limit=0",
    "/v1/servers?limit=101",
    "/v1/servers?limit=x",
    "/v1/servers?limit=1.5",
    "/v1/servers?limit=",
    "/v1/servers?limit=%ff",
    "/v1/servers?page=0",
    "/v1/servers?page=-1",
    "/v1/servers?page=99999999999999999999",
    "/v1/servers?status=dancing",
    "/v1/servers/srv_x?wait=61",
    "/v1/servers/srv_x?wait=-1",
    "/v1/actions/act_x?wait=61",
    "/v1/balance/transactions?limit=0",
    "/v1/balance/transactions?cursor=x",
    "/v1/balance/transactions?cursor=c",
    "/v1/balance/transactions?cursor=c-1",
    "/v1/balance/transactions?cursor=c99999999999999999999",
    "/v1/balance/transactions?cursor=c%d9%a1",
]

NOWHERE = [
    "/nope",
    "/v1",
    "/v2/servers",
    "/V1/servers",
    "/v1/Servers",
    "/v1/servers;a=1",
    "/v1/servers/srv_x/none",
    "/v1/servers/srv_x/stop/now",
    "/v1/servers/../balance",
    "/v1/servers/%2e%2e/balance",
    "/v1/../v1/servers",
    "/./v1/servers",
    "/v1/servers%00",
    "/v1/servers%3Flimit=1",
    "/v1/servers/a%2Fb%2Fstop",
    "/v1/servers\\srv_x",
    "/.env",
    "/schema",
]


@pytest.fixture
def server_recursion() -> Iterator[None]:
    """The limit that the service runs under; a signing library of the tests raises it for the whole process."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000)
    yield
    sys.setrecursionlimit(before)


def test_the_service_keeps_the_recursion_limit() -> None:
    """The JSON decoder recurses with its input and relies on that limit: with a higher one a body of brackets
    would overrun the stack and kill the process."""
    for opened in ("", SELF_RAIL):
        code = f"import sys, spawn.app, spawn.cli\n{opened}\nsys.exit(sys.getrecursionlimit() > 1000)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.usefixtures("server_recursion")
async def test_a_body_that_is_no_json_is_refused_on_every_rail(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        payment = await world.payment(wallet, "POST", "/v1/servers", ORDER)
        async with nothing_changes(world):
            for body in BROKEN.values():
                for answer in (
                    await world.ask("POST", "/v1/servers", body),
                    await world.sign(wallet, "POST", "/v1/servers", body),
                    await world.send_payment(payment, "POST", "/v1/servers", body),
                ):
                    assert refusal(answer, 400, "invalid_request")["next"]


async def test_a_body_that_does_not_fit_is_refused_and_says_where(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        payment = await world.payment(wallet, "POST", "/v1/servers", ORDER)
        async with nothing_changes(world):
            for body in UNFIT:
                for answer in (
                    await world.ask("POST", "/v1/servers", msgspec.json.encode(body)),
                    await world.sign(wallet, "POST", "/v1/servers", msgspec.json.encode(body)),
                    await world.send_payment(payment, "POST", "/v1/servers", msgspec.json.encode(body)),
                ):
                    assert answer.status_code == 400, (body, answer.text)
                    refusal(answer, 400, "invalid_request")
        unknown = refusal(
            await world.ask("POST", "/v1/servers", ORDER | {"colour": 1}), 400, "invalid_request"
        )
        assert "colour" in unknown["message"]


async def test_no_body_is_told_the_price_and_a_paid_one_is_refused(tmp_path: Path) -> None:
    """A crawler probes with nothing; whoever pays for nothing keeps the money."""
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        async with nothing_changes(world):
            for method, path in NEEDS_BODY:
                for body in (None, b"", b"null"):
                    challenge(await world.ask(method, path, body))
                    payment = await world.payment(wallet, method, path, body)
                    for answer in (
                        await world.send_payment(payment, method, path, body),
                        await world.sign(wallet, method, path, body),
                    ):
                        assert refusal(answer, 400, "invalid_request")["next"]


async def test_a_deposit_without_a_body_is_one_dollar(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        assert challenge(await world.ask("POST", "/v1/balance/deposit"))["accepts"][0]["amount"] == "1000000"
        paid = await world.pay(wallet, "POST", "/v1/balance/deposit")
        assert paid.json()["deposited"] == "1.00"


async def test_a_body_is_json_whatever_its_type_is_called(tmp_path: Path) -> None:
    """A caller who forgets the header (curl writes a form's) is understood; one who sends a form is not."""
    async with open_world(tmp_path) as world, nothing_changes(world):
        for kind in ("text/plain", "application/x-www-form-urlencoded", "application/xml", "nonsense"):
            headers = {"Content-Type": kind}
            challenge(await world.http.post("/v1/servers", content=ENCODED, headers=headers))
            form = await world.http.post("/v1/servers", content=b"name=web", headers=headers)
            refusal(form, 400, "invalid_request")


async def test_a_huge_body_is_refused_unread(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        huge = msgspec.json.encode(ORDER | {"user_data": "x" * 131_072})
        payment = await world.payment(wallet, "POST", "/v1/servers", ORDER)

        async def in_chunks() -> Any:
            for start in range(0, len(huge), 10_000):
                yield huge[start : start + 10_000]

        async with nothing_changes(world):
            for answer in (
                await world.ask("POST", "/v1/servers", huge),
                await world.ask("DELETE", "/v1/servers/srv_x", huge),
                await world.sign(wallet, "POST", "/v1/servers", huge),
                await world.send_payment(payment, "POST", "/v1/servers", huge),
                await world.http.post("/v1/servers", content=in_chunks()),
            ):
                assert refusal(answer, 413, "request_too_large")["next"]


async def test_bad_parameters_are_refused_before_money_is_asked(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("1.00")
        async with nothing_changes(world):
            for path in BAD_QUERIES:
                refusal(await world.ask("GET", path), 400, "invalid_request")
                refusal(await world.sign(wallet, "GET", path), 400, "invalid_request")


async def test_a_bad_idempotency_key_is_refused(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("1.00")
        payment = await world.payment(wallet, "GET", "/v1/servers")
        async with nothing_changes(world):
            for key in (b"", b"k" * 256, "clé".encode(), b"a\tb"):
                answer = await world.http.get(
                    "/v1/servers",
                    headers=[(b"Idempotency-Key", key), (b"PAYMENT-SIGNATURE", payment.encode())],
                )
                refusal(answer, 400, "invalid_request")


async def raw(world: World, method: str, target: str) -> httpx.Response:
    """Send a request line as it is: a client would tidy the path up first."""
    path, _, query = target.partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"spawn.test")],
        "server": ("spawn.test", 80),
        "client": ("127.0.0.1", 1),
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    app: Any = world.service.app
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=body)


async def test_odd_paths_lead_nowhere(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, nothing_changes(world):
        for path in NOWHERE:
            for method in ("GET", "POST", "DELETE"):
                assert refusal(await raw(world, method, path), 404, "not_found")["next"], path


@pytest.mark.parametrize(
    "spelled",
    ["{0}/", "{0}//", "/v1//servers/{1}", "/v1%2Fservers/{1}", "/v1/servers%2F{1}", "/v1/%73ervers/{1}"],
)
async def test_another_spelling_of_a_path_is_another_path(tmp_path: Path, spelled: str) -> None:
    """One thing, one path: what is signed, fingerprinted and priced by path has nothing to disagree about."""
    async with open_world(tmp_path) as world:
        owner = await world.customer("20.00")
        server_id = (await world.rent(owner))["id"]
        path = spelled.format(f"/v1/servers/{server_id}", server_id)
        async with nothing_changes(world):
            for method in ("GET", "DELETE"):
                refusal(await raw(world, method, path), 404, "not_found")
                refusal(await world.sign(owner, method, f"http://spawn.test{path}"), 404, "not_found")


async def test_more_headers_than_anybody_needs_are_refused_at_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, nothing_changes(world):
        many = [("a", "x")] * 200
        refusal(await world.http.get("/v1/servers", headers=many), 413, "request_too_large")
        refusal(await world.http.get("/v1/servers", headers={"a": "x" * 70_000}), 413, "request_too_large")


async def test_wrong_methods_are_named(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, nothing_changes(world):
        for method, path in (
            ("PUT", "/v1/servers"),
            ("DELETE", "/v1/servers"),
            ("PATCH", "/v1/balance"),
            ("GET", "/v1/balance/deposit"),
            ("POST", "/v1/catalog"),
            ("TRACE", "/v1/servers"),
            ("BREW", "/"),
        ):
            error = refusal(await world.ask(method, path), 405, "method_not_allowed")
            assert method in error["message"]
            assert error["next"]


async def test_a_request_id_is_kept_if_it_is_one(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        kept = await world.ask("GET", "/nope", None, X_Request_Id="abc-123")
        assert refusal(kept, 404, "not_found")["request_id"] == "abc-123"
        for odd in ("a b", "x" * 65, "<script>", "a;b"):
            made = await world.ask("GET", "/nope", None, X_Request_Id=odd)
            assert refusal(made, 404, "not_found")["request_id"].startswith("req_")


async def test_a_bad_ssh_key_is_refused(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("1.00")
        async with nothing_changes(world):
            for body in (
                {"name": "", "public_key": PUBLIC_KEY},
                {"name": "n" * 65, "public_key": PUBLIC_KEY},
                {"name": "a\nb", "public_key": PUBLIC_KEY},
                {"name": "laptop\n", "public_key": PUBLIC_KEY},
                {"name": "laptop", "public_key": PUBLIC_KEY + "\n" + PUBLIC_KEY},
                {"name": "laptop", "public_key": PUBLIC_KEY[:-20]},
                {"name": "laptop", "public_key": 'command="sh" ' + PUBLIC_KEY},
                {"name": "laptop", "public_key": "x" * 16_385},
            ):
                refusal(await world.sign(wallet, "POST", "/v1/ssh-keys", body), 400, "invalid_request")
