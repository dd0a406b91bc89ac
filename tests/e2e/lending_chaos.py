"""A lent machine of real parts, an agent's process and Docker, at a service that is a fake and does what a test says.

Invariant: what ran is read from Docker's own log of events, which no agent writes; nothing of a machine outlives it.
"""

import asyncio
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from spawn_hostagent.docker.rentals import LABEL, container_name
from spawn_hostagent.joining.identity import keep, new_key, store_for_new
from spawn_schemas.hosts import HostRegistered
from spawn_schemas.ids import CommandId, HostId, RentalId
from spawn_schemas.orders import (
    Ack,
    Command,
    Desired,
    DestroyInstance,
    Exec,
    Order,
    ResumeInstance,
    StartInstance,
    StopInstance,
)

from tests.e2e.lending import Program
from tests.e2e.lending_bent import Bent
from tests.hostagent.clocks import WallTime
from tests.hostagent.docker_engine import Engine
from tests.hostagent.fake_service import FakeService, fake_service

HOST: Final = HostId("host_test")
WAIT_S: Final = 90
HOUR: Final = 3600
GRACE_S: Final = 2
SELECT_UNTOLD: Final = "SELECT COUNT(*) FROM command WHERE state != 'ended' OR told = 0"
LIVES_MAX: Final = 20
"""How often one agent may be started again before the test gives up."""

_numbers: Final = itertools.count(1)


class Machine:
    """`service` is the fake at the other end of its link; `starts` how often its agent was started."""

    def __init__(self, engine: Engine, folder: Path, service: FakeService, bent: Bent) -> None:
        self.engine, self.folder, self.service = engine, folder, service
        self.state = folder / "agent"
        self.config = folder / "agent.yaml"
        self.began = f"{time.time():.6f}"
        self.starts = 0
        bent = msgspec.structs.replace(bent, isolation=str(engine.folder / "isolation.json"))
        command = (*bent.command("spawn_hostagent"), "start", "--config", str(self.config))
        path = {"PATH": f"{engine.programs}:{os.environ['PATH']}"}
        self.agent = Program(command, folder, folder / "agent.log", path, lambda: False)

    def prepare(self) -> None:
        """Its owner's configuration, and an identity that the service knows."""
        self.configure(f"http://127.0.0.1:{self.service.port}")
        key, store = new_key({}), store_for_new(self.state, {}, lambda: ())
        store.put(key.public_key, key.seed)
        told = HostRegistered(host_id=HOST, name="attic", link_url=self.service.url, heartbeat_interval_s=30)
        keep(self.state, f"http://127.0.0.1:{self.service.port}", key, store, told)
        self.service.keys[HOST] = Ed25519PublicKey.from_public_bytes(b64decode(key.public_key))

    def become(self, other: "Machine") -> None:
        """Have what the other has in its state folder, as whoever copies it would, and its service."""
        shutil.rmtree(self.state, ignore_errors=True)
        shutil.copytree(other.state, self.state, ignore=shutil.ignore_patterns("*.sock", "*.lock", "*.pid"))
        self.service = other.service
        self.configure(f"http://127.0.0.1:{other.service.port}")

    def configure(self, service: str) -> None:
        self.config.write_text(
            f"service: {service}\n"
            f"state_dir: {self.state}\n"
            f"docker_socket: {self.engine.socket}\n"
            "limits: {cpus: 2, memory_gb: 2, disk_gb: 8}\n"
            f"images: {{allow: ['{self.engine.base.partition('@')[0]}']}}\n"
        )

    # --- its agent --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the agent, and wait until it is connected."""
        logins = self.service.logins
        self.begin()
        await self.until(lambda: self.service.logins > logins and HOST in self.service.live, "a login")

    def begin(self) -> None:
        self.starts += 1
        assert self.starts < LIVES_MAX, self.agent.said()
        self.agent.begin()

    def revive(self) -> bool:
        """Start the agent again if it has killed itself; whether it had."""
        process = self.agent.process
        if process is None or process.poll() is None:
            return False
        assert process.returncode == -signal.SIGKILL, self.agent.said()
        self.agent.process = None
        self.begin()
        return True

    async def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        # In a thread: it says goodbye to a service that is in this one.
        await asyncio.to_thread(self.agent.end, how)

    async def ends(self) -> int:
        """Wait until the agent has ended by itself; how."""
        process, self.agent.process = self.agent.process, None
        assert process is not None
        try:
            return await asyncio.to_thread(process.wait, 60)
        finally:
            process.kill()
            process.wait()

    async def until(self, is_so: Callable[[], object], what: str) -> None:
        end = time.monotonic() + WAIT_S
        while not is_so():
            assert time.monotonic() < end, f"{what}: it did not come about\n{self.agent.said()}"
            await asyncio.sleep(0.05)

    # --- what it is told --------------------------------------------------------------------------------------

    def command(self, order: Order, *, within_s: int = 600) -> Command:
        name = CommandId(f"cmd_{next(_numbers)}")
        return Command(command_id=name, expires_at=int(time.time()) + within_s, order=order)

    def rental(self, name: str, **changes: Any) -> StartInstance:
        """An order for a container that waits."""
        usual = StartInstance(
            rental_id=RentalId(name),
            generation=1,
            image=self.engine.base,
            hostname="tenant",
            cpus=0.5,
            memory_mib=128,
            disk_mib=64,
            lease_expires_at=int(time.time()) + HOUR,
            ports=(22,),
            command=("sleep", "3600"),
        )
        return msgspec.structs.replace(usual, **changes)

    async def do(self, order: Order) -> Ack:
        """As a service does: say what is wanted, then order it, until its end is heard; whoever died is started."""
        return await self.carry(self.command(order))

    async def carry(self, command: Command) -> Ack:
        self.want(command.order)
        await self.service.want(*self.service.desired.values())
        await self.service.order(command)
        return await self.ended(command)

    async def ended(self, command: Command) -> Ack:
        def is_ended() -> bool:
            self.revive()
            return bool(self.service.results(command))

        await self.until(is_ended, f"an end of {command.order}")
        return self.service.results(command)[-1]

    def want(self, order: Order) -> None:
        """From now on the service wants what this order leads to."""
        desired = self.service.desired
        match order:
            case StartInstance() | ResumeInstance():
                desired[order.rental_id] = Desired(
                    rental_id=order.rental_id,
                    generation=order.generation,
                    state="running",
                    lease_expires_at=order.lease_expires_at,
                )
            case StopInstance():
                before = desired[order.rental_id]
                desired[order.rental_id] = msgspec.structs.replace(before, state="stopped")
            case DestroyInstance():
                del desired[order.rental_id]
            case _:
                pass

    async def must(self, order: Order) -> Ack:
        """Do it; it succeeds."""
        ack = await self.do(order)
        assert ack.state == "succeeded", (ack.problem, self.agent.said())
        return ack

    # --- what is there ----------------------------------------------------------------------------------------

    def happened(self, rental_id: str) -> list[str]:
        """What Docker did with containers of this rental, by its own log, in its words (docker-events(1))."""
        client = self.engine.client()
        wanted: dict[str, Any] = {"type": "container", "label": f"{LABEL}={rental_id}"}
        try:
            since: Any = self.began  # the SDK's stub knows whole seconds alone
            found = client.events(since=since, until=int(time.time()) + 1, decode=True, filters=wanted)
            return [str(event["Action"]).partition(":")[0] for event in found]
        finally:
            client.close()

    def running(self) -> list[str]:
        client = self.engine.client()
        try:
            return sorted(container["Names"][0].removeprefix("/") for container in client.containers())
        finally:
            client.close()

    def left(self, rental_id: str, generation: int = 1) -> list[str]:
        """What is left of a rental that was destroyed: in Docker, on disk, in loop devices."""
        name = container_name(RentalId(rental_id), generation)
        client = self.engine.client()
        try:
            found = [str(container["Names"]) for container in client.containers(all=True)]
            found += [network["Name"] for network in client.networks()]
            found += [volume["Name"] for volume in client.volumes()["Volumes"] or ()]
        finally:
            client.close()
        found += [str(path) for path in self.state.rglob(f"*{name}*")]
        found += [line for line in loops() if line.startswith(str(self.folder))]
        # The walls of a bridge that is gone go with the next minute's sweep, and shut nobody out until then.
        return [what for what in found if name in what or what.startswith(str(self.folder))]

    def has_told(self) -> bool:
        """Whether every command in the journal has ended and is told; an agent that killed itself is started."""
        if self.revive():
            return False
        journal = sqlite3.connect(f"file:{self.state / 'journal.db'}?mode=ro", uri=True)
        try:
            return bool(journal.execute(SELECT_UNTOLD).fetchone() == (0,))
        finally:
            journal.close()


