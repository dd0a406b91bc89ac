"""What an outcome does to our books: the operation moves on, and with it, in one transaction, the money and the server.

Invariant: an outcome is recorded only under the claim that asked for it; nothing here talks to a provider.
"""

import logging
from typing import assert_never

from msgspec.structs import replace
from spawn_ledger.accrual import DAY, reserve_for_same_runway
from spawn_ledger.transfers import Code as TransferCode
from spawn_ledger.transfers import transfer_id
from spawn_ledger.tx import Tx
from spawn_providers.base import Instance, Verb
from spawn_schemas.errors import Code
from spawn_schemas.events import EventType
from spawn_schemas.ids import Entropy, new_action_id
from spawn_schemas.money import Usdc

from spawn.domain.operations import (
    Act,
    Create,
    Delete,
    Operation,
    OperationStatus,
    Phase,
    Resized,
    deadline_at,
    destroy_plan,
    new_operation,
    with_reset_password,
)
from spawn.domain.servers import Command, Reason, Server, Status, status_of
from spawn.services import boots, funds, meters, places, traffic
from spawn.services.billing import Billing
from spawn.services.changes import save, tell, tell_ended
from spawn.services.provider_calls import (
    Accepted,
    Again,
    Failed,
    Force,
    Outcome,
    StepDone,
    TryLater,
    Waiting,
    Work,
)
from spawn.store import operations as rows
from spawn.store import secrets, servers
from spawn.store.secrets import Vault

log = logging.getLogger(__name__)

POLL_S = 1
BACKOFF_MAX_S = 300
LOCKED_RETRY_S = 5
"""How soon to try again to destroy a machine that its provider has locked for something else."""
FIRST_ATTEMPTS = 3
"""How often an unavailable provider is asked before a caller who still waits is told no."""


