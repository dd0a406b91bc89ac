"""What the machines looked like when last seen, so that following many of them costs few calls.

Invariant: what was seen before our own last change to a machine is never served again. Absence is believed of a look at
the machine itself, never of a list, which may lag; and a machine once seen gone stays gone.
"""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from spawn_schemas.ids import ServerId

from spawn_providers.base import InstanceStatus, Refused, RefusedCode, Unavailable
from spawn_providers.hetzner.budget import Priority
from spawn_providers.hetzner.calls import Calls, Params
from spawn_providers.hetzner.names import ID_LABEL
from spawn_providers.hetzner.wire import OneServer, Server, ServerPage, instance_of

K = TypeVar("K")
V = TypeVar("V")

PAGE: Final = 50
"""The most that Hetzner puts on a page."""
_FRESH_S: Final = 3.0
_RESTING_S: Final = 30.0
"""How long a look at a machine serves that nothing of ours is happening to."""
_SETTLING_S: Final = 900.0
_FORGOTTEN_AFTER: Final = 10_000
_RESTING: Final = frozenset({InstanceStatus.RUNNING, InstanceStatus.OFF})


def heard(task: asyncio.Task[object]) -> None:
    """Its error belongs to whoever still waits for it, if anybody does."""
    if not task.cancelled():
        task.exception()


class _Seen(msgspec.Struct, kw_only=True):
    server: Server
    at: float
    clean: bool


