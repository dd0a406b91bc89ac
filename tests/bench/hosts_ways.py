"""Three ways to the same sshd and the same source of bytes, and what is measured of each.

Direct is the floor: nothing in between. Ours is service and agent, both as they run. The peer is `hosts_forward`. All
share the machine's cores as the kernel likes, because no tenant pins anything.
"""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from tests.bench import hosts_forward
from tests.bench.hosts_stage import BULK_PORT, Stage, rent, started, wait_for
from tests.bench.hosts_tenant import Sshd
from tests.bench.processes import Process
from tests.ports import free_port

MIB: Final = 2**20
RENTALS: Final = 2
"""A rental has 128 streams at most."""
_SSH_TIMEOUT_S: Final = 120
_FILL_S: Final = 2.0
"""How long streams run before they are measured: by then whoever does not read is stalled."""
_RECEIVE: Final = 256 * 1024


class Way(msgspec.Struct, frozen=True):
    """`ssh_port` and the ports that pour, and the processes in between."""

    name: str
    ssh_port: int
    bulk_ports: tuple[int, ...]
    between: dict[str, Process]

    def cpu_s(self) -> float:
        return sum(process.cpu_s() for process in self.between.values())

    def resident_mib(self) -> float:
        return sum(process.resident_mib() for process in self.between.values())


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that came through, and the CPU time of what is in between."""

    mib_per_s: float
    cpu_ms_per_mib: float


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """Streams at once: the worst one's share of the mean, and what memory was used more than before any."""

    mib_per_s: float
    worst_share: float
    grown_mib: float


@contextmanager
def all_ways(folder: Path, sshd: Sshd, bulk: int) -> Iterator[list[Way]]:
    """Direct, ours and the peer's, ready."""
    with ExitStack() as stack:
        direct = Way("direct", sshd.port, (bulk,) * RENTALS, {})
        ours = stack.enter_context(_ours(folder, sshd, bulk))
        peer = stack.enter_context(_forwarded(folder, sshd, bulk))
        yield [direct, ours, peer]


@contextmanager
def _ours(folder: Path, sshd: Sshd, bulk: int) -> Iterator[Way]:
    stage = Stage(folder / "relay", idle=0)
    state = folder / "agent"
    state.mkdir()
    with stage.serving(None) as service:
        arguments = (str(state), stage.link_url, service.url, str(sshd.port), str(bulk))
        command = (sys.executable, "-m", "tests.bench.hosts_agent", *arguments)
        with started(command, 0, log=folder / "agent.log") as agent:
            rented = rent(service, sshd.public_key, count=RENTALS)
            for ports in rented:
                for port in ports.values():
                    wait_for(port)
            bulk_ports = tuple(ports[BULK_PORT] for ports in rented)
            yield Way("spawn", rented[0][22], bulk_ports, {"service": service, "agent": agent})


@contextmanager
def _forwarded(folder: Path, sshd: Sshd, bulk: int) -> Iterator[Way]:
    keys, port, public = folder / "forward", free_port(), free_port()
    hosts_forward.make_keys(keys)
    python = (sys.executable, "-m", hosts_forward.__name__)
    publics = tuple(free_port() for _ in range(RENTALS))
    forwards = (f"{public}:{sshd.port}", *(f"{each}:{bulk}" for each in publics))
    with (
        started((*python, "relay", str(keys), str(port)), port, log=folder / "forward-relay.log") as relay,
        started(
            (*python, "host", str(keys), str(port), *forwards), publics[-1], log=folder / "forward.log"
        ) as host,
    ):
        yield Way("asyncssh -R", public, publics, {"relay": relay, "host": host})


def login_s(way: Way, sshd: Sshd) -> float:
    """A whole `ssh … true`: connect, keys, a command's end."""
    begin = time.perf_counter()
    _ssh(sshd.command(way.ssh_port, "true"))
    return time.perf_counter() - begin


def ssh_bulk(way: Way, sshd: Sshd, mib: int) -> Carried:
    """So many MiB out of the rental through one SSH session."""
    before_s, begin = way.cpu_s(), time.perf_counter()
    _ssh(sshd.command(way.ssh_port, f"head -c {mib * MIB} /dev/zero"))
    return _carried(way, mib, time.perf_counter() - begin, before_s)


