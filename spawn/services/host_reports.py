"""What a host tells of its commands and rentals, written down; and what it is answered.

Invariant: a host changes nothing but its own commands and rentals, whatever ids it names; a command that ended stays as
it ended; a rental's ports and secrets go with it.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace
from spawn_ledger.tx import Tx
from spawn_schemas.ids import Entropy, HostId, RentalId, new_command_id
from spawn_schemas.inventory import Inventory
from spawn_schemas.link import StateSync
from spawn_schemas.orders import Ack, Command, Desired, DestroyInstance, Order, RentalReport, ResumeInstance

from spawn.domain import rentals as domain
from spawn.domain.hosts import LEASE_S, Host, HostState
from spawn.domain.rentals import ASKS, ENDED, FOREVER_S, CommandState, Issued, Rental
from spawn.store import hosts, rentals, secrets
from spawn.store.secrets import Vault

log = logging.getLogger(__name__)

RESULT_MAX: Final = 64 * 1024
"""Characters of each text of a command's result that are kept."""
_FIELDS_MAX: Final = 8
_INT_MAX: Final = 2**53
AGAIN_S: Final = 30
"""How old an order's last copy must be before it is sent again on the same link."""
_order: Final[msgspec.json.Decoder[Order]] = msgspec.json.Decoder(Order)
_STATES: Final = {
    "received": CommandState.RECEIVED,
    "accepted": CommandState.ACCEPTED,
    "progress": CommandState.ACCEPTED,
    "succeeded": CommandState.SUCCEEDED,
    "failed": CommandState.FAILED,
}
_RANK: Final = {state: rank for rank, state in enumerate(CommandState)}
_DESTROYS: Final = frozenset({"destroy_instance"})
_REACHED: Final = {"start_instance": "running", "resume_instance": "running", "stop_instance": "stopped"}


def issue(
    tx: Tx,
    command: Command,
    host_id: HostId,
    now: int,
    *,
    rental_id: str | None = None,
    sealed_by: Vault | None = None,
) -> Issued:
    """Write an order down; from now on its host is told until it says what came of it. `sealed_by`: it has secrets."""
    body = msgspec.json.encode(command.order).decode()
    if sealed_by is not None:
        sealed_by.put(tx, command.command_id, secrets.ORDER, body, now)
    issued = Issued(
        id=command.command_id,
        host_id=host_id,
        number=rentals.next_number(tx, host_id),
        rental_id=None if rental_id is None else RentalId(rental_id),
        kind=str(command.order.__struct_config__.tag),
        body=None if sealed_by is not None else body,
        expires_at=command.expires_at,
        created_at=now,
    )
    rentals.insert_command(tx, issued)
    return issued


def to_send(tx: Tx, vault: Vault, host_id: HostId, now: int, *, again_before: int) -> list[Command]:
    """The commands to put on the wire now: those that never were, and those last sent before `again_before`.

    They count as sent from here on, whatever becomes of the wire. One that expired before it was ever sent has failed.
    """
    commands: list[Command] = []
    for issued in rentals.open_commands(tx, host_id):
        if issued.state is CommandState.QUEUED and issued.expires_at <= now:
            _save(tx, vault, issued, _expired(issued, now))
            continue
        if issued.sent_at is not None and issued.sent_at >= again_before:
            continue
        body = issued.body or vault.find(tx, issued.id, secrets.ORDER)
        if body is None:
            log.error("the sealed order of command %s is not there: it is not sent", issued.id)
            continue
        state = CommandState.SENT if issued.state is CommandState.QUEUED else issued.state
        rentals.save_command(tx, issued, replace(issued, state=state, sent_at=now))
        commands.append(
            Command(command_id=issued.id, expires_at=issued.expires_at, order=_order.decode(body))
        )
    return commands


def _expired(issued: Issued, now: int) -> Issued:
    return replace(
        issued,
        state=CommandState.FAILED,
        problem_code="expired",
        problem="Its host was not there before the order expired.",
        finished_at=now,
    )


