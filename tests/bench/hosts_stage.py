"""A service that rents out lent machines, with as many hosts registered as a benchmark wants, and what runs beside it.

Invariant: hosts are rows as registration leaves them, and everything after that is real: each logs in with its own key,
and what is rented is rented over the API and paid for.
"""

import hashlib
import os
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from signing import SignedRequestAuth
from spawn_schemas.ids import Address, HostId
from spawn_schemas.money import Usdc

from spawn.domain.hosts import Host, HostState
from spawn.store import hosts
from spawn.store.migrate import migrate
from spawn.store.sqlite import connect_writer
from spawn.store.sqlite_writer import SqliteTx
from tests.bench import tenants
from tests.bench.processes import START_TIMEOUT_S, Process, inherited, pinned, running
from tests.bench.signatures import Key, Offer
from tests.engines import ROOT
from tests.harness import CHAIN_ID
from tests.ports import free_address, free_port
from tests.wallets import Wallet

ATTIC: Final = "attic"
"""The host whose machine is rented out."""
BULK_PORT: Final = 7000
"""The port of each container behind which bytes are poured; 22 leads to an sshd."""
_RENT_TIMEOUT_S: Final = 30
_STOP_TIMEOUT_S: Final = 15
_PUBLIC_PORTS: Final = 8
_DEPOSIT: Final = "200.00"


def host_id(name: str) -> HostId:
    return HostId(f"host_{name}")


def key_of(name: str) -> Ed25519PrivateKey:
    """The same in every run, and in every process of one."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def idle_name(number: int) -> str:
    return f"idle-{number}"


class Stage:
    """A folder for one service, and where it listens."""

    def __init__(self, folder: Path, *, idle: int) -> None:
        self.folder = folder
        self.port = free_port()
        self.link_port = free_port()
        self.link_url = f"ws://127.0.0.1:{self.link_port}"
        folder.mkdir()
        self._fill(idle)

    def environ(self) -> dict[str, str]:
        first = _free_range(_PUBLIC_PORTS)
        return tenants.settings(self.folder, self.port) | {
            "SPAWN_PROVIDERS": "community",
            "SPAWN_COMMUNITY_HOST": ATTIC,
            "SPAWN_COMMUNITY_IMAGES": f"debian-12=registry.test/debian@sha256:{'ab' * 32}",
            "SPAWN_COMMUNITY_PORTS": f"22,{BULK_PORT}",
            "SPAWN_LINK_LISTEN": f"127.0.0.1:{self.link_port}",
            "SPAWN_LINK_URL": self.link_url,
            "SPAWN_RELAY_PORTS": f"{first}-{first + _PUBLIC_PORTS - 1}",
            "SPAWN_RELAY_HOST": "127.0.0.1",
            "SPAWN_RELAY_HTTP_LISTEN": free_address(),
        }

    @contextmanager
    def serving(self, core: int | None) -> Iterator[Process]:
        """The service, on this core (None: on any), with a chain that settles at once."""
        command = (sys.executable, "-m", "tests.bench.ours", "instant")
        with running(
            command,
            self.port,
            ready="/health",
            core=core,
            log=self.folder / "service.log",
            environ=self.environ(),
        ) as service:
            yield service

    def _fill(self, idle: int) -> None:
        path = self.folder / "spawn.db"
        migrate(f"sqlite:///{path}")
        now = int(time.time())
        with closing(connect_writer(path)) as connection:
            tx = SqliteTx(connection)
            connection.execute("BEGIN IMMEDIATE")
            for name in (ATTIC, *map(idle_name, range(idle))):
                hosts.insert(tx, _registered(name, now))
            connection.execute("COMMIT")


def _registered(name: str, now: int) -> Host:
    return Host(
        id=host_id(name),
        name=name,
        wallet=Address("0x" + "0d" * 20),
        daily_usdc=Usdc(1_200_000),
        public_key=b64encode(key_of(name).public_key().public_bytes_raw()).decode(),
        state=HostState.ONLINE,
        last_seen=now,
        created_at=now,
        registered_at=now,
    )


def rent(service: Process, public_key: str, *, count: int) -> list[dict[int, int]]:
    """Rent so many machines of the connected host; answers the public port of each inner one, machine by machine."""
    auth = SignedRequestAuth(Wallet.numbered(1).account, CHAIN_ID)
    with httpx.Client(base_url=service.url, trust_env=False, timeout=30) as http:
        body = {"amount": _DEPOSIT}
        offer = Offer(http.post("/v1/balance/deposit", json=body).headers["PAYMENT-REQUIRED"])
        paid = {"PAYMENT-SIGNATURE": offer.pay(Key(1), int(time.time()))}
        _done(http.post("/v1/balance/deposit", json=body, headers=paid))
        http.auth = auth
        key = _done(http.post("/v1/ssh-keys", json={"name": "bench", "public_key": public_key}))["ssh_key"]
        order = {"type": "lent", "image": "debian-12", "location": ATTIC, "ssh_keys": [key["id"]]}
        made = [_rented(http, order | {"name": f"lent-{number}"}) for number in range(count)]
        return [_ports_of(http, one["server"]["id"]) for one in made]


def _rented(http: httpx.Client, order: dict[str, Any]) -> dict[str, Any]:
    """The answer to a paid order; until the host has said what it lends, there is no room."""
    end = time.monotonic() + _RENT_TIMEOUT_S
    while True:
        answer = http.post("/v1/servers", json=order)
        if answer.status_code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > end:
            return _done(answer)
        time.sleep(0.2)


def _ports_of(http: httpx.Client, server_id: str) -> dict[int, int]:
    end = time.monotonic() + _RENT_TIMEOUT_S
    while True:
        server = _done(http.get(f"/v1/servers/{server_id}"))["server"]
        if server["status"] == "running":
            return {each["port"]: each["public_port"] for each in server["ports"]}
        if time.monotonic() > end:
            raise RuntimeError(
                f"{server_id} does not run after {_RENT_TIMEOUT_S} s; it is {server['status']}"
            )
        time.sleep(0.1)


def _done(answer: httpx.Response) -> dict[str, Any]:
    if not answer.is_success:
        raise RuntimeError(
            f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}"
        )
    body: dict[str, Any] = answer.json()
    return body


@contextmanager
def started(
    command: Sequence[str],
    port: int,
    *,
    log: Path,
    core: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Process]:
    """Run what listens on `port`, whatever it speaks there, until the block ends; port 0: what listens nowhere."""
    with log.open("wb") as output, nullcontext() if core is None else pinned(core):
        process = subprocess.Popen(
            command, cwd=ROOT, env=inherited() | dict(environ or {}), stdout=output, stderr=output
        )
    try:
        server = Process(process, port)
        if port and not _listens(port, process):
            raise RuntimeError(f"{command[0]} does not listen on {port}:\n{log.read_text()}")
        yield server
    finally:
        process.terminate()
        process.wait(timeout=_STOP_TIMEOUT_S)


def wait_for(port: int) -> None:
    """Until somebody listens. Raises RuntimeError."""
    if not _listens(port, None):
        raise RuntimeError(f"nobody listens on {port}")


def _listens(port: int, process: "subprocess.Popen[bytes] | None") -> bool:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and (process is None or process.poll() is None):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            # Not yet; the loop is bounded by the timeout above.
            time.sleep(0.1)
        else:
            return True
    return False


def _free_range(count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for first in range(20_000 + os.getpid() % 5_000, 30_000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError(f"no {count} ports in a row are free between 20000 and 30000")
