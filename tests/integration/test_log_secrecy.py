"""Nothing that a caller sent, and nothing secret that it was given, is in any log, whatever went wrong.

Values that can be recognised are put wherever a request may carry something; the whole service runs behind a real
socket, with every logger of the process at its loudest and the access log on.
"""

import asyncio
import base64
import json
import logging
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from spawn_providers.base import Refused, RefusedCode
from spawn_providers.simulated_faults import LostAnswer, Outage

from spawn import logs
from tests import databases
from tests.harness import ORDER, World, open_world
from tests.integration.raw_connections import Served, serving
from tests.ports import free_port
from tests.wallets import Wallet

KEY: Final = "planted-idempotency-key-1f9a"
USER_DATA: Final = "#!/bin/sh\necho planted-user-data-77c1"
PRIVATE_KEY: Final = (
    "-----BEGIN OPENSSH PRIVATE KEY-----\ncGxhbnRlZC1wcml2YXRlLWtleS00NDcx\n-----END OPENSSH PRIVATE KEY-----"
)
PLANTED: Final = {
    "PAYMENT-SIGNATURE": "planted-payment-signature-0b52",
    "X-PAYMENT": "planted-x-payment-93d0",
    "SIGN-IN-WITH-X": "planted-sign-in-5e11",
    "Authorization": "Bearer planted-bearer-c07e",
    "Signature": "eth=:cGxhbnRlZC1zaWduYXR1cmUtMjJhYg==:",
    "Signature-Input": 'eth=("@method");created=1;keyid="planted-keyid-d4";nonce="planted-nonce-91"',
    "Idempotency-Key": KEY,
    "Cookie": "session=planted-cookie-6a",
}
ORDER_WITH_SECRETS: Final = ORDER | {"user_data": USER_DATA, "fund": "6.00"}


class Listener(logging.Handler):
    """Keeps what our own log handler would write, and what a record would still hand to another."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.addFilter(logs.discreet)
        self.setFormatter(logging.Formatter(logs.FORMAT))
        self.text = ""
        self.names: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.names.add(record.name)
        self.text += self.format(record) + repr(record.args) + repr(record.msg)
        if record.exc_info:
            lines = traceback.TracebackException(*record.exc_info, capture_locals=True).format()
            self.text += "".join(lines)


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Every logger of the process at its loudest, heard through our filter."""
    listening, root = Listener(), logging.getLogger()
    loggers = [logging.getLogger(name) for name in list(root.manager.loggerDict)]
    before = [(logger, logger.level) for logger in (root, *loggers)]
    for logger, _ in before:
        logger.setLevel(logging.DEBUG)
    root.addHandler(listening)
    try:
        yield listening
    finally:
        root.removeHandler(listening)
        for logger, level in before:
            logger.setLevel(level)


@dataclass
class Scene:
    """A service behind a socket, and all that was sent to it or got from it that must not be logged."""

    world: World
    served: Served
    secrets: set[str] = field(default_factory=set)

    def remember(self, payment: str) -> None:
        """A payment, and what it consists of."""
        payload = json.loads(base64.b64decode(payment))["payload"]
        self.secrets |= {payment, payload["signature"], payload["authorization"]["nonce"]}

    async def pay(self, wallet: Wallet, method: str, path: str, body: object = None) -> httpx.Response:
        payment = await self.world.payment(wallet, method, path, body)
        self.remember(payment)
        return await self.world.send_payment(payment, method, path, body, key=KEY)


@asynccontextmanager
async def scene(folder: Path, **changes: Any) -> AsyncIterator[Scene]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with (
        open_world(folder, public_url=url, in_flight_wait_s=0.2, **changes) as world,
        serving(served_by=world.service.app, port=port, access_log=True, head_max_bytes=16_384) as served,
        httpx.AsyncClient(base_url=url) as http,
    ):
        world.http = http
        there = Scene(world, served)
        http.event_hooks = {"request": [_remembering(there)]}
        yield there


