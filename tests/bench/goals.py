"""What we set out to reach, beside what this run saw. Pure; a verdict is words and never an exit status.

Goals are ratios within one run, because a slow machine makes everything slow.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from tests.bench.report import Line, Sample, medians, ratio, table

PAID: Final = ("ours-signed", "ours-x402")
"""Our paid, verified and durable reads."""
P99_MS: Final = 15.0


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """To be `times` as fast as the fastest of `peers`; without `times` it is only said how far that is."""

    what: str
    peers: tuple[str, ...]
    times: float | None
    ours: tuple[str, ...] = PAID


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One goal for one subject of ours. `met` is by the rate, `met_by_cpu` by CPU time; None where nothing is asked."""

    goal: str
    ours: str
    measured: str
    met: bool | None
    met_by_cpu: bool | None = None


GOALS: Final = (
    Goal(what="7x PyPI x402[fastapi] verifying in process", peers=("fastapi-process",), times=7),
    Goal(
        what="6x the best peer behind an HTTP facilitator",
        peers=("fastapi-http", "express-http", "hono-http"),
        times=6,
    ),
    Goal(
        what="20x the TypeScript SDK verifying in process",
        peers=("express-process", "hono-process"),
        times=20,
    ),
    Goal(what="1.5x hono's unpaid 402", peers=("hono-unpaid",), times=1.5, ours=("ours-unpaid",)),
    Goal(
        what="the fastest stub that checks nothing",
        peers=("fastapi-none", "express-none", "hono-none"),
        times=None,
    ),
)


def verdicts(lines: Sequence[Line]) -> list[Verdict]:
    """Every goal of which both sides were measured, for each subject of ours that it is about."""
    seen = {line.subject: medians(line.rounds) for line in lines}
    found = [
        Verdict(
            goal=f"p99 at most {P99_MS:g} ms",
            ours=name,
            measured=f"{seen[name].p99_ms:.1f} ms",
            met=seen[name].p99_ms <= P99_MS,
        )
        for name in PAID
        if name in seen
    ]
    for goal in GOALS:
        peers = [name for name in goal.peers if name in seen]
        if len(peers) == len(goal.peers):
            best = max(peers, key=lambda name: seen[name].per_s)
            found += [
                _verdict(goal, name, seen[name], best, seen[best]) for name in goal.ours if name in seen
            ]
    return found


def _verdict(goal: Goal, name: str, ours: Sample, best: str, peer: Sample) -> Verdict:
    times = ratio(ours, peer)
    return Verdict(
        goal=goal.what,
        ours=name,
        measured=f"{times.rate:.2f}x the rate of {best}, {times.cpu:.2f}x by CPU time",
        met=None if goal.times is None else times.rate >= goal.times,
        met_by_cpu=None if goal.times is None else times.cpu >= goal.times,
    )


def verdicts_table(found: Sequence[Verdict]) -> str:
    """The verdicts in words."""
    return table(
        ("goal", "by", "measured", ""),
        [(one.goal, one.ours, one.measured, _in_words(one)) for one in found],
    )


def _in_words(verdict: Verdict) -> str:
    match verdict.met, verdict.met_by_cpu:
        case None, _:
            return ""
        case True, _:
            return "met"
        case _, True:
            return "met by CPU time only"
        case _:
            return "NOT met"
