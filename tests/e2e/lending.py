"""A service with one lent machine, of real parts: Docker, the commands that people run, an image of Debian packages.

Invariant: all of it is on the loopback of a network namespace that is the test's own, and ends with it.
"""

import json
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
from spawn_ledger.accounts import AccountId, host_account
from spawn_schemas.ids import HostId

from spawn.setting_reader import read_settings
from spawn.store.migrate import migrate
from tests.hostagent.docker_engine import Engine
from tests.interop.clients import BUYERS, TIMEOUT_S
from tests.interop.machines import login_key
from tests.interop.service import RunningService, environment, free_port, in_folder
from tests.interop.story import IDENTIFYING, Shopper
from tests.wallets import Wallet

OWNER: Final = "0x" + "0d" * 20
NAME: Final = "attic"
ORDER: Final = {"name": "box", "type": "lent", "image": "debian-12", "location": NAME, "deposit": "0.30"}
FUND: Final = "0.60"
DAILY: Final = "0.24"
"""What a day costs: a deposit for one is within what stock clients pay without asking."""
WAIT_S: Final = 90
SPAWN: Final = (sys.executable, "-m", "spawn")
AGENT: Final = (sys.executable, "-m", "spawn_hostagent")

SELECT_BALANCE: Final = """
SELECT COALESCE(SUM(CASE WHEN credit = :account THEN amount ELSE -amount END), 0) AS n
FROM transfer WHERE credit = :account OR debit = :account
"""
SELECT_BURNT: Final = """
SELECT COALESCE(SUM(amount), 0) AS n FROM transfer WHERE credit = 'rev:compute' AND reference = :server
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
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=environment(self.settings), stdout=log, stderr=log
            )
        self.wait(self.is_up)

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
        self.process.send_signal(how)
        ended = self.process.wait(60)
        self.process = None
        assert ended == (-how if how == signal.SIGKILL else 0), self.said()


@dataclass
class Lent:
    """The service, the agent beside the engine that it runs tenants on, and a tenant's folder."""

    engine: Engine
    folder: Path
    url: str
    settings: dict[str, str]

    def __post_init__(self) -> None:
        listen = self.url.removeprefix("http://")
        self.config = self.folder / "agent.yaml"
        self.books = RunningService(url=self.url, settings=read_settings(self.settings, listen=listen))
        serve = (*SPAWN, "serve", "--listen", listen)
        start = (*AGENT, "start", "--config", str(self.config))
        log = self.folder / "service.log"
        self.service = Program(serve, self.folder, log, self.settings, self._answers)
        self.agent = Program(start, self.folder, self.folder / "agent.log", {}, self.is_connected)

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
        done = self.run_agent("status", "--json")
        return json.loads(done.stdout) if done.stdout else None

    def run_agent(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [*AGENT, arguments[0], "--config", str(self.config), *arguments[1:]]
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
        return int(self._one(SELECT_BURNT, server=server_id)["n"])

    def _one(self, sql: str, **params: str) -> Any:
        with self.books.books() as tx:
            return tx.one(sql, params)


@contextmanager
def lending(docker: Engine, folder: Path) -> Iterator[Lent]:
    """The service with one lent machine, whose agent runs and is connected."""
    settings = {
        **in_folder(folder),
        "SPAWN_PROVIDERS": "community",
        "SPAWN_COMMUNITY_HOST": NAME,
        "SPAWN_COMMUNITY_IMAGES": f"debian-12={docker.base}",
        "SPAWN_COMMUNITY_SIZE": "1,1,1",
        "SPAWN_RELAY_PORTS": "20000-20009",
    }
    (folder / "agent.yaml").write_text(
        f"service: http://127.0.0.1:{(port := free_port())}\n"
        f"state_dir: {folder / 'agent'}\n"
        f"docker_socket: {docker.socket}\n"
        "limits: {cpus: 1, memory_gb: 2, disk_gb: 8}\n"
        f"images: {{allow: ['{docker.base.partition('@')[0]}']}}\n"
    )
    migrate(settings["SPAWN_DATABASE_URL"])
    lent = Lent(engine=docker, folder=folder, url=f"http://127.0.0.1:{port}", settings=settings)
    try:
        token = lent.added()
        lent.service.start()
        lent.set_up(token)
        lent.agent.start()
        yield lent
    finally:
        lent.agent.end()
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
        public = {"name": "laptop", "public_key": self.key.with_suffix(".pub").read_text().strip()}
        key_id = (await self.shopper.buy("POST", "/v1/ssh-keys", public))["ssh_key"]["id"]
        order = ORDER | {"fund": FUND, "ssh_keys": [key_id]}
        bought = await self.shopper.buy("POST", "/v1/servers", order, credited=FUND)
        self.token = (await self.shopper.buy("POST", "/v1/sessions", credited=IDENTIFYING))["session"][
            "token"
        ]
        return await self.look(bought["server"]["id"])

    async def look(self, server_id: str) -> Any:
        return (await self.shopper.read(self.token, "/v1/servers/{server_id}", server_id=server_id))["server"]

    def ssh(self, server: Any, command: str) -> str:
        done = self.lent.ssh(server, self.key, command)
        assert done.returncode == 0, done.stderr + self.lent.agent.said()
        return done.stdout


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