def _remembering(there: Scene) -> Any:
    async def remember(request: httpx.Request) -> None:
        for name in ("Signature", "Authorization", "Sign-In-With-X"):
            if name in request.headers:
                there.secrets.add(request.headers[name].removeprefix("eth=").strip(":"))

    return remember


def check(listener: Listener, there: Scene, *heard: str) -> None:
    """Nothing planted and nothing remembered was written; these loggers were, so that something was listened to."""
    secrets = there.secrets | set(PLANTED.values()) | {"planted", USER_DATA, "cGxhbnRlZC"}
    assert [secret for secret in secrets if secret in listener.text] == []
    assert set(heard) <= listener.names


async def test_good_calls(tmp_path: Path, listener: Listener) -> None:
    async with scene(tmp_path) as there:
        wallet = await there.world.wallet()
        created = await there.pay(wallet, "POST", "/v1/servers", ORDER_WITH_SECRETS)
        assert created.status_code == 201, created.text
        there.secrets.add(created.json().get("root_password") or "no password was given")
        server = created.json()["server"]["id"]
        await there.world.run_for(60)
        for method, path in (
            ("GET", "/v1/balance"),
            ("GET", f"/v1/servers/{server}"),
            ("DELETE", f"/v1/servers/{server}"),
        ):
            answer = await there.world.sign(wallet, method, path)
            assert answer.is_success, answer.text
            there.secrets.add(str(answer.json().get("root_password", "no password was given")))
        await there.world.run_for(30)
        check(listener, there, "uvicorn.access")


@pytest.mark.parametrize("header", PLANTED)
async def test_bad_proofs(tmp_path: Path, listener: Listener, header: str) -> None:
    async with scene(tmp_path) as there:
        for method, path in (("GET", "/v1/balance"), ("POST", "/v1/servers"), ("GET", "/nowhere")):
            body = json.dumps(ORDER_WITH_SECRETS) if method == "POST" else None
            answer = await there.world.http.request(
                method, path, headers={header: PLANTED[header]}, content=body
            )
            assert 400 <= answer.status_code < 500
        check(listener, there, "uvicorn.access")


async def test_a_query_is_not_written_down(tmp_path: Path, listener: Listener) -> None:
    async with scene(tmp_path) as there:
        await there.world.http.get("/v1/servers?payment=planted&authorization=planted")
        check(listener, there, "uvicorn.access")


async def test_what_a_machine_reports_and_under_which_token_is_not_written_down(
    tmp_path: Path, listener: Listener
) -> None:
    async with scene(tmp_path) as there:
        for report in ({"cloud_init": "failed", "log": "planted"}, {"log": "planted"}, ["planted"]):
            answer = await there.world.http.post("/v1/boots/planted", json=report)
            assert answer.status_code in {400, 404}
        check(listener, there, "uvicorn.access")


@pytest.mark.parametrize(
    "body",
    [
        b"planted",
        b'{"user_data": "planted',
        json.dumps(ORDER | {"root_password": "planted"}).encode(),
        json.dumps(ORDER | {"user_data": ["planted"]}).encode(),
        json.dumps({"secret_key": "planted"}).encode(),
        json.dumps({"name": "planted", "public_key": PRIVATE_KEY}).encode(),
    ],
)
@pytest.mark.parametrize("path", ["/v1/servers", "/v1/ssh-keys", "/v1/balance/deposit"])
async def test_bad_bodies(tmp_path: Path, listener: Listener, path: str, body: bytes) -> None:
    async with scene(tmp_path) as there:
        wallet = await there.world.customer()
        assert 400 <= (await there.world.sign(wallet, "POST", path, body)).status_code < 500
        assert 400 <= (await there.world.http.post(path, content=body, headers=PLANTED)).status_code < 500
        check(listener, there, "uvicorn.access")


@pytest.mark.parametrize("fault", ["refuse", "lose_request", "lose_answer"])
async def test_settlements_that_fail_or_stay_unclear(tmp_path: Path, listener: Listener, fault: str) -> None:
    async with scene(tmp_path) as there:
        wallet = await there.world.wallet()
        setattr(there.world.chain_faults, fault, 3)
        answer = await there.pay(wallet, "POST", "/v1/servers", ORDER_WITH_SECRETS)
        assert answer.status_code in {402, 503}
        await there.world.run_for(30)
        check(listener, there, "uvicorn.access")


