"""Who is connected: one session for each host, the newest; what it heard last; and the way to tell it something.

Invariant: what decides is in the books. A session that is lost, doubled or late loses nothing: commands are rows, and
are sent again until their host has said what came of them. What was heard is kept in memory, and written down in bulk.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec.structs import replace
from spawn_ledger.tx import Tx
from spawn_schemas import link, orders
from spawn_schemas.errors import SpawnError
from spawn_schemas.ids import CommandId, Entropy, HostId

from spawn.clock import Clock
from spawn.domain.hosts import Host, HostState, beat_s
from spawn.link.session import Session
from spawn.services import host_reports
from spawn.store import hosts
from spawn.store.database import Database, StoreError
from spawn.store.secrets import Vault

log = logging.getLogger(__name__)

FLUSH_S: Final = 15.0
"""How often it is written down when hosts were last heard."""
FLUSH_MANY: Final = 100
"""Hosts of which this is written at once: a commit for each would cost more than all they say."""
QUIET_S: Final = 120
"""A session that says nothing for so long is closed: whatever is behind it is not there."""


class Hub:
    """The sessions of this process."""

    def __init__(self, db: Database, vault: Vault, clock: Clock, entropy: Entropy) -> None:
        self.db = db
        self.vault = vault
        self.clock = clock
        self.entropy = entropy
        self.listening_since = clock.now_s()
        self.sessions: dict[HostId, Session] = {}
        self.on_change: Callable[[], None] = lambda: None
        """Called when rentals may have come or gone."""
        self.on_ack: Callable[[CommandId], None] = lambda _: None
        """Called with a command of which its host said something new."""
        self.also_flush: Callable[[], Awaitable[None]] = _nothing
        """Written down with what was heard."""
        self._telling: dict[HostId, asyncio.Task[None]] = {}
        self._again: set[HostId] = set()
        self._flushing: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self.listening_since = self.clock.now_s()
        self._flushing = asyncio.create_task(self._flush_forever(), name="hosts heard")

    async def stop(self) -> None:
        """Write down what was heard, and let go. The sessions end with their listener."""
        tasks = [task for task in (self._flushing, *self._telling.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(StoreError, SpawnError):
            await self.flush()
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)

    # --- sessions ---------------------------------------------------------------------------------------------------

    def opened(self, session: Session) -> None:
        """This session is its host's newest: the one before is closed."""
        before = self.sessions.get(session.host_id)
        self.sessions[session.host_id] = session
        if before is not None and before is not session:
            self._end(before, link.CLOSE_SUPERSEDED, "a newer session of this host is connected")

    def closed(self, session: Session) -> None:
        if self.sessions.get(session.host_id) is session:
            del self.sessions[session.host_id]

    def _end(self, session: Session, code: int, reason: str) -> None:
        """Nobody waits for it: one that reads nothing takes its time, and all others are looked after meanwhile."""
        self.closed(session)
        task = asyncio.create_task(session.close(code, reason), name=f"ending a session of {session.host_id}")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def beat_s(self, *, rented: bool) -> int:
        return beat_s(rented=rented, hosts=len(self.sessions))

    def look(self) -> None:
        """Rentals may have come or gone."""
        self.on_change()

    def tell(self, host_id: HostId) -> None:
        """Something is to be told to this host, if it is connected here. What is on its way already is not repeated."""
        self.on_change()
        if host_id not in self.sessions:
            return
        if host_id in self._telling:
            self._again.add(host_id)
            return
        task = asyncio.create_task(self._tell(host_id), name=f"telling {host_id}")
        self._telling[host_id] = task
        task.add_done_callback(lambda _: self._told(host_id))

    def _told(self, host_id: HostId) -> None:
        self._telling.pop(host_id, None)
        if host_id in self._again:
            self._again.discard(host_id)
            self.tell(host_id)

    async def _tell(self, host_id: HostId) -> None:
        session = self.sessions.get(host_id)
        if session is None:
            return
        try:
            await self.send_commands(session, again_before=0)
            await self.send_desired(session)
        except Exception:
            # The rows are as they were: the next frame of the host, or its next session, brings them again.
            log.exception("host %s could not be told what to do", host_id)

    async def send_commands(self, session: Session, *, again_before: int) -> None:
        """Send what was not sent yet, and what was sent before `again_before` and has not ended."""
        now = self.clock.now_s()
        commands = await self.db.write(
            lambda tx: host_reports.to_send(tx, self.vault, session.host_id, now, again_before=again_before)
        )
        for command in commands:
            await session.send(link.CommandFrame, command=command)

    async def send_desired(self, session: Session) -> None:
        generation, wanted = await self.db.write(lambda tx: _desired(tx, session.host_id, self.clock.now_s()))
        await session.send(link.DesiredFrame, generation=generation, rentals=wanted)

    async def synced(self, session: Session, frame: link.StateSync) -> None:
        """Write down what a host says it has, and answer with what it should have and do.

        All of it is one transaction, because every host does this once a minute.
        """
        now = self.clock.now_s()
        status = session.agent_status or ("draining" if frame.draining else "online")

        def work(tx: Tx) -> tuple[int, tuple[orders.Desired, ...], list[orders.Command]]:
            host_reports.synced_by(tx, self.entropy, session.host_id, frame, status, now)
            generation, wanted = _desired(tx, session.host_id, now)
            again_before = now - host_reports.AGAIN_S
            commands = host_reports.to_send(tx, self.vault, session.host_id, now, again_before=again_before)
            return generation, wanted, commands

        generation, wanted, commands = await self.db.write(work)
        if frame.rentals:
            self.on_change()
        await session.send(link.DesiredFrame, generation=generation, rentals=wanted)
        for command in commands:
            await session.send(link.CommandFrame, command=command)

    # --- what was heard ---------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Write down when each host was last heard; end the sessions of those that may not be here any more."""
        now = self.clock.now_s()
        heard: list[Session] = []
        for session in tuple(self.sessions.values()):
            if now - session.heard_at < QUIET_S:
                heard.append(session)
                continue
            self._end(session, 1001, "nothing was heard for too long")
        for first in range(0, len(heard), FLUSH_MANY):
            some = heard[first : first + FLUSH_MANY]
            found = await self.db.write(lambda tx, s=some: [_touched(tx, one) for one in s])  # type: ignore[misc]  # bound
            for session, host in zip(some, found, strict=True):
                over = _over(session, host)
                if over is not None:
                    self._end(session, *over)

    async def flush_one(self, session: Session) -> None:
        """Write down what this session heard, unless it is not its host's newest any more: then it ends."""
        over = _over(session, await self.db.write(lambda tx: _touched(tx, session)))
        if over is not None:
            self.closed(session)
            await session.close(*over)

    async def _flush_forever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
                await self.also_flush()
            except Exception:
                log.exception("when hosts were last heard could not be written down; the next time does")


async def _nothing() -> None:
    return None


def _over(session: Session, host: Host | None) -> tuple[int, str] | None:
    """Why this session may not go on."""
    if host is None or host.state is HostState.REVOKED:
        return link.CLOSE_REFUSED, "this host was revoked"
    if host.epoch != session.epoch:
        return link.CLOSE_SUPERSEDED, "a newer session of this host is connected"
    return None


def _desired(tx: Tx, host_id: HostId, now: int) -> tuple[int, tuple[orders.Desired, ...]]:
    host = hosts.find(tx, host_id)
    if host is None:
        return 0, ()
    return host_reports.desired_of(tx, host, now)


def _touched(tx: Tx, session: Session) -> Host | None:
    """The host, with what its session heard of it."""
    host = hosts.find(tx, session.host_id)
    if host is None or host.epoch != session.epoch or host.state is HostState.REVOKED:
        return host
    heard = replace(
        host,
        last_seen=max(host.last_seen or 0, session.heard_at),
        beat_s=session.beat_s,
        agent_status=session.agent_status or host.agent_status,
        metrics=session.metrics or host.metrics,
    )
    hosts.save(tx, host, heard)
    return heard
