"""A service with one lent machine, of real parts: Docker, the commands that people run, an image of Debian packages.

Invariant: all of it is on the loopback of a network namespace that is the test's own, and ends with it.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from spawn_hostagent.docker.rentals import LABEL
from spawn_ledger.accounts import AccountId, host_account
from spawn_schemas.ids import HostId

from spawn.setting_reader import read_settings
from spawn.store.migrate import migrate
from tests.e2e.lending_bent import Bent
from tests.hostagent.docker_engine import Engine
from tests.interop.clients import BUYERS, TIMEOUT_S
from tests.interop.machines import login_key
from tests.interop.service import RunningService, environment, in_folder
from tests.interop.story import IDENTIFYING, Shopper
from tests.ports import free_port
from tests.wallets import Wallet

OWNER: Final = "0x" + "0d" * 20
NAME: Final = "attic"
ORDER: Final = {"name": "box", "type": "lent", "image": "debian-12", "location": NAME, "deposit": "0.30"}
FUND: Final = "0.60"
DAILY: Final = "0.24"
"""What a day costs: a deposit for one is within what stock clients pay without asking."""
SHARE_PERCENT: Final = 60
FIRST_HOUR_USDC: Final = 10_000
"""The least that a server costs: an hour of $0.24 a day, in micro-USDC."""
REFUSED: Final = 255
"""What ssh ends with where it could not log in."""
WAIT_S: Final = 90
SPAWN: Final = (sys.executable, "-m", "spawn")
AGENT: Final = (sys.executable, "-m", "spawn_hostagent")

SELECT_BALANCE: Final = """
SELECT COALESCE(SUM(CASE WHEN credit = :account THEN amount ELSE -amount END), 0) AS n
FROM transfer WHERE credit = :account OR debit = :account
"""
SELECT_BURNT: Final = """
SELECT COALESCE(SUM(CASE WHEN credit = 'rev:compute' THEN amount ELSE -amount END), 0) AS n
FROM transfer WHERE reference = :server AND (credit = 'rev:compute' OR debit = 'rev:compute')
"""
SELECT_HOST: Final = "SELECT id FROM host WHERE name = :name"


@dataclass
class Program:
    """A command that runs until it is told to stop, or killed; `is_up` says whether it does its work."""

    command: tuple[str, ...]
    folder: Path
    log: Path
    settings: Mapping[str, str]
    is_up: Callable[[], bool]
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        self.begin()
        self.wait(self.is_up)

    def begin(self) -> None:
        """Start it, and wait for nothing."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=environment(self.settings), stdout=log, stderr=log
            )

    def tell(self, what: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(what)

    def wait(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not is_so():
            assert time.monotonic() < deadline, self.said()
            assert self.process is None or self.process.poll() is None, self.said()
            time.sleep(0.1)

    def said(self) -> str:
        return self.log.read_text()[-4000:]

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, if it runs; who is told to stop must say that it did."""
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(how)
        try:
            ended = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        assert ended == (-how if how == signal.SIGKILL else 0), self.said()


@dataclass
class Lent:
    """The service, the agent beside the engine that it runs tenants on, and a tenant's folder.

    `program` is `spawn-host`; `agent_command` is the same, or bent.
    """

    engine: Engine
    folder: Path
    url: str
    settings: dict[str, str]
    program: tuple[str, ...] = AGENT
    agent_command: tuple[str, ...] = AGENT
    service_command: tuple[str, ...] = SPAWN

    def __post_init__(self) -> None:
        listen = self.url.removeprefix("http://")
        self.config = self.folder / "agent.yaml"
        self.books = RunningService(url=self.url, settings=read_settings(self.settings, listen=listen))
        serve = (*self.service_command, "serve", "--listen", listen)
        start = (*self.agent_command, "start", "--config", str(self.config))
        log = self.folder / "service.log"
        self.service = Program(serve, self.folder, log, self.settings, self._answers)
        path = {"PATH": f"{self.engine.programs}:{os.environ['PATH']}"}
        self.agent = Program(start, self.folder, self.folder / "agent.log", path, self.is_connected)

    def _answers(self) -> bool:
        with httpx.Client(trust_env=False, timeout=2) as http:
            try:
                return http.get(f"{self.url}/health").is_success
            except httpx.TransportError:
                return False

    def is_connected(self) -> bool:
        found = self.status()
        return found is not None and bool(found["connected"]) and bool(found["running"])

    def links(self) -> int:
        """How often the agent has come to be connected."""
        return self.agent.log.read_text().count("The link is up")

    def status(self) -> Any:
        """What `spawn-host status` says; None while there is nothing to say."""
        command = [*self.program, "status", "--config", str(self.config), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return json.loads(done.stdout) if done.stdout else None

    def run_agent(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [*self.agent_command, arguments[0], "--config", str(self.config), *arguments[1:]]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def added(self) -> str:
        """The operator adds the machine; the token that it registers with."""
        command = [*SPAWN, "hosts", "add", NAME, "--wallet", OWNER, "--price", DAILY]
        added = subprocess.run(
            command,
            cwd=self.folder,
            env=environment(self.settings),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert added.returncode == 0, added.stderr
        (token,) = re.findall(r"spwn_reg_[0-9a-f]{64}", added.stdout)
        return str(token)

    def set_up(self, token: str) -> None:
        """Its owner, who is told that Debian's runc is older than the floor, registers it all the same."""
        done = self.run_agent("setup", "--yes", "--despite-checks", "--token", token)
        assert done.returncode == 0, done.stdout + done.stderr

    def ssh(self, server: Any, key: Path, command: str) -> "subprocess.CompletedProcess[str]":
        """Log in as the API says, trusting its line and nothing else."""
        known = self.folder / "known_hosts"
        known.write_text(server["known_hosts"] + "\n")
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "30",
            "GlobalKnownHostsFile": "/dev/null",
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(known),
        }
        settings = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        where = ["-p", str(server["ssh"]["port"]), f"root@{server['ssh']['host']}"]
        return subprocess.run(
            ["ssh", "-F", "none", "-i", str(key), *settings, *where, command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def host_id(self) -> HostId:
        return HostId(self._one(SELECT_HOST, name=NAME)["id"])

    def owed_usdc(self) -> int:
        """What the machine's owner is owed, in micro-USDC."""
        account: AccountId = host_account(self.host_id())
        return int(self._one(SELECT_BALANCE, account=account)["n"])

    def burnt_usdc(self, server_id: str) -> int:
        """What it cost, without what came back of that."""
        return int(self._one(SELECT_BURNT, server=server_id)["n"])

    def _one(self, sql: str, **params: str) -> Any:
        with self.books.books() as tx:
            return tx.one(sql, params)


@contextmanager
def lending(
    docker: Engine,
    folder: Path,
    *,
    program: tuple[str, ...] = AGENT,
    agent: Bent | None = None,
    service: Bent | None = None,
) -> Iterator[Lent]:
    """The service with one lent machine, whose agent runs and is connected; each as in life, or bent.

    `program` is `spawn-host` in another of its forms.
    """
    settings = {
        **in_folder(folder),
        "SPAWN_PROVIDERS": "community",
        "SPAWN_COMMUNITY_HOST": NAME,
        "SPAWN_COMMUNITY_IMAGES": f"debian-12={docker.base}",
        "SPAWN_COMMUNITY_SIZE": "1,1,1",
        "SPAWN_RELAY_PORTS": "20000-20009",
        # Books that several processes may share wait so long before one that was killed is followed.
        "SPAWN_LEASE_S": "5",
    }
    (folder / "agent.yaml").write_text(
        f"service: http://127.0.0.1:{(port := free_port())}\n"
        f"state_dir: {folder / 'agent'}\n"
        f"docker_socket: {docker.socket}\n"
        "limits: {cpus: 1, memory_gb: 2, disk_gb: 8}\n"
        f"images: {{allow: ['{docker.base.partition('@')[0]}']}}\n"
    )
    migrate(settings["SPAWN_DATABASE_URL"])
    lent = Lent(
        engine=docker,
        folder=folder,
        url=f"http://127.0.0.1:{port}",
        settings=settings,
        program=program,
        agent_command=program if agent is None else agent.command("spawn_hostagent"),
        service_command=SPAWN if service is None else service.command("spawn"),
    )
    try:
        token = lent.added()
        lent.service.start()
        lent.set_up(token)
        lent.agent.start()
        yield lent
    finally:
        try:
            lent.agent.end()
        finally:
            lent.service.end()


@dataclass
class Tenant:
    """Who rents, by a stock client, and logs in with a key of its own."""

    lent: Lent
    shopper: Shopper
    key: Path
    token: str = ""

    async def rent(self) -> Any:
        """The server, as its owner sees it when it runs."""
        bought = await self.shopper.buy("POST", "/v1/servers", await self.wish(), credited=FUND)
        return await self.look(bought["server"]["id"])

    async def wish(self) -> dict[str, Any]:
        """What to order, with a key to log in by; and a session to look at it."""
        public = {"name": "laptop", "public_key": self.key.with_suffix(".pub").read_text().strip()}
        key_id = (await self.shopper.buy("POST", "/v1/ssh-keys", public))["ssh_key"]["id"]
        identified = await self.shopper.buy("POST", "/v1/sessions", credited=IDENTIFYING)
        self.token = identified["session"]["token"]
        return ORDER | {"fund": FUND, "ssh_keys": [key_id]}

    async def look(self, server_id: str) -> Any:
        return (await self.shopper.read(self.token, "/v1/servers/{server_id}", server_id=server_id))["server"]

    def ssh(self, server: Any, command: str) -> str:
        """What has just begun may not listen yet: where nobody answered, so that nothing ran, it is tried again."""
        deadline = time.monotonic() + WAIT_S
        while True:
            done = self.lent.ssh(server, self.key, command)
            if done.returncode == 0:
                return done.stdout
            nobody_there = "kex_exchange_identification" in done.stderr and time.monotonic() < deadline
            assert nobody_there, done.stderr + self.lent.agent.said()
            time.sleep(0.2)


@asynccontextmanager
async def tenant(lent: Lent) -> AsyncIterator[Tenant]:
    """Somebody with two dollars."""
    wallet = Wallet.numbered(1)
    await lent.books.mint(wallet, "2.00")
    async with (
        BUYERS["x402[httpx]"].open(lent.url, wallet, None) as client,
        httpx.AsyncClient(base_url=lent.url, timeout=TIMEOUT_S, trust_env=False) as http,
    ):
        shopper = Shopper(lent.books, http, client, wallet, pays_by_x402=2, signs_in=False)
        yield Tenant(lent, shopper, login_key(lent.folder))


async def give_back(renter: Tenant, server: Any) -> None:
    """The server is destroyed; nothing is left of it, and its host has its share of what it cost."""
    lent, server_id = renter.lent, server["id"]
    await renter.shopper.buy("DELETE", "/v1/servers/{server_id}", server_id=server_id)
    assert lent.ssh(server, renter.key, "true").returncode == REFUSED
    assert lent.burnt_usdc(server_id) == FIRST_HOUR_USDC
    assert lent.owed_usdc() == FIRST_HOUR_USDC * SHARE_PERCENT // 100
    assert await lent.books.violations() == []
    lent.agent.wait(lambda: lent.status()["rentals"] == [])
    assert list((lent.folder / "agent").rglob(f"*{server_id}*")) == []
    client = lent.engine.client()
    try:
        # The agent's canaries may be at it: they come and go whenever Docker was restarted.
        assert client.containers(all=True, filters={"label": LABEL}) == []
        assert client.networks(filters={"label": LABEL}) == []
        lent.agent.wait(lambda: client.containers(all=True) == [])
    finally:
        client.close()


def still_runs(renter: Tenant, server: Any) -> None:
    assert renter.ssh(server, "kill -0 $(cat /root/pid) && echo it runs") == "it runs\n"


@contextmanager
def link_cut(lent: Lent, *, http_works: bool = False) -> Iterator[None]:
    """No packet passes between agent and service, but those of plain HTTP if it works; nobody is told."""
    ports = {lent.books.settings.link_listen.rpartition(":")[2]}
    ports |= set() if http_works else {lent.url.rpartition(":")[2]}
    drop = f"tcp dport {{ {', '.join(sorted(ports))} }} drop"
    nft(f"table inet cut {{\nchain gate {{\ntype filter hook input priority 0;\n{drop}\n}}\n}}\n")
    try:
        yield
    finally:
        nft("delete table inet cut")


def nft(rules: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True, capture_output=True, timeout=30)