def run(rental_id: RentalId, *argv: str) -> Exec:
    return Exec(rental_id=rental_id, generation=1, argv=argv)


def stop(rental_id: RentalId) -> StopInstance:
    return StopInstance(rental_id=rental_id, generation=1, grace_s=GRACE_S)


def resume(rental_id: RentalId) -> ResumeInstance:
    return ResumeInstance(rental_id=rental_id, generation=1, lease_expires_at=int(time.time()) + HOUR)


def destroy(rental_id: RentalId) -> DestroyInstance:
    return DestroyInstance(rental_id=rental_id, generation=1)


def loops() -> list[str]:
    """The files that loop devices of this whole machine are attached to."""
    listed = subprocess.run(
        ["losetup", "--json", "--list"], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    return sorted(device["back-file"] for device in json.loads(listed or "{}").get("loopdevices", ()))


@asynccontextmanager
async def machine(engine: Engine, bent: Bent | None = None) -> AsyncIterator[Machine]:
    """A machine whose agent is not started yet, and a service for it; afterwards neither, nor any tenant."""
    # Not pytest's folder: a socket's path may have about 100 bytes.
    folder = Path(tempfile.mkdtemp(prefix="spawn-lm-"))
    async with fake_service(WallTime()) as service:
        made = Machine(engine, folder, service, bent or Bent())
        made.prepare()
        try:
            yield made
        finally:
            await _end(made)


async def _end(made: Machine) -> None:
    process = made.agent.process
    try:
        if process is not None and process.poll() is None:
            process.kill()
            await asyncio.to_thread(process.wait, 60)
        await asyncio.to_thread(made.engine.wipe)
        assert [file for file in loops() if file.startswith(str(made.folder))] == []
    finally:
        shutil.rmtree(made.folder)
