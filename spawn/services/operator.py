"""Carries operations out: claim, ask the provider with no transaction open, record what came of it.

Invariant: whatever instant the process dies at, the row says what the next start must do; an outcome is recorded
only under the claim that asked for it, together with the money it moves.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from msgspec.structs import replace
from spawn_ledger.tx import Tx
from spawn_providers.base import Provider, ProviderError
from spawn_schemas.ids import ActionId, Entropy

from spawn.clock import Clock
from spawn.domain.operations import (
    Create,
    Operation,
    OperationStatus,
    Phase,
)
from spawn.domain.servers import FINAL, Status
from spawn.services.billing import Billing
from spawn.services.boots import Boots
from spawn.services.outcomes import Outcomes
from spawn.services.provider_calls import (
    Accepted,
    Outcome,
    TryLater,
    Waiting,
    Work,
    ask,
)
from spawn.services.signals import Signals
from spawn.store import operations as rows
from spawn.store import servers
from spawn.store.database import Database
from spawn.store.secrets import Vault

log = logging.getLogger(__name__)

CLAIM_S = 60
"""How long a claim lasts; longer than a provider call may take, so that it ends only with its holder."""


class Operator:
    """Runs operations, any number of them, each by one claim holder at a time."""

    def __init__(
        self,
        db: Database,
        providers: Mapping[str, Provider],
        clock: Clock,
        entropy: Entropy,
        vault: Vault,
        signals: Signals,
        billing: Billing,
        boots: Boots,
    ) -> None:
        self._db = db
        self._providers = providers
        self._clock = clock
        self._entropy = entropy
        self._boots = boots
        self._signals = signals
        self._outcomes = Outcomes(entropy, vault, billing)
        self._tasks: dict[ActionId, asyncio.Task[None]] = {}

    def kick(self, action_id: ActionId) -> None:
        """Start carrying the operation out, unless this process already is."""
        if action_id not in self._tasks:
            task = asyncio.create_task(self._guarded(action_id), name=f"operation {action_id}")
            self._tasks[action_id] = task
            task.add_done_callback(lambda _: self._tasks.pop(action_id, None))

    async def idle(self) -> None:
        """Wait for what `kick` has started."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    async def stop(self) -> None:
        """Cancel what is under way; the rows say where the next start goes on."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def first_answer(self, action_id: ActionId, timeout_s: float) -> Operation:
        """Wait until the provider has said yes or no, at most `timeout_s`; answers where the operation is."""
        return await self._wait(action_id, lambda o: o.answered, timeout_s)

    async def finished(self, action_id: ActionId, timeout_s: float) -> Operation:
        """Wait until the operation has ended, at most `timeout_s`; answers where it is. Raises `not_found`."""
        return await self._wait(action_id, lambda o: o.status is not OperationStatus.RUNNING, timeout_s)

    async def _wait(
        self, action_id: ActionId, done: Callable[[Operation], bool], timeout_s: float
    ) -> Operation:
        async def read() -> Operation:
            found = await self._db.read(rows.SELECT_OPERATION, {"id": action_id})
            if not found:
                raise rows.unknown_action(action_id)
            return rows.operation_from(found[0])

        return await self._signals.wait_until(action_id, read, done, timeout_s=timeout_s)

    async def _guarded(self, action_id: ActionId) -> None:
        try:
            while await self.advance(action_id):
                pass
        except Exception:
            # The claim runs out and the next tick tries again; nothing about the operation is lost.
            log.exception("operation %s stumbled", action_id)

    async def advance(self, action_id: ActionId) -> bool:
        """Take one step; True when the next can be taken at once."""
        now = self._clock.now_s()
        token = f"claim-{self._entropy.bytes(8).hex()}"
        work = await self._db.write(lambda tx: self._claim(tx, action_id, token, now))
        if work is None:
            return False
        provider = self._providers[work.server.provider]
        outcome = await ask(provider, work, now)
        recorded = await self._db.write(
            lambda tx: self._outcomes.record(tx, work, token, outcome, self._clock.now_s())
        )
        self._signals.notify(action_id)
        if recorded is None:
            await self._undo_late_create(provider, work, outcome)
            return False
        if recorded.status is not OperationStatus.RUNNING:
            return False
        return recorded.next_at <= self._clock.now_s() and not isinstance(outcome, Waiting | TryLater)

    async def _undo_late_create(self, provider: Provider, work: Work, outcome: Outcome) -> None:
        """An order that was superseded while it was on its way: its machine belongs to nobody.

        A claim that was lost to another worker is no such case: that worker finds the machine and goes on.
        """
        ordered = isinstance(outcome, Accepted) and isinstance(work.operation.current, Create)
        found = await self._db.read(servers.SELECT_SERVER, {"id": work.server.id}) if ordered else []
        if not found or servers.server_from(found[0]).status not in FINAL | {Status.DESTROYING}:
            return
        try:
            machine = await provider.find(work.server.id, to_destroy=True)
            if machine is not None:
                await provider.delete(machine.ref)
        except ProviderError as error:
            log.warning("the machine of superseded %s is left to the reconciler: %s", work.server.id, error)

    def _claim(self, tx: Tx, action_id: ActionId, token: str, now: int) -> Work | None:
        operation = rows.get_operation(tx, action_id)
        if operation.status is not OperationStatus.RUNNING:
            return None
        if operation.claim_until > now or operation.next_at > now:
            return None
        claimed = replace(
            operation,
            claim=token,
            claim_until=now + CLAIM_S,
            attempts=operation.attempts + 1,
            phase=Phase.SENT if operation.phase is Phase.QUEUED else operation.phase,
        )
        rows.update_operation(tx, operation, claimed)
        server = servers.get_server(tx, operation.server_id)
        user_data = self._boots.user_data(tx, server.id, operation.current)
        return Work(operation=operation, server=server, user_data=user_data)