class States:
    """The project's machines that carry our label. Used on the event loop only."""

    def __init__(self, calls: Calls, *, now: Callable[[], float]) -> None:
        self._calls = calls
        self._now = now
        self._seen: dict[str, _Seen] = {}
        self._refs: dict[str, str] = {}
        self._changed: dict[str, tuple[int, float]] = {}
        self._gone: dict[str, None] = {}
        self._ended: dict[int, None] = {}
        self._looks = 0
        self._sweeping: asyncio.Task[list[Server]] | None = None

    async def aclose(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)

    def saw(self, server: Server) -> None:
        """A change was answered with the machine itself."""
        self._put(server, self._changes(str(server.id)))

    def changing(self, ref: str) -> None:
        """We are about to change it, or did, or it ended changing: what was seen of it is history."""
        number, _ = self._changed.pop(ref, (0, 0.0))
        _remember(self._changed, ref, (number + 1, self._now()))
        if ref in self._seen:
            self._seen[ref].clean = False

    def ended(self, ref: str, actions: tuple[int, ...]) -> None:
        """These actions of it were seen to have ended: once each, that is a change."""
        new = [id_ for id_ in actions if id_ not in self._ended]
        for id_ in new:
            _remember(self._ended, id_, None)
        if new:
            self.changing(ref)

    async def get(self, ref: str) -> Server | None:
        """The machine as it is, or was a moment ago. Raises `ProviderError`."""
        if not ref.isdecimal() or ref in self._gone:
            return None
        seen = self._seen.get(ref)
        if seen is not None and seen.clean and self._now() - seen.at <= self._fresh_s(ref, seen):
            return seen.server
        if seen is not None and self._looks > 1 + len(self._seen) // PAGE:
            await self._sweep_together()
            seen = self._seen.get(ref)
            if seen is not None and seen.clean and self._now() - seen.at <= _FRESH_S:
                return seen.server
        return await self._look_within_budget(ref, seen)

    def last_seen(self, ref: str) -> Server | None:
        """The machine as we saw it last, however long ago; None where nothing is remembered of it."""
        seen = self._seen.get(ref)
        return None if seen is None else seen.server

    async def look(self, ref: str, priority: Priority) -> Server | None:
        """Ask for this one machine now."""
        changes = self._changes(ref)
        self._looks += 1
        try:
            answer = await self._calls.get(f"/servers/{ref}", OneServer, priority)
        except Refused as refusal:
            if refusal.code is not RefusedCode.NOT_FOUND:
                raise
            self.forget(ref)
            return None
        finally:
            self._looks -= 1
        self._put(answer.server, changes)
        return answer.server

    async def find(self, key: ServerId, name: str, priority: Priority) -> Server | None:
        """The machine made for `key`: by its name, and by its number if the list does not show it yet.

        Raises `Refused(conflict)` where a machine that is not ours has the name.
        """
        page = await self._calls.get("/servers", ServerPage, priority, {"name": name})
        for server in page.servers:
            if str(server.id) in self._gone:
                continue
            if server.labels.get(ID_LABEL) != key:
                raise Refused(
                    RefusedCode.CONFLICT, f"a server named {name} is not ours: rename it in Hetzner's console"
                )
            if not self._is_newer(server):
                return self._listed(server)
            if priority is Priority.DESTROY:
                return await self.look(str(server.id), priority)
            return await self.get(str(server.id))
        ref = self._refs.get(key)
        return None if ref is None or ref in self._gone else await self.look(ref, priority)

    async def sweep(self) -> list[Server]:
        """Every machine that carries our label, page by page, and those that only we know of."""
        found: dict[str, Server] = {}
        asked = {ref: self._changes(ref) for ref in self._seen}
        page: int | None = 1
        while page is not None:
            params: Params = {"label_selector": ID_LABEL, "sort": "id:asc", "per_page": PAGE, "page": page}
            answer = await self._calls.get("/servers", ServerPage, Priority.RECONCILE, params)
            for server in answer.servers:
                ref = str(server.id)
                if ref in self._gone:
                    continue
                self._put(server, asked.get(ref, self._changes(ref)))
                found[ref] = server
            page = answer.meta.pagination.next_page
        for ref in sorted(asked.keys() - found.keys()):
            unlisted = await self.look(ref, Priority.RECONCILE)
            if unlisted is not None and ID_LABEL in unlisted.labels:
                found[ref] = unlisted
        return list(found.values())

    def forget(self, ref: str) -> None:
        """It is gone; Hetzner gives no number twice."""
        _remember(self._gone, ref, None)
        seen = self._seen.pop(ref, None)
        if seen is not None:
            self._refs.pop(seen.server.labels.get(ID_LABEL, ""), None)

    async def _look_within_budget(self, ref: str, seen: _Seen | None) -> Server | None:
        """An older look is better than none where the calls have run low and we changed nothing since."""
        if seen is None or not seen.clean:
            return await self.look(ref, Priority.CREATE)
        try:
            return await self.look(ref, Priority.POLL)
        except Unavailable:
            return seen.server

    async def _sweep_together(self) -> None:
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.create_task(self.sweep(), name="hetzner sweep")
            self._sweeping.add_done_callback(heard)
        try:
            await asyncio.shield(self._sweeping)
        except Unavailable:
            return  # whoever needs its machine asks for it alone

    def _fresh_s(self, ref: str, seen: _Seen) -> float:
        _, changed_at = self._changed.get(ref, (0, -_SETTLING_S))
        settled = self._now() - changed_at >= _SETTLING_S
        return _RESTING_S if settled and instance_of(seen.server).status in _RESTING else _FRESH_S

    def _changes(self, ref: str) -> int:
        return self._changed.get(ref, (0, 0.0))[0]

    def _is_newer(self, listed: Server) -> bool:
        """Whether what we know of it may be newer than a list: lists may lag behind."""
        return str(listed.id) in self._seen

    def _listed(self, server: Server) -> Server:
        self._put(server, self._changes(str(server.id)))
        return server

    def _put(self, server: Server, changes: int) -> None:
        ref = str(server.id)
        if ref in self._gone:
            return
        self._seen[ref] = _Seen(server=server, at=self._now(), clean=changes == self._changes(ref))
        if ID_LABEL in server.labels:
            self._refs[server.labels[ID_LABEL]] = ref


def _remember(memory: dict[K, V], key: K, value: V) -> None:
    """Keep it, and let the oldest go: enough that what is forgotten matters to nobody."""
    memory[key] = value
    if len(memory) > _FORGOTTEN_AFTER:
        del memory[next(iter(memory))]
