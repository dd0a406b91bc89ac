"""What the oracle of warnings says of a server's owner, who is told of the same time twice."""

import json
from dataclasses import dataclass
from typing import Final, cast

import pytest

from tests.sim.made_up_books import SERVER, T0, WALLET, Stub, Wrong, metered
from tests.sim.oracle.part import Changes, Row
from tests.sim.oracle.rates import DAY
from tests.sim.oracle.warnings import Warnings
from tests.sim.world import World

LEFT_S: Final = 3 * DAY
AT: Final = T0 + DAY


@dataclass
class Quiet(Stub):
    """A world in which no job ticks, and whose clock is right."""

    process: None = None
    twin: None = None
    wrong_by_s: int = 0

    def true_s(self) -> int:
        return self.now


def _told(epoch: int, seq: int) -> Row:
    data = {"threshold_s": LEFT_S, "runway_s": LEFT_S, "expires_at": "2026-03-14T00:00:00Z"}
    return {
        "seq": seq,
        "wallet": WALLET,
        "type": "deposit.low",
        "resource": SERVER,
        "cause": f"warned|{SERVER}|{epoch}|{LEFT_S}",
        "data": json.dumps(data),
        "at": AT,
    }


def _updated(seq: int) -> Row:
    return {
        "seq": seq,
        "wallet": WALLET,
        "type": "server.updated",
        "resource": SERVER,
        "at": AT,
        "data": "{}",
    }


def _row(epoch: int, renews: bool) -> Row:
    return metered(AT, epoch=epoch, warned_s=LEFT_S, auto_renew=int(renews), exhausted_at=None, type="any")


def _play(*commits: Changes) -> None:
    oracle = Warnings(cast("World", Quiet(now=AT)))
    for changes in commits:
        oracle.committed(changes)


BORN: Final = Changes(rows={"server": {SERVER: _row(1, renews=True)}})
STOPPED: Final = Changes(events=[_updated(1), _told(1, 2)], rows={"server": {SERVER: _row(1, renews=False)}})


def test_who_let_it_renew_and_stopped_that_is_told_again() -> None:
    """docs/sim-findings.md, 22: both within one commit, whose rows before and after are alike."""
    again = [_updated(3), _updated(4), _told(2, 5)]
    _play(BORN, STOPPED, Changes(events=again, rows={"server": {SERVER: _row(2, renews=False)}}))


@pytest.mark.parametrize("between", [[], [_updated(3)]], ids=["nothing", "a change that renews nothing"])
def test_who_is_told_twice_without_any_of_that_is_told_too_often(between: list[Row]) -> None:
    again = Changes(events=[*between, _told(2, 5)], rows={"server": {SERVER: _row(2, renews=False)}})
    with pytest.raises(Wrong, match=f"told of {LEFT_S} s twice"):
        _play(BORN, STOPPED, again)
