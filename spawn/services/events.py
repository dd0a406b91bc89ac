"""What happens to a wallet's things, told to its owner.

Invariant: an event is part of the transaction of what it tells of: neither is there without the other.
"""

from typing import Final

import msgspec
from spawn_ledger.tx import Tx
from spawn_schemas.events import EventData, EventType
from spawn_schemas.ids import Address

from spawn.store import events as rows

_encoder: Final = msgspec.json.Encoder()


def emit(
    tx: Tx,
    wallet: Address,
    type: EventType,
    data: EventData,
    *,
    resource: str,
    at: int,
    cause: str | None = None,
) -> bool:
    """Tell the wallet's owner, and the webhooks that want it; False when what has this `cause` was told before.

    `resource` is what it happened to: webhooks hear of one resource in this order. `at` is now, in unix seconds.
    """
    seq = rows.insert_event(
        tx,
        wallet=wallet,
        type=type.value,
        resource=resource,
        cause=cause,
        at=at,
        data=_encoder.encode(data).decode(),
    )
    if seq is None:
        return False
    rows.insert_deliveries(tx, seq, wallet=wallet, type=type.value, resource=resource, now=at)
    return True
