"""A server's new state, written back together with what its owner hears of it.

Invariant: no server changes its status in our books without an event of that in the same transaction.
"""

from typing import Final

from spawn_ledger.tx import Tx
from spawn_schemas.events import EventType, OperationData, ServerData
from spawn_schemas.lent import StoppedBy

from spawn.domain.operations import Operation, OperationStatus
from spawn.domain.rentals import stopped_by
from spawn.domain.servers import Server, Status
from spawn.services.events import emit
from spawn.store import rentals
from spawn.store import servers as rows

_TOLD: Final = {
    Status.RUNNING: EventType.SERVER_RUNNING,
    Status.OFF: EventType.SERVER_OFF,
    Status.DESTROYING: EventType.SERVER_DESTROYING,
    Status.DESTROYED: EventType.SERVER_DESTROYED,
    Status.FAILED: EventType.SERVER_FAILED,
}
"""The states that a server comes to stay in, or that end it; those on the way there are the operation's."""

_SAYS_WHY: Final = frozenset({EventType.SERVER_OFF, EventType.SERVER_UNREACHABLE})


def save(tx: Tx, before: Server, after: Server, now: int) -> None:
    """Write `after` back, where it differs, and tell of a status that is news. Raises if the meter moved meanwhile."""
    if after == before:
        return
    rows.update_server(tx, before, after)
    told = _TOLD.get(after.status)
    if told is not None and after.status is not before.status:
        tell(tx, told, after, now, previous=before.status)


def tell(tx: Tx, type: EventType, server: Server, now: int, *, previous: Status | None = None) -> None:
    """Tell the owner what happened to the server; `previous` is the state it left, if it left one."""
    data = ServerData(
        server=server.id,
        name=server.name,
        type=server.type,
        status=server.status.value,
        previous=(previous or server.status).value,
        reason=None if server.reason is None else server.reason.value,
        ipv4=server.ipv4,
        ipv6=server.ipv6,
        stopped_by=_stopped_by(tx, server) if type in _SAYS_WHY else None,
    )
    emit(tx, server.wallet, type, data, resource=server.id, at=now)


def _stopped_by(tx: Tx, server: Server) -> StoppedBy | None:
    rental = rentals.find(tx, server.id) if server.host_id is not None else None
    return None if rental is None else stopped_by(rental)


def tell_ended(tx: Tx, operation: Operation, now: int) -> None:
    """Tell the owner how the operation ended."""
    done = operation.status is OperationStatus.SUCCESS
    emit(
        tx,
        operation.wallet,
        EventType.OPERATION_SUCCEEDED if done else EventType.OPERATION_FAILED,
        OperationData(
            action=operation.id,
            server=operation.server_id,
            command=operation.command.value,
            code=operation.error_code,
            message=operation.error_message,
        ),
        resource=operation.server_id,
        at=now,
    )