def ssh_upload(way: Way, sshd: Sshd, mib: int) -> Carried:
    """So many MiB into it."""
    before_s, begin = way.cpu_s(), time.perf_counter()
    with subprocess.Popen(("head", "-c", str(mib * MIB), "/dev/zero"), stdout=subprocess.PIPE) as zeros:
        _ssh(sshd.command(way.ssh_port, "cat > /dev/null"), source=zeros)
    return _carried(way, mib, time.perf_counter() - begin, before_s)


def raw_bulk(way: Way, mib: int) -> Carried:
    """So many MiB through one bare connection."""
    return asyncio.run(_raw_bulk(way, mib))


async def _raw_bulk(way: Way, mib: int) -> Carried:
    reader = _Reader()
    before_s, begin = way.cpu_s(), time.perf_counter()
    await _connect(way.bulk_ports[0], reader)
    await reader.reaches(mib * MIB)
    wall_s = time.perf_counter() - begin
    reader.transport.abort()
    return _carried(way, reader.received / MIB, wall_s, before_s)


def shared(way: Way, *, streams: int, stalled: int, seconds: float) -> Shared:
    """So many streams that are read as fast as they come, beside some that nobody reads."""
    return asyncio.run(_shared(way, streams, stalled, seconds))


async def _shared(way: Way, streams: int, stalled: int, seconds: float) -> Shared:
    before_mib = way.resident_mib()
    readers = [_Reader() for _ in range(streams)]
    stuck = [_Stuck() for _ in range(stalled)]
    everybody: Sequence[_Reader | _Stuck] = (*stuck, *readers)
    try:
        for number, each in enumerate(everybody):
            await _connect(way.bulk_ports[number % len(way.bulk_ports)], each)
        await asyncio.gather(*(reader.reaches(1) for reader in readers))
        await asyncio.sleep(_FILL_S)
        seen, begin = [reader.received for reader in readers], time.perf_counter()
        await asyncio.sleep(seconds)
        came = [reader.received - was for reader, was in zip(readers, seen, strict=True)]
        wall_s = time.perf_counter() - begin
        grown_mib = way.resident_mib() - before_mib
    finally:
        for each in everybody:
            each.transport.abort()
    if any(reader.is_lost for reader in readers):
        raise RuntimeError(f"{way.name}: a stream was cut")
    return Shared(
        mib_per_s=sum(came) / MIB / wall_s,
        worst_share=min(came) / (sum(came) / len(came)),
        grown_mib=grown_mib,
    )


class _Reader(asyncio.BufferedProtocol):
    """Counts what comes, and keeps none of it."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.received = 0
        self.is_lost = False
        self._buffer = memoryview(bytearray(_RECEIVE))
        self._wanted: tuple[int, asyncio.Future[None]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a TCP connection has a transport for both ways")
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += nbytes
        if self._wanted is not None and self.received >= self._wanted[0] and not self._wanted[1].done():
            self._wanted[1].set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        if self._wanted is not None and not self._wanted[1].done():
            self._wanted[1].set_exception(RuntimeError(f"a stream ended after {self.received} bytes"))

    async def reaches(self, count: int) -> None:
        """Return when so many bytes have come. Raises RuntimeError when it ends before, TimeoutError."""
        if self.received >= count:
            return
        self._wanted = (count, asyncio.get_running_loop().create_future())
        async with asyncio.timeout(_SSH_TIMEOUT_S):
            await self._wanted[1]


class _Stuck(_Reader):
    """Somebody who does not read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.pause_reading()


async def _connect(port: int, protocol: _Reader) -> None:
    await asyncio.get_running_loop().create_connection(lambda: protocol, "127.0.0.1", port)


def _carried(way: Way, mib: float, wall_s: float, before_s: float) -> Carried:
    return Carried(mib_per_s=mib / wall_s, cpu_ms_per_mib=(way.cpu_s() - before_s) / mib * 1e3)


def _ssh(command: Sequence[str], source: "subprocess.Popen[bytes] | None" = None) -> None:
    """Raises RuntimeError with what it said when it fails."""
    with contextlib.ExitStack() as stack:
        errors = subprocess.PIPE
        stdin = subprocess.DEVNULL if source is None else source.stdout
        process = stack.enter_context(
            subprocess.Popen(command, stdin=stdin, stdout=subprocess.DEVNULL, stderr=errors)
        )
        try:
            _, told = process.communicate(timeout=_SSH_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    if process.returncode:
        raise RuntimeError(f"ssh ended with {process.returncode}: {told.decode(errors='replace')}")
