"""What the oracle of bars says of a barred wallet's server that goes on running."""

from typing import Any, Final, cast

import pytest

from tests.sim.made_up_books import SERVER, T0, WALLET, Stub, Wrong
from tests.sim.oracle.bars import Bars
from tests.sim.oracle.part import Changes, Row
from tests.sim.world import World


class Town(Stub):
    """Books in which one server runs, and no operation does."""

    def rows(self, sql: str, **params: Any) -> list[Row]:
        if "status = 'running'" in sql:
            return [{"id": SERVER}]
        return [{"n": 1}] if "COUNT" in sql else []


TOLD: Final = {"seq": 1, "wallet": WALLET, "type": "wallet.suspended", "resource": WALLET, "at": T0}


def _bar(operations: dict[Any, Row | None]) -> None:
    account: Row = {"id": f"wallet:{WALLET}", "barred": "suspended"}
    rows: dict[str, dict[Any, Row | None]] = {"account": {account["id"]: account}, "operation": operations}
    Bars(cast("World", Town())).committed(Changes(events=[TOLD], rows=rows))


def test_a_server_on_which_nothing_runs_is_to_be_ordered_off() -> None:
    with pytest.raises(Wrong, match="not even ordered off"):
        _bar({})


def test_what_ended_in_the_commit_of_the_bar_was_still_under_way_when_it_came() -> None:
    """docs/sim-findings.md, 23."""
    _bar({"act_1": {"id": "act_1", "server_id": SERVER, "wallet": WALLET, "status": "success"}})
