"""One poller of actions for the whole process: many ops asked about cost one call for every 25 of their actions.

Invariant: an action that has ended is never asked about again, and one that has not at most once in an interval that
grows with their number, so that polling alone never uses up the refill.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from spawn_providers.base import OpStatus, ProviderError, Unavailable
from spawn_providers.hetzner.budget import Priority
from spawn_providers.hetzner.calls import Calls, Params
from spawn_providers.hetzner.states import PAGE, heard
from spawn_providers.hetzner.wire import Action, ActionList, ActionPage

BATCH: Final = 25
_INTERVAL_S: Final = 3.0
_REMEMBERED: Final = 10_000


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    action: Action | None
    at: float

    @property
    def running(self) -> bool:
        return self.action is not None and self.action.status is OpStatus.RUNNING


class Poller:
    """What is known of actions. Used on the event loop only."""

    def __init__(self, calls: Calls, *, now: Callable[[], float]) -> None:
        self._calls = calls
        self._now = now
        self._known: dict[int, _Known] = {}
        self._running: set[int] = set()
        self._wanted: dict[int, None] = {}
        self._round: asyncio.Task[None] | None = None

    async def aclose(self) -> None:
        if self._round is not None:
            self._round.cancel()
            await asyncio.gather(self._round, return_exceptions=True)

    async def states(self, ids: Iterable[int]) -> Mapping[int, Action | None]:
        """The actions as last known, None for those that Hetzner does not know. Raises `ProviderError`.

        Where the budget for polls is used up, what was known before is still true enough.
        """
        asked = tuple(ids)
        due = {id_ for id_ in asked if self._is_due(id_)}
        try:
            while due:
                self._wanted.update(dict.fromkeys(due))
                if self._round is None or self._round.done():
                    self._round = asyncio.create_task(self._ask(), name="hetzner poll")
                    self._round.add_done_callback(heard)
                await asyncio.shield(self._round)
                due = {id_ for id_ in due if self._is_due(id_)}
        except Unavailable:
            if any(id_ not in self._known for id_ in asked):
                raise
        return {id_: self._known[id_].action for id_ in asked}

    async def of_machine(self, ref: str, priority: Priority, **only: str) -> Sequence[Action]:
        """A machine's actions, the oldest first; its first page, which has its beginning. Raises `ProviderError`."""
        params: Params = {"sort": "id:asc", "per_page": PAGE, **only}
        page = await self._calls.get(f"/servers/{ref}/actions", ActionPage, priority, params)
        return page.actions

    def started(self, actions: Iterable[Action | None]) -> None:
        """Actions that an answer has just told us of."""
        self._learn(action for action in actions if action is not None)

    def _is_due(self, id_: int) -> bool:
        known = self._known.get(id_)
        if known is None:
            return True
        interval_s = _INTERVAL_S * max(1, math.ceil(len(self._running) / BATCH))
        return known.running and self._now() - known.at >= interval_s

    async def _ask(self) -> None:
        """One call: who waits first, and room that is left for those whose turn comes next."""
        await asyncio.sleep(0)  # who asks in the same turn of the loop travels along
        others = sorted(self._running - self._wanted.keys(), key=lambda id_: (self._known[id_].at, id_))
        batch = tuple([*self._wanted, *others][:BATCH])
        try:
            answer = await self._calls.get(
                "/actions", ActionList, Priority.POLL, {"id": batch, "per_page": BATCH}
            )
        except ProviderError:
            self._wanted.clear()  # they all hear of it, and ask again when they like
            raise
        for id_ in batch:
            self._wanted.pop(id_, None)
        found = {action.id: action for action in answer.actions}
        self._learn(found.values())
        for id_ in batch:
            if id_ not in found:
                self._running.discard(id_)
                self._known[id_] = _Known(action=None, at=self._now())

    def _learn(self, actions: Iterable[Action]) -> None:
        for action in actions:
            self._known.pop(action.id, None)
            self._known[action.id] = _Known(action=action, at=self._now())
            if action.status is OpStatus.RUNNING:
                self._running.add(action.id)
            else:
                self._running.discard(action.id)
        while len(self._known) > _REMEMBERED:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._running.discard(oldest)