def acknowledged(tx: Tx, vault: Vault, host_id: HostId, ack: Ack, now: int) -> bool:
    """Write an acknowledgement down; answers whether it changed what is known. One of another host changes nothing."""
    issued = None if "\0" in ack.command_id else rentals.find_command(tx, ack.command_id)
    if issued is None or issued.host_id != host_id:
        log.warning("host %s acknowledged command %r, which is not its own", host_id, ack.command_id[:64])
        return False
    state = _STATES[ack.state]
    if issued.state in ENDED or _RANK[state] < _RANK[issued.state]:
        return False
    told, is_asked = _kept(ack), issued.kind in ASKS
    result = None if is_asked else told
    after = replace(
        issued,
        state=state,
        progress=issued.progress if ack.progress is None else _shown(ack.progress),
        problem_code=None if ack.problem is None else ack.problem.code,
        problem=None if ack.problem is None else _shown(ack.problem.message),
        result=result,
        finished_at=now if state in ENDED else None,
    )
    _save(tx, vault, issued, after)
    if is_asked and state is CommandState.SUCCEEDED:
        # It is the tenant's: it is told once it is asked for, and forgotten by the sweep.
        vault.put(tx, issued.id, secrets.RESULT, told or "{}", now)
    return True


def _shown(text: str) -> str:
    """What a host says, as it can be kept: PostgreSQL takes no NUL (its manual, section 8.3)."""
    return text.replace("\0", "")[:1000]


def _save(tx: Tx, vault: Vault, before: Issued, after: Issued) -> None:
    rentals.save_command(tx, before, after)
    if after.finished_at is None:
        return
    if after.body is None:
        vault.erase(tx, after.id)
    rental = None if after.rental_id is None else rentals.find(tx, after.rental_id)
    if rental is None or rental.gone_at is not None:
        return
    if after.kind == "destroy_instance" and after.state is CommandState.SUCCEEDED:
        gone(tx, rental, after.finished_at)
    elif after.state is CommandState.SUCCEEDED and after.kind in _REACHED:
        why = "command" if after.kind == "stop_instance" else None
        reached = replace(rental, reported=_REACHED[after.kind], reported_at=after.finished_at, ended_by=why)
        rentals.save(tx, rental, reached)
    elif after.kind == "start_instance":
        rentals.save(tx, rental, replace(rental, reported="failed", reported_at=after.finished_at))
    elif after.state is CommandState.FAILED:
        _undo(tx, rental, after.kind)


def _undo(tx: Tx, rental: Rental, kind: str) -> None:
    """What was ordered did not happen: it is not wanted any more, either, and its host is told so."""
    desired = rental.desired
    if kind == "stop_instance" and desired is domain.Desired.STOPPED:
        desired = domain.Desired.RUNNING
    if kind == "resume_instance" and desired is domain.Desired.RUNNING and rental.ended_by == "command":
        desired = domain.Desired.STOPPED
    if desired is not rental.desired:
        rentals.save(tx, rental, replace(rental, desired=desired))
        hosts.raise_desired(tx, rental.host_id)


def _kept(ack: Ack) -> str | None:
    """The result as JSON, of bounded length whatever the host says."""
    if ack.result is None:
        return None
    fields = list(ack.result.items())[:_FIELDS_MAX]
    return msgspec.json.encode({name[:64]: _bounded(value) for name, value in fields}).decode()


def _bounded(value: str | int | None) -> str | int | None:
    if isinstance(value, str):
        return value[:RESULT_MAX]
    return None if value is None or abs(value) > _INT_MAX else value


def gone(tx: Tx, rental: Rental, now: int, *, but: frozenset[str] = frozenset()) -> None:
    """The host has it no more: its ports rest, and what was ordered for it is over, `but` orders of these kinds."""
    rentals.save(tx, rental, replace(rental, reported="gone", reported_at=now, gone_at=now))
    tx.execute(rentals.FREE_PORTS, {"rental_id": rental.id, "now": now})
    for issued in rentals.open_of_rental(tx, rental.id):
        if issued.kind in but:
            continue
        ended = replace(issued, state=CommandState.WITHDRAWN, finished_at=now)
        rentals.save_command(tx, issued, ended)
        tx.execute(secrets.DELETE_ALL_SEALED, {"owner": issued.id})
    hosts.raise_desired(tx, rental.host_id)


