"""What `bench-hosts` says: tables, and what was set out for. Pure; a verdict is words and never an exit status."""

from collections.abc import Sequence
from typing import Final

import msgspec

from tests.bench.goals import Verdict
from tests.bench.hosts_idle import Idle
from tests.bench.hosts_ways import Carried
from tests.bench.report import table

OURS: Final = ("ours", "spawn")
KIB_MAX: Final = 23.0
BEAT_US_MAX: Final = 60.0
LOGIN_TIMES_MAX: Final = 1.3
BULK_SHARE_MIN: Final = 0.5
FAIR_SHARE_MIN: Final = 0.5


class Relayed(msgspec.Struct, frozen=True, kw_only=True):
    """One way to a tenant, the medians of its rounds; `worst_share` and `grown_mib` are the worst of all."""

    name: str
    login_s: float
    logins_s: tuple[float, ...]
    down: Carried
    up: Carried
    raw: Carried
    shared_mib_per_s: float
    worst_share: float
    grown_mib: float


def idle_table(found: Sequence[Idle]) -> str:
    head = ("idle hosts", "sockets", "KiB each", "CPU us a heartbeat", "CPU us a login", "silent, of a core")
    rows = [
        (
            one.name,
            f"{one.sockets:,}",
            f"{one.kib_per_socket:.1f}",
            f"{one.beat_us:.0f}",
            f"{one.login_us:.0f}",
            f"{one.silent_us_per_s / 1e6:.2%}",
        )
        for one in found
    ]
    return table(head, rows)


def relay_table(found: Sequence[Relayed]) -> str:
    """Every way beside the first, which is direct."""
    direct = found[0]
    ssh = [
        (
            one.name,
            f"{one.login_s * 1e3:.0f}",
            f"{one.login_s / direct.login_s:.2f}x",
            *_beside(one.down, direct.down),
            *_beside(one.up, direct.up),
        )
        for one in found
    ]
    bare = [
        (
            one.name,
            *_beside(one.raw, direct.raw),
            f"{one.raw.cpu_ms_per_mib:.2f}",
            f"{one.shared_mib_per_s:,.0f}",
            f"{one.worst_share:.2f}",
            f"{one.grown_mib:.0f}",
        )
        for one in found
    ]
    heads = (
        ("over SSH", "login ms", "of direct", "down MiB/s", "of direct", "up MiB/s", "of direct"),
        ("bare bytes", "MiB/s", "of direct", "CPU ms/MiB", "streams MiB/s", "worst share", "MiB more"),
    )
    return f"{table(heads[0], ssh)}\n\n{table(heads[1], bare)}"


def idle_goals(found: Sequence[Idle]) -> list[Verdict]:
    """For ours; a heartbeat beside the floor's."""
    floor_us = next((one.beat_us for one in found if one.name not in OURS), None)
    goals = []
    for one in (one for one in found if one.name in OURS):
        kib, us = one.kib_per_socket, one.beat_us
        beside = "" if floor_us is None else f", {us / floor_us:.2f}x the floor's"
        goals += [
            _goal(f"{KIB_MAX:g} KiB a socket", one.name, f"{kib:.1f} KiB", met=kib <= KIB_MAX),
            _goal(
                f"{BEAT_US_MAX:g} us of CPU a heartbeat",
                one.name,
                f"{us:.0f} us{beside}",
                met=us <= BEAT_US_MAX,
            ),
        ]
    return goals


def relay_goals(found: Sequence[Relayed]) -> list[Verdict]:
    """For ours beside the first, which is direct."""
    goals = []
    for one in (one for one in found if one.name in OURS):
        direct = found[0]
        login = one.login_s / direct.login_s
        bulk = min(
            one.down.mib_per_s / direct.down.mib_per_s,
            one.up.mib_per_s / direct.up.mib_per_s,
        )
        bare = one.raw.mib_per_s / direct.raw.mib_per_s
        goals += [
            _goal(
                f"SSH login within {LOGIN_TIMES_MAX:g}x direct",
                one.name,
                f"{login:.2f}x",
                met=login <= LOGIN_TIMES_MAX,
            ),
            _goal(
                f"{BULK_SHARE_MIN:g} of direct throughput over SSH",
                one.name,
                f"{bulk:.2f}",
                met=bulk >= BULK_SHARE_MIN,
            ),
            _goal("the same of bare bytes", one.name, f"{bare:.2f}", met=bare >= BULK_SHARE_MIN),
            _goal(
                f"no stream under {FAIR_SHARE_MIN:g} of its fair share",
                one.name,
                f"{one.worst_share:.2f}",
                met=one.worst_share >= FAIR_SHARE_MIN,
            ),
        ]
    return goals


def _beside(one: Carried, direct: Carried) -> tuple[str, str]:
    return f"{one.mib_per_s:,.0f}", f"{one.mib_per_s / direct.mib_per_s:.2f}x"


def _goal(goal: str, ours: str, measured: str, *, met: bool) -> Verdict:
    return Verdict(goal=goal, ours=ours, measured=measured, met=met)
