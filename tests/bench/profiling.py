"""Where a server's time goes: a profile of one of its threads, as microseconds a request.

The times are of the wall clock: a call that lets go of the interpreter's lock (recovery, entropy, SQLite) includes the
wait to get it back. Profiling makes every call of a Python function dearer, the more so the shorter it is: it points at
what to look at, and only CPU time without a profile says whether that helped. Time in C is charged to its caller.
"""

from collections import defaultdict
from pathlib import Path
from pstats import Stats
from typing import Final

import msgspec

from tests.bench.report import table

Function = tuple[str, int, str]
_BUILT_IN: Final = "~"
_FUNCTIONS: Final = 40
"""How many functions the table shows."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """One function: how often it is called, and its time without and with what it calls, in µs. Per request."""

    name: str
    calls: float
    own_us: float
    with_calls_us: float


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """The dearest functions by their own time, and the own time of each package with the C that it calls."""

    functions: list[Cost]
    packages_us: dict[str, float]


def read(path: Path, requests: int) -> Profile:
    """What `cProfile` wrote while this many requests were answered."""
    entries = vars(Stats(str(path)))["stats"]
    functions: list[Cost] = []
    packages: defaultdict[str, float] = defaultdict(float)
    scale = 1e6 / requests
    for function, (_, calls, own_s, with_calls_s, callers) in entries.items():
        functions.append(
            Cost(
                name=_name(function),
                calls=calls / requests,
                own_us=own_s * scale,
                with_calls_us=with_calls_s * scale,
            )
        )
        if function[0] != _BUILT_IN:
            packages[_package(function[0])] += own_s * scale
            continue
        for caller, (_, _, own_for_caller_s, _) in callers.items():
            packages[_package(caller[0])] += own_for_caller_s * scale
    functions.sort(key=lambda cost: -cost.own_us)
    return Profile(
        functions=functions[:_FUNCTIONS], packages_us=dict(sorted(packages.items(), key=lambda one: -one[1]))
    )


def profile_table(subject: str, profile: Profile) -> str:
    """Both halves of a profile."""
    packages = [(name, f"{us:,.1f}") for name, us in profile.packages_us.items() if us >= 0.1]
    functions = [
        (cost.name, f"{cost.calls:.1f}", f"{cost.own_us:,.1f}", f"{cost.with_calls_us:,.1f}")
        for cost in profile.functions
    ]
    head = (f"{subject}: function", "calls", "own us", "with calls us")
    return f"{table((f'{subject}: package', 'us/req'), packages)}\n\n{table(head, functions)}"


def _name(function: Function) -> str:
    path, line, name = function
    return name if path == _BUILT_IN else f"{_short(path)}:{line} {name}"


def _short(path: str) -> str:
    """The path from the package on."""
    _, mark, inside = path.rpartition("/site-packages/")
    return inside if mark else "/".join(Path(path).parts[-3:])


def _package(path: str) -> str:
    """A package, or a room of ours: `litestar`, `spawn/api`."""
    if path == _BUILT_IN:
        return "C called from C"
    _, installed, inside = path.rpartition("/site-packages/")
    if installed:
        return inside.partition("/")[0]
    parts = Path(path).parts
    for root in ("spawn", "spawn_ledger", "spawn_schemas", "spawn_providers"):
        if root in parts[:-1]:
            rest = parts[len(parts) - 1 - parts[::-1].index(root) :]
            return "/".join(rest[:2]).removesuffix(".py")
    return "standard library"