@pytest.mark.parametrize(
    "fault", [Outage(), LostAnswer(), Refused(RefusedCode.INVALID, "no")], ids=["outage", "lost", "refused"]
)
async def test_providers_that_fail(tmp_path: Path, listener: Listener, fault: Any) -> None:
    async with scene(tmp_path) as there:
        wallet = await there.world.wallet()
        there.world.cloud_faults.plan("create", fault)
        await there.pay(wallet, "POST", "/v1/servers", ORDER_WITH_SECRETS)
        await there.world.run_for(30)
        check(listener, there, "uvicorn.access")


class Clumsy:
    """A provider with a defect: it breaks with what it was given in its hands, and in its message."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    async def create(self, _: object, spec: Any) -> Any:
        in_reach = spec.user_data
        raise RuntimeError(f"cannot make {spec} of {in_reach}")


async def test_a_provider_with_a_defect(tmp_path: Path, listener: Listener) -> None:
    async with scene(tmp_path, around=Clumsy) as there:
        wallet = await there.world.wallet()
        await there.pay(wallet, "POST", "/v1/servers", ORDER_WITH_SECRETS)
        await there.world.run_for(10)
        check(listener, there, "spawn.services.operator")
        assert "builtins.RuntimeError" in listener.text, "it is still told what happened, and where"
        assert "in create" in listener.text


async def test_a_defect_of_ours(tmp_path: Path, listener: Listener) -> None:
    """A table is gone: the call ends in an exception that nobody expected."""
    async with scene(tmp_path) as there:
        wallet = await there.world.wallet()
        payment = await there.world.payment(wallet, "POST", "/v1/servers", ORDER_WITH_SECRETS)
        there.remember(payment)
        await there.world.parts.db.write(lambda tx: tx.execute("ALTER TABLE reservation RENAME TO gone"))
        answer = await there.world.send_payment(payment, "POST", "/v1/servers", ORDER_WITH_SECRETS, key=KEY)
        assert answer.status_code == 500, answer.text
        check(listener, there, "spawn.api.errors")
        gone = {
            "sqlite": "sqlite3.OperationalError: no such table",
            "postgresql": "psycopg.errors.UndefinedTable",
        }
        assert gone[databases.engine()] in listener.text


async def test_an_application_that_breaks_in_the_hands_of_the_server(listener: Listener) -> None:
    async def clumsy(scope: Any, _receive: Any, _send: Any) -> None:
        raise RuntimeError(f"cannot answer {scope}")

    head = b"".join(b"%s: %s\r\n" % (name.encode(), value.encode()) for name, value in PLANTED.items())
    async with serving(served_by=clumsy, access_log=True) as served:
        assert (await served.ask(b"GET /?planted HTTP/1.1\r\n" + head + b"\r\n")).status == 500
    assert "planted" not in listener.text
    assert {"uvicorn.error", "uvicorn.access"} <= listener.names


async def test_what_is_no_request(listener: Listener) -> None:
    async with serving(access_log=True) as served:
        for head in (
            b"GET /planted\x00",
            b"GET / HTTP/1.1\r\nplanted\r\n\r\n",
            b"GET / HTTP/1.1\r\nA: planted\x00\r\n\r\n",
        ):
            assert (await served.ask(head + b"\r\n\r\n")).status == 400
    assert "planted" not in listener.text


async def test_a_task_that_nobody_waited_for(listener: Listener) -> None:
    async def clumsy() -> None:
        raise RuntimeError(KEY)

    task = asyncio.create_task(clumsy())
    await asyncio.wait([task])
    asyncio.get_running_loop().call_exception_handler(
        {"message": "Task exception was never retrieved", "exception": task.exception(), "future": task}
    )
    assert "Task exception was never retrieved" in listener.text
    assert "planted" not in listener.text
