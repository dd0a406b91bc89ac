"""A whole daemon on fakes: its machine, its identity, its clock; started, killed and started again in one folder."""

import asyncio
import contextlib
import random
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from spawn_hostagent import daemon
from spawn_hostagent.commands.journal import Journal
from spawn_hostagent.config import Config, Images, Limits
from spawn_schemas import hosts
from spawn_schemas.ids import HostId
from spawn_schemas.inventory import Gpu, Inventory, Isolation, Metrics

from tests.hostagent.clocks import VirtualClock, until
from tests.hostagent.desk import FailingDisk
from tests.hostagent.fake_machines import FakeMachines
from tests.hostagent.fake_service import FakeService

HOST = HostId("host_test")
SERVICE = "https://spawn.test"


class FakeSigner:
    """An identity in memory. `other` is the key of a rotation that broke off."""

    def __init__(self, link_url: str, host_id: HostId = HOST) -> None:
        self.host_id = host_id
        self.service = SERVICE
        self.link_url = link_url
        self.key = Ed25519PrivateKey.generate()
        self.other: Ed25519PrivateKey | None = None
        self.finished: list[str] = []

    @property
    def public_key(self) -> str:
        return b64encode(self.key.public_key().public_bytes_raw()).decode()

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message)

    def headers(self, method: str, path: str, body: bytes, *, now_s: int, nonce: str) -> dict[str, str]:
        text = hosts.request_text(
            method=method,
            path=path,
            body_sha256=sha256(body).hexdigest(),
            timestamp_s=now_s,
            nonce=nonce,
            host_id=self.host_id,
        )
        return {
            hosts.HOST_HEADER: self.host_id,
            hosts.TIMESTAMP_HEADER: str(now_s),
            hosts.NONCE_HEADER: nonce,
            hosts.SIGNATURE_HEADER: b64encode(self.sign(text)).decode(),
        }

    async def rotate(self) -> None:
        self.key = Ed25519PrivateKey.generate()

    def switch(self) -> bool:
        if self.other is None:
            return False
        self.key, self.other = self.other, self.key
        return True

    def finish_rotation(self, accepted: str) -> None:
        self.finished.append(accepted)
        self.other = None


class FakeHardware:
    """A machine with a GPU."""

    def __init__(self) -> None:
        self.asked = 0
        self.lent_gpus: tuple[str, ...] = ("GPU-1",)
        self.lent_disk_mib = 50_000
        self.busy = 0

    def inventory(
        self, isolation: Isolation | None = None, docker_version: str | None = None, used_disk_mib: int = 0
    ) -> Inventory:
        self.asked += 1
        return Inventory(
            hostname="attic",
            os="Debian 12",
            kernel="6.1",
            architecture="x86",
            cpu_model="test",
            cpu_cores=4,
            cpu_threads=8,
            total_memory_mib=16_000,
            total_disk_mib=100_000,
            cpus=4,
            memory_mib=8000,
            disk_mib=self.lent_disk_mib,
            gpus=(Gpu(uuid="GPU-1", index=0, is_lost=not self.lent_gpus),),
            lent_gpus=self.lent_gpus,
            docker_version=docker_version,
            isolation=isolation or Isolation(),
        )

    def metrics(self) -> Metrics:
        self.busy += 1
        try:
            return self._metrics()
        finally:
            self.busy -= 1

    def _metrics(self) -> Metrics:
        return Metrics(cpu_percent=12.5, gpu_temp_c=(61,))


class FakeHost:
    """`daemon` while one runs."""

    def __init__(
        self,
        folder: Path,
        service: FakeService,
        clock: VirtualClock,
        limits: Limits | None = None,
        images: Images | None = None,
    ) -> None:
        self.folder = folder
        self.service = service
        self.clock = clock
        self.signer = FakeSigner(service.url)
        service.keys[self.signer.host_id] = self.signer.key.public_key()
        self.machines = FakeMachines(clock.true_s)
        self.hardware = FakeHardware()
        self.config = Config(
            service=SERVICE,
            state_dir=str(folder),
            docker_socket=f"unix://{folder}/docker.sock",
            limits=limits or Limits(),
            images=images or Images(),
        )
        self.stop = asyncio.Event()

    async def begin(self) -> "asyncio.Task[int]":
        """Start a daemon; what is over is seen by its task."""
        self.stop = asyncio.Event()
        self.journal = Journal.open(self.folder / daemon.JOURNAL_FILE, FailingDisk)
        self.daemon = daemon.Daemon(
            self.config,
            self.signer,
            self.machines,
            self.hardware,
            self.journal,
            clock=self.clock,
            dice=random.Random(7),
        )
        self.daemon.fallback._transport = self.service.transport()
        self.task = asyncio.create_task(self.daemon.run(self.stop))
        return self.task

    async def connected(self) -> None:
        """Let time pass until the link is up and the first words are said."""
        for _ in range(100):
            if self.signer.host_id in self.service.live:
                break
            await self.clock.advance(1)
            await asyncio.sleep(0.01)
        syncs = len(self.service.syncs)
        await until(lambda: self.daemon.link.state.connected, "a link")
        await until(lambda: len(self.service.syncs) > syncs or self.service.syncs, "a state sync")

    async def pass_time(self, seconds: float, step: float = 1.0) -> None:
        """Let time pass, as slowly as sockets and threads need."""
        end = self.clock.elapsed_s() + seconds
        while self.clock.elapsed_s() < end:
            await self.clock.advance(min(step, end - self.clock.elapsed_s()))
            await self._calm()

    async def _calm(self) -> None:
        """Wait until both ends have heard what the other said, so that no time passes in between."""
        calm = 0
        for _ in range(1000):
            calm = calm + 1 if self._has_heard_all() else 0
            if calm == 3:
                return
            await asyncio.sleep(0.001)

    def _has_heard_all(self) -> bool:
        ours, theirs = self.daemon.link._session, self.service.live.get(self.signer.host_id)
        if self.hardware.busy or self.daemon.keeper._worker._work_queue.qsize():
            return False
        if ours is None or theirs is None:
            return ours is None and theirs is None
        return (ours._epoch, ours._seq, ours._window._newest) == (theirs.epoch, theirs.heard, theirs.seq)

    async def finish(self) -> int:
        """A graceful end."""
        self.stop.set()
        status = await self._await_end()
        self.journal.close()
        return status

    async def kill(self) -> None:
        """The process is gone in the middle of everything."""
        for task in self.daemon.keeper.executor._tasks:
            task.cancel()
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._await_end()
        self.journal.close()
        self.machines.forget_callers()

    async def _await_end(self) -> int:
        """The daemon gives commands some seconds, of the virtual clock or of asyncio's own."""
        return await asyncio.wait_for(self.task, 30)


@asynccontextmanager
async def fake_host(
    folder: Path,
    service: FakeService,
    clock: VirtualClock,
    limits: Limits | None = None,
    images: Images | None = None,
) -> AsyncIterator[FakeHost]:
    FailingDisk.plan(None)
    host = FakeHost(folder, service, clock, limits, images)
    _ = await host.begin()
    try:
        yield host
    finally:
        if not host.task.done():
            await host.finish()
