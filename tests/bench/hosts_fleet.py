"""Idle hosts by the hundred in one process: real sockets and real logins, and frames that are made beforehand.

Run as `python -m tests.bench.hosts_fleet WAY URL FIRST COUNT`; WAY is `ours`, or `floor` for a server that only echoes.
It says `up` when all are connected. `beat EVERY_S SECONDS` on standard input lets each host speak so often for so long,
spread evenly, with `whole` at its end also state syncs once a minute; it answers with how many answers came. A host
that is not answered ends it with an error.
"""

import asyncio
import sys
import time
from base64 import b64encode
from typing import Any, Final

import msgspec
from spawn_schemas import inventory, link
from websockets.asyncio.client import ClientConnection, connect

from tests.bench.hosts_stage import host_id, idle_name, key_of

_ANSWER_S: Final = 30
_AT_ONCE: Final = 50
"""Hosts that log in at the same time."""
_SYNC_EVERY_S: Final = 60.0
_METRICS: Final = inventory.Metrics(
    cpu_percent=12.5,
    cpu_temp_c=48.0,
    memory_used_mib=3_211,
    memory_percent=10.0,
    disk_used_mib=60_123,
    disk_percent=31.5,
    gpu_temp_c=(41,),
    gpu_utilization_percent=(0,),
)
_frames: Final[msgspec.json.Decoder[link.ToAgent]] = msgspec.json.Decoder(link.ToAgent)


class Idle:
    """One host on its socket."""

    def __init__(self, number: int, socket: ClientConnection) -> None:
        self._name = idle_name(number)
        self._socket = socket
        self._epoch = 0
        self._seq = 0

    async def log_in(self, url: str) -> None:
        challenge = await self._receive(link.Challenge)
        text = link.login_text(
            host_id=host_id(self._name), nonce=challenge.nonce, authority=link.authority_of(url)
        )
        signature = b64encode(key_of(self._name).sign(text)).decode()
        await self._send(link.Hello, signature=signature, agent_version="0.1.0", seq=0)
        self._epoch = (await self._receive(link.Welcome)).session_epoch

    async def beat(self) -> None:
        """A heartbeat and its answer; a server that echoes answers with the heartbeat itself."""
        await self._send(link.Heartbeat, status="online", metrics=_METRICS, rentals=0)
        async with asyncio.timeout(_ANSWER_S):
            await self._socket.recv()

    async def sync(self) -> None:
        await self._send(link.StateSync, rentals=())
        await self._receive(link.DesiredFrame)

    async def _receive(self, kind: type[Any]) -> Any:
        async with asyncio.timeout(_ANSWER_S):
            frame = _frames.decode(await self._socket.recv())
        if not isinstance(frame, kind):
            raise TypeError(f"{self._name} expected {kind.__name__}, and got {frame}")
        return frame

    async def _send(self, kind: type[Any], *, seq: int | None = None, **fields: Any) -> None:
        self._seq += seq is None
        frame = kind(
            host_id=host_id(self._name),
            session_epoch=self._epoch,
            seq=self._seq if seq is None else seq,
            ts=time.time_ns() // 1_000_000,
            **fields,
        )
        await self._socket.send(msgspec.json.encode(frame), text=True)


async def _connected(way: str, url: str, number: int, turns: asyncio.Semaphore) -> Idle:
    async with turns:
        socket = await connect(url, compression=None, ping_interval=None, proxy=None, open_timeout=_ANSWER_S)
        host = Idle(number, socket)
        if way == "ours":
            await host.log_in(url)
        return host


async def _live(host: Idle, begin: float, end: float, every_s: float, *, whole: bool, share: float) -> int:
    """Speak every so often from the host's own place in the first interval on; return how many heartbeats it was."""
    loop, count = asyncio.get_running_loop(), 0
    sync_at = begin + share * _SYNC_EVERY_S
    at = begin + share * every_s
    while at < end:
        await asyncio.sleep(max(0.0, at - loop.time()))
        await host.beat()
        count += 1
        if whole and loop.time() >= sync_at:
            sync_at += _SYNC_EVERY_S
            await host.sync()
        at += every_s
    return count


async def _beat(hosts: list[Idle], every_s: float, seconds: float, *, whole: bool) -> int:
    begin = asyncio.get_running_loop().time()
    lives = (
        _live(host, begin, begin + seconds, every_s, whole=whole, share=number / len(hosts))
        for number, host in enumerate(hosts)
    )
    return sum(await asyncio.gather(*lives))


async def main(way: str, url: str, first: int, count: int) -> None:
    """Obey until standard input ends."""
    turns = asyncio.Semaphore(_AT_ONCE)
    hosts = await asyncio.gather(
        *(_connected(way, url, number, turns) for number in range(first, first + count))
    )
    print("up", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        _, every_s, seconds, *rest = line.split()
        beats = await _beat(list(hosts), float(every_s), float(seconds), whole=rest == ["whole"])
        print(beats, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
