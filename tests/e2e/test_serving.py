"""`spawn serve` as a process: what it runs on, what it refuses to be, and that it outlives its worst callers."""

import contextlib
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from spawn.server import configured
from spawn.setting_reader import read_settings
from tests.e2e.test_cli import environment_in, misunderstood, refused, spawn, wait_until_up
from tests.ports import free_address

GROWTH_MAX_KIB: Final = 4096
"""What memory may grow by under an attack that has been going on for a while."""

SERVE: Final = """
import asyncio, sys, spawn.cli, spawn.server
from spawn.app import build
from spawn.parts import open_parts
from spawn.setting_reader import read_settings

async def serve():
    settings = read_settings({})
    parts = await open_parts(settings)
    await build(settings, parts)
    await parts.close()

asyncio.run(serve())
print(sorted(name for name in %r if name in sys.modules))
"""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """A running `spawn serve`."""

    address: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def resident_kib(self) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    def attack(self, *parts: bytes) -> None:
        """Send this on a connection of its own, and go when the answer, if any, has come or a while has passed."""
        host, _, port = self.address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=0.05) as connection,
            contextlib.suppress(OSError),
        ):
            for part in parts:
                connection.sendall(part)
            connection.recv(65536)


@contextlib.contextmanager
def serving(folder: Path, *, open_files: int | None = None, **variables: str) -> Iterator[Serving]:
    """Run `spawn serve` on a new database in `folder`, with these variables, and stop it in order."""
    assert spawn(folder, "migrate").returncode == 0
    address, log = free_address(), folder / "log"
    limited = [] if open_files is None else ["bash", "-c", f'ulimit -n {open_files}; exec "$@"', "bash"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*limited, sys.executable, "-m", "spawn", "serve", "--listen", address],
            cwd=folder,
            env=environment_in(folder, **variables),
            stdout=output,
            stderr=output,
        )
    try:
        wait_until_up(address)
        yield Serving(address=address, process=process, log=log)
        process.terminate()
        assert process.wait(timeout=15) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.embedded
def test_serving_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    """Each of these takes as long as all the rest together."""
    assert spawn(tmp_path, "migrate").returncode == 0
    heavy = ("alembic", "sqlalchemy", "eth_account", "eth_utils", "web3", "x402", "httpx", "rich", "fastapi")
    unasked = (*heavy, "hcloud", "requests", "websockets", "spawn.link.hub", "spawn_providers.community")
    done = subprocess.run(
        [sys.executable, "-c", SERVE % (unasked,)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout == "[]\n"


class _Silent:
    """Has an answer to nothing."""

    def answer_now(self, _scope: object, /) -> None:
        return None

    def answer_soon(self, _scope: object, /) -> None:
        return None


def test_it_runs_on_uvloop_and_httptools_whatever_the_environment_says(tmp_path: Path) -> None:
    settings = read_settings({}, listen="127.0.0.1:8402")
    config = configured(None, _Silent(), settings, lambda: "req_1", log_requests=False)
    config.load()
    assert issubclass(config.http_protocol_class, HttpToolsProtocol)
    with serving(tmp_path, WEB_CONCURRENCY="1", FORWARDED_ALLOW_IPS="*") as service:
        assert "event loop: uvloop" in service.log.read_text()


def test_it_says_at_start_what_a_lone_payment_loses_and_needs_no_node_for_it(tmp_path: Path) -> None:
    with serving(
        tmp_path,
        SPAWN_PAYMENTS="self",
        SPAWN_RPC_URL="http://127.0.0.1:9",
        SPAWN_RELAYER_KEY="11" * 32,
        SPAWN_X402_PAY_TO="0x" + "22" * 20,
    ) as service:
        assert "a payment alone costs about 0.001943 USDC to settle" in service.log.read_text()


@pytest.mark.embedded
def test_several_workers_are_refused(tmp_path: Path) -> None:
    refused(spawn(tmp_path, "serve", "--workers", "2"), "2 workers", "SQLite", "--workers 1", "PostgreSQL")
    refused(served_with(tmp_path, WEB_CONCURRENCY="3"), "3 workers", "WEB_CONCURRENCY=1")
    misunderstood(spawn(tmp_path, "serve", "--workers", "0"), "--workers")
    misunderstood(served_with(tmp_path, WEB_CONCURRENCY="many"), "WEB_CONCURRENCY")
    assert list(tmp_path.iterdir()) == []


def served_with(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spawn", "serve"],
        cwd=folder,
        env=environment_in(folder, **variables),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.embedded
def test_a_second_process_on_the_database_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        second = spawn(tmp_path, "serve", "--listen", free_address())
        refused(second, "spawn.db is in use by process", str(service.process.pid), "SPAWN_DATABASE_URL")


def test_fewer_files_than_connections_is_said(tmp_path: Path) -> None:
    with serving(tmp_path, open_files=400) as service:
        assert "may open 400 files: it takes 200 connections, not the 4096" in service.log.read_text()


def test_the_files_it_may_open_are_raised_to_what_it_needs(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4352:
        pytest.skip("this machine allows a process fewer open files than the default needs")
    with serving(tmp_path) as service:
        soft, _ = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
        assert soft >= 4096


def test_it_outlives_its_worst_callers_without_growing(tmp_path: Path) -> None:
    floods: tuple[tuple[bytes, ...], ...] = (
        (b"\x16\x03\x01\x02\x00\x01\x00",),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 50_000,),
        (b"GET /" + b"a" * 50_000,),
        (b"POST /v1/servers HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 100_000),
        (b"POST /v1/servers HTTP/1.1\r\nContent-Length: 300000\r\n\r\n", b"a" * 300_000),
        (b"POST /v1/servers HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",),
        (b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 50,),
        (b"GET /v1/servers HTTP/1.1\r\nHost: x\r\n\r\n" * 2000,),
        (b"GET /health HTTP/1.1\r\n",),
        (b"",),
    )
    with (
        serving(
            tmp_path,
            SPAWN_RATE_ADDRESS_PER_MINUTE="0",
            SPAWN_HEAD_TIMEOUT_S="0.2",
            SPAWN_BODY_TIMEOUT_S="0.2",
            SPAWN_IDLE_TIMEOUT_S="0.2",
            SPAWN_ANSWER_TIMEOUT_S="0.2",
        ) as service,
    ):

        def rounds(count: int) -> int:
            for _ in range(count):
                for flood in floods:
                    service.attack(*flood)
                    assert httpx.get(f"http://{service.address}/health", timeout=10).status_code == 200
            return service.resident_kib()

        warm = rounds(10)
        assert rounds(10) - warm <= GROWTH_MAX_KIB
    told = service.log.read_text()
    assert "Traceback" not in told, told
    assert "ERROR" not in told, told