class Outcomes:
    """Writes down what became of a step."""

    def __init__(self, entropy: Entropy, vault: Vault, billing: Billing) -> None:
        self._entropy = entropy
        self._vault = vault
        self._billing = billing

    def record(self, tx: Tx, work: Work, token: str, outcome: Outcome, now: int) -> Operation | None:
        """Write down what the call came to, with its money. None when the claim was lost meanwhile."""
        operation = rows.get_operation(tx, work.operation.id)
        if operation.claim != token or operation.status is not OperationStatus.RUNNING:
            return None
        server = servers.get_server(tx, operation.server_id)
        was = replace(operation, phase=work.operation.phase)
        match outcome:
            case Accepted():
                after = self._accept(tx, was, server, outcome, now)
            case Waiting(instance=instance):
                if not isinstance(was.current, Delete):
                    _show(tx, server, instance, now)
                after = replace(was, next_at=now + POLL_S)
            case StepDone(instance=instance):
                after = self._step_done(tx, was, server, instance, now)
            case Force():
                plan = replace(was.plan, steps=_with_poweroff(was))
                after = replace(was, plan=plan, phase=Phase.QUEUED, handle=None, next_at=now)
            case Again(after_s=after_s):
                self._vault.erase_one(tx, server.id, secrets.ROOT_PASSWORD)
                after = replace(was, phase=Phase.QUEUED, handle=None, next_at=now + after_s)
            case TryLater():
                after = self._try_later(tx, was, server, outcome, now)
            case Failed():
                after = self._fail(tx, was, server, outcome, now)
            case unreachable:
                assert_never(unreachable)
        after = replace(after, claim=None, claim_until=0)
        # False when the outcome itself ended the operation: its server's money ran out in this very transaction.
        return after if rows.update_operation(tx, operation, after) else None

    def _accept(self, tx: Tx, operation: Operation, server: Server, yes: Accepted, now: int) -> Operation:
        funds.post_holds(tx, operation.id, TransferCode.FEE, now)
        match operation.current:
            case Create():
                funds.post_holds(tx, operation.id, TransferCode.DEPOSIT, now)
                server = places.found(tx, operation, server, yes.last_seen, now)
                ordered = replace(server, provider_ref=yes.ref)
                save(tx, server, ordered, now)
                self._billing.start(tx, ordered, now)
            case Act(verb=verb):
                if verb is Verb.REBUILD:
                    boots.began_rebuild(tx, operation)
                status = _STATUS_WHILE.get(verb)
                if status is not None:
                    save(tx, server, replace(server, status=status), now)
            case Delete():
                if yes.last_seen is not None and operation.command is Command.DESTROY:
                    traffic.last_seen(tx, server, yes.last_seen, now)
            case unreachable:
                assert_never(unreachable)
        if yes.root_password is not None:
            self._vault.put(tx, server.id, secrets.ROOT_PASSWORD, yes.root_password, now)
        # From now on it is the provider's time that passes, however long the way here was; but a password is not
        # reset for ever.
        resets = _is(operation, Verb.RESET_PASSWORD)
        return replace(
            operation,
            plan=with_reset_password(operation.plan) if yes.lost_password else operation.plan,
            phase=Phase.ACCEPTED,
            handle=yes.handle,
            accepted_at=now,
            answered=True,
            next_at=now + POLL_S,
            deadline_at=operation.deadline_at if resets else deadline_at(operation.command, now),
            attempts=0,
        )

    def _step_done(
        self, tx: Tx, operation: Operation, server: Server, instance: Instance | None, now: int
    ) -> Operation:
        server = _show(tx, server, instance, now)
        if operation.plan.image is not None and _is(operation, Verb.REBUILD):
            rebuilt = replace(server, image=operation.plan.image)
            save(tx, server, rebuilt, now)
            server = rebuilt
        if operation.plan.resized is not None and _is(operation, Verb.RESIZE):
            server = self._apply_resize(tx, operation, server, instance, now)
        funds.post_holds(tx, operation.id, TransferCode.FEE, now)
        if operation.step + 1 < len(operation.plan.steps):
            return replace(
                operation,
                step=operation.step + 1,
                phase=Phase.QUEUED,
                handle=None,
                answered=True,
                next_at=now,
            )
        return self._finish(tx, operation, server, now)

    def _finish(self, tx: Tx, operation: Operation, server: Server, now: int) -> Operation:
        plan = operation.plan
        done = server
        if plan.final is not None:
            done = meters.overrun(tx, done, now)
            done = replace(done, status=plan.final, ended_at=now, ipv4=None, ipv6=None)
            boots.forget(tx, server.id)
        save(tx, server, done, now)
        if plan.image is not None and operation.error_code is None:
            tell(tx, EventType.SERVER_REBUILT, done, now)
        finished = replace(
            operation,
            status=OperationStatus.SUCCESS if operation.error_code is None else OperationStatus.ERROR,
            error_message=None if operation.error_code is None else operation.error_message,
            answered=True,
            finished_at=now,
        )
        tell_ended(tx, finished, now)
        return finished

    def _apply_resize(
        self, tx: Tx, operation: Operation, server: Server, instance: Instance | None, now: int
    ) -> Server:
        """The machine has its new size: the old rate ends and the new one begins in this second."""
        resized = operation.plan.resized
        if resized is None:
            raise RuntimeError(f"{operation.id} resizes to nothing")
        self._billing.settle(tx, server.wallet, now, sparing=server.id)
        funds.post_holds(tx, operation.id, TransferCode.DEPOSIT, now)
        server = servers.get_server(tx, server.id)
        if server.exhausted_at is not None:
            # What was set aside for it pays what it owes by now, before it costs something else.
            self._billing.settle(tx, server.wallet, now)
            server = servers.get_server(tx, server.id)
        if server.charged_until is None:
            return server
        back = self._comes_back(server, resized, funds.reserve_usdc(tx, server.id))
        funds.withdraw(tx, server, back, id=transfer_id("resize", operation.id), at=now)
        larger = replace(
            server,
            type=resized.type,
            provider_type=resized.provider_type,
            cores=resized.cores,
            memory_gb=resized.memory_gb,
            disk_gb=server.disk_gb if instance is None else instance.disk_gb,
        )
        tell(tx, EventType.SERVER_RESIZED, larger, now)
        return self._billing.repin(tx, server, larger, resized.pin, now)

    def _comes_back(self, server: Server, resized: Resized, reserve_usdc: Usdc) -> Usdc:
        """What a smaller machine sets free: what its owner was told, unless the time that the provider took has cost
        so much at the old price that the server would then end sooner than it can be warned of.
        """
        last_usdc = resized.pin.daily_usdc * self._billing.policy.last_s // DAY + 1
        same_usdc = reserve_for_same_runway(reserve_usdc, server.daily_usdc, resized.pin.daily_usdc)
        kept = min(same_usdc, last_usdc)
        return Usdc(min(max(0, -resized.reserve_delta_usdc), max(0, reserve_usdc - kept)))

    def _try_later(
        self, tx: Tx, operation: Operation, server: Server, later: TryLater, now: int
    ) -> Operation:
        phase = operation.phase
        if phase is not Phase.ACCEPTED:
            phase = Phase.SENT if later.unknown else Phase.QUEUED
        destroying = isinstance(operation.current, Delete)
        tired = (
            operation.attempts >= FIRST_ATTEMPTS if not operation.answered else now >= operation.deadline_at
        )
        if tired and phase is Phase.QUEUED and not destroying:
            no = Failed(
                code=Code.HETZNER_UNAVAILABLE, message=f"The provider is unavailable: {later.message}"
            )
            return self._fail(tx, operation, server, no, now)
        wait_s = min(max(later.after_s, 2 ** min(operation.attempts - 1, 16)), BACKOFF_MAX_S)
        if operation.attempts < FIRST_ATTEMPTS and not operation.answered:
            wait_s = 1
        said = later.message if destroying else operation.error_message
        plan = operation.plan
        if later.unknown and isinstance(operation.current, Create):
            plan = replace(plan, lost_at=now)
        return replace(operation, plan=plan, phase=phase, next_at=now + wait_s, error_message=said)

    def _fail(self, tx: Tx, operation: Operation, server: Server, no: Failed, now: int) -> Operation:
        if isinstance(operation.current, Delete):
            wait_s = min(2 ** min(operation.attempts, 16), BACKOFF_MAX_S)
            if no.code is Code.CONFLICT:
                wait_s = min(wait_s, LOCKED_RETRY_S)
            log.warning("destroying %s failed, trying again in %s s: %s", server.id, wait_s, no.message)
            # Kept for operators (`services.incidents`); without a code it is no error of the operation's.
            return replace(
                operation, phase=Phase.SENT, handle=None, next_at=now + wait_s, error_message=no.message
            )
        message = no.message
        if _is(operation, Verb.RESET_PASSWORD):
            self._vault.erase_one(tx, server.id, secrets.ROOT_PASSWORD)
            message = f"It is rebuilt, but its root password was lost: rebuild it again. {message}"
        if operation.command is Command.CREATE and no.elsewhere:
            moved = places.elsewhere(tx, self._vault, operation, server, now)
            if moved is not None:
                return moved
            message = f"{message.rstrip('.')}. {operation.plan.sold_too}".strip()
        server = _show(tx, server, no.instance, now)
        funds.release_holds(tx, operation.id, now)
        failed = replace(operation, error_code=no.code.value, error_message=message)
        always_from = operation.plan.always_from
        if always_from is not None and operation.step < always_from and operation.answered:
            funds.refund_fee(tx, server.wallet, operation.id, now)
            return replace(failed, step=always_from, phase=Phase.QUEUED, handle=None, next_at=now)
        if operation.answered:
            funds.refund_fee(tx, server.wallet, operation.id, now)
        ended = replace(
            failed, status=OperationStatus.ERROR, answered=True, claim=None, claim_until=0, finished_at=now
        )
        tell_ended(tx, ended, now)
        if operation.command is Command.CREATE:
            self._fail_create(tx, ended, server, now)
        return ended

    def _fail_create(self, tx: Tx, ended: Operation, server: Server, now: int) -> None:
        """Give everything back, what its owner added meanwhile too; where the provider had begun, order its half-made
        machine destroyed.
        """
        boots.forget(tx, server.id)
        closed = meters.reverse(tx, server, now)
        if server.provider_ref is None:
            failed = replace(closed, status=Status.FAILED, reason=Reason.PROVIDER_REFUSED, ended_at=now)
            save(tx, server, failed, now)
            return
        save(tx, server, replace(closed, status=Status.DESTROYING, reason=Reason.PROVIDER_REFUSED), now)
        # The slot of the one running operation must be free before the next one takes it.
        rows.end_operation(tx, ended)
        cleanup = new_operation(
            new_action_id(self._entropy), server, Command.DESTROY, destroy_plan(final=Status.FAILED), now
        )
        rows.insert_operation(tx, cleanup)


_STATUS_WHILE = {
    Verb.START: Status.INITIALIZING,
    Verb.SHUTDOWN: Status.STOPPING,
    Verb.POWEROFF: Status.STOPPING,
    Verb.RESIZE: Status.MIGRATING,
    Verb.REBUILD: Status.REBUILDING,
}


def _is(operation: Operation, verb: Verb) -> bool:
    step = operation.current
    return isinstance(step, Act) and step.verb is verb


def _with_poweroff(operation: Operation) -> tuple[Create | Act | Delete, ...]:
    steps = list(operation.plan.steps)
    step = steps[operation.step]
    if isinstance(step, Act):
        steps[operation.step] = replace(step, verb=Verb.POWEROFF, force_after_s=None)
    return tuple(steps)


def _show(tx: Tx, server: Server, instance: Instance | None, now: int) -> Server:
    """Cache what the provider shows, so that reads cost it no call."""
    if instance is None or server.status is Status.DESTROYING:
        return server
    seen = replace(
        server,
        status=status_of(instance.status),
        ipv4=instance.ipv4,
        ipv6=instance.ipv6,
        disk_gb=instance.disk_gb,
        missing_since=None,
    )
    save(tx, server, seen, now)
    return seen