def synced(
    tx: Tx,
    entropy: Entropy,
    host: Host,
    reports: Iterable[RentalReport],
    inventory: Inventory | None,
    agent_status: str,
    now: int,
) -> None:
    """Write down all that the host says it has. What is not its own is not even looked up, however much it names."""
    own = {rental.id: rental for rental in rentals.of_host(tx, host.id)}
    told = {each.rental_id: each for each in reports if _is_of(own.get(each.rental_id), each)}
    for rental_id, report in told.items():
        rental = own[rental_id]
        start = rentals.find_command(tx, rental.start_command)
        started = start is not None and start.state is CommandState.SUCCEEDED
        after = domain.reported(rental, report, started=started, now=now)
        if after.gone_at is not None and rental.gone_at is None:
            _lost(tx, entropy, rental, now)
            continue
        rentals.save(tx, rental, after)
        is_news = (after.reported, after.ended_by) != (rental.reported, rental.ended_by)
        if is_news and domain.must_resume(after) and not rentals.under_way(tx, rental.id):
            _resume(tx, entropy, after, now)
    seen = replace(
        host,
        agent_status=agent_status,
        inventory=host.inventory if inventory is None else msgspec.json.encode(inventory).decode(),
    )
    hosts.save(tx, host, seen)


def _is_of(rental: Rental | None, report: RentalReport) -> bool:
    return rental is not None and rental.generation == report.generation


def _lost(tx: Tx, entropy: Entropy, rental: Rental, now: int) -> None:
    """Its container is gone and was not destroyed: somebody removed it by hand, or a disk broke.

    What else there is of it is still its host's to remove: the disk is the tenant's, and would lie there for ever.
    """
    gone(tx, rental, now, but=_DESTROYS)
    if any(issued.kind in _DESTROYS for issued in rentals.open_of_rental(tx, rental.id)):
        return
    order = DestroyInstance(rental_id=rental.id, generation=rental.generation)
    command = Command(command_id=new_command_id(entropy), expires_at=now + FOREVER_S, order=order)
    issue(tx, command, rental.host_id, now, rental_id=rental.id)


def _resume(tx: Tx, entropy: Entropy, rental: Rental, now: int) -> None:
    """Its host did not hear us until the lease ended: it is paid for, and runs again."""
    order = ResumeInstance(rental_id=rental.id, generation=rental.generation, lease_expires_at=now + LEASE_S)
    command = Command(command_id=new_command_id(entropy), expires_at=now + LEASE_S, order=order)
    issue(tx, command, rental.host_id, now, rental_id=rental.id)


def synced_by(
    tx: Tx, entropy: Entropy, host_id: HostId, frame: StateSync, agent_status: str, now: int
) -> None:
    """Write down a host's state, unless it was revoked meanwhile, or has logged in anew and may have said more."""
    host = hosts.find(tx, host_id)
    if host is not None and host.state is not HostState.REVOKED and host.epoch == frame.session_epoch:
        synced(tx, entropy, host, frame.rentals, frame.inventory, agent_status, now)


def desired_of(tx: Tx, host: Host, now: int) -> tuple[int, tuple[Desired, ...]]:
    """What is wanted of the host, and the number of that wish; each lease is renewed.

    What is to be destroyed is not in it, nor what was not started yet.
    """
    wanted: list[Desired] = []
    for rental in rentals.of_host(tx, host.id):
        start = rentals.find_command(tx, rental.start_command)
        if rental.desired is domain.Desired.GONE or start is None or start.state is CommandState.QUEUED:
            continue
        leased = replace(rental, lease_until=max(rental.lease_until, now + LEASE_S))
        rentals.save(tx, rental, leased)
        wanted.append(
            Desired(
                rental_id=rental.id,
                generation=rental.generation,
                state="running" if rental.desired is domain.Desired.RUNNING else "stopped",
                lease_expires_at=leased.lease_until,
            )
        )
    return host.desired_generation, tuple(wanted)


def acknowledge_all(tx: Tx, vault: Vault, host_id: HostId, acks: Sequence[Ack], now: int) -> None:
    for ack in acks:
        acknowledged(tx, vault, host_id, ack, now)
