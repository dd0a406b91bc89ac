"""The `traffic` table: what was counted of a server's traffic, and what of that was paid and cost us.

Invariant: a row moves in the transaction that books what its counters came to, so that a reading counts once.
"""

from typing import Final

import msgspec
from msgspec.structs import asdict
from spawn_ledger.tx import Tx
from spawn_schemas.ids import ServerId
from spawn_schemas.money import Usdc

from spawn.domain.traffic import Counted

_COLUMNS: Final = Counted.__struct_fields__

SELECT_TRAFFIC: Final = "SELECT * FROM traffic WHERE server_id = :server_id"
UPSERT_TRAFFIC: Final = """
INSERT INTO traffic (
  server_id, last_ingoing, last_outgoing, fallen_at, month, ingoing_bytes, outgoing_bytes, included_bytes, billed_bytes,
  month_usdc, remainder, cost_remainder, charged_usdc, cost_usdc
) VALUES (
  :server_id, :last_ingoing, :last_outgoing, :fallen_at, :month, :ingoing_bytes, :outgoing_bytes, :included_bytes,
  :billed_bytes, :month_usdc, :remainder, :cost_remainder, :charged_usdc, :cost_usdc
) ON CONFLICT (server_id) DO UPDATE SET
  last_ingoing = excluded.last_ingoing, last_outgoing = excluded.last_outgoing, fallen_at = excluded.fallen_at,
  month = excluded.month, ingoing_bytes = excluded.ingoing_bytes, outgoing_bytes = excluded.outgoing_bytes,
  included_bytes = excluded.included_bytes, billed_bytes = excluded.billed_bytes, month_usdc = excluded.month_usdc,
  remainder = excluded.remainder, cost_remainder = excluded.cost_remainder, charged_usdc = excluded.charged_usdc,
  cost_usdc = excluded.cost_usdc
"""


class Metered(msgspec.Struct, frozen=True, kw_only=True):
    """`charged_usdc` was paid for the server's traffic in its life, and `cost_usdc` is what that costs us."""

    counted: Counted
    charged_usdc: Usdc = Usdc(0)
    cost_usdc: Usdc = Usdc(0)


def find(tx: Tx, server_id: ServerId) -> Metered | None:
    row = tx.one(SELECT_TRAFFIC, {"server_id": server_id})
    if row is None:
        return None
    return Metered(
        counted=Counted(**{name: row[name] for name in _COLUMNS}),
        charged_usdc=Usdc(row["charged_usdc"]),
        cost_usdc=Usdc(row["cost_usdc"]),
    )


def put(tx: Tx, server_id: ServerId, metered: Metered) -> None:
    tx.execute(
        UPSERT_TRAFFIC,
        {
            "server_id": server_id,
            "charged_usdc": metered.charged_usdc,
            "cost_usdc": metered.cost_usdc,
            **asdict(metered.counted),
        },
    )
