"""What the oracle of traffic says of a look that was counted."""

from types import SimpleNamespace
from typing import Any, Final, cast

import pytest

from tests.sim.made_up_books import SERVER, T0, Stub, Wrong, metered, server_row
from tests.sim.oracle.overage import INCLUDED, LISTED_USDC, Overage
from tests.sim.oracle.part import Changes, Row
from tests.sim.world import World

REF: Final = "10000001"
SENT: Final = 38_478_048
SOLD: Final[Row] = {"location": "nbg1", "tb_usdc": LISTED_USDC, "traffic_owed_usdc": 0}


class Town(Stub):
    """A cloud whose one machine has shown one counter, and books in which its server is ordered."""

    def __init__(self) -> None:
        super().__init__()
        senders = SimpleNamespace(shown={REF: [(0, SENT)]}, sent={REF: SENT})
        self.cloud = SimpleNamespace(senders=senders)
        self.oracle = Overage(cast("World", self))
        self.commit(server_row(provider_ref=None, **SOLD))

    def commit(self, server: Row, outgoing_bytes: int | None = None) -> None:
        tables: dict[str, dict[Any, Row | None]] = {"server": {SERVER: server}}
        if outgoing_bytes is not None:
            tables["traffic"] = {SERVER: looked(outgoing_bytes)}
        self.oracle.committed(Changes(rows=tables))


def looked(outgoing_bytes: int) -> Row:
    """The row of a first look, well within what is included."""
    return {
        "server_id": SERVER,
        "month": "2026-03",
        "last_ingoing": 0,
        "last_outgoing": outgoing_bytes,
        "outgoing_bytes": outgoing_bytes,
        "included_bytes": INCLUDED,
        "billed_bytes": 0,
        "charged_usdc": 0,
        "remainder": 0,
    }


def accepted() -> Row:
    return metered(T0, provider_ref=REF, **SOLD)


def test_a_machine_may_be_accepted_and_looked_at_in_one_commit() -> None:
    """docs/sim-findings.md, 29."""
    Town().commit(accepted(), SENT)


def test_what_no_look_has_shown_is_found() -> None:
    town = Town()
    town.commit(accepted())
    with pytest.raises(Wrong, match="no look has shown that"):
        town.commit(accepted(), SENT - 1)


def test_a_machine_that_is_not_accepted_has_no_traffic() -> None:
    with pytest.raises(Wrong, match="no look has shown that"):
        Town().commit(server_row(provider_ref=None, **SOLD), SENT)
