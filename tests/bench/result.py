"""Everything that a run found, as the JSON file keeps it."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from typing import Final

import msgspec

from tests.bench.goals import verdicts
from tests.bench.ledger import Way
from tests.bench.profiling import Profile
from tests.bench.report import Line, medians, ratios
from tests.bench.rounds import Round
from tests.bench.servers import NODE_PROJECT
from tests.bench.subjects import Subject

_PACKAGES: Final = ("coincurve", "fastapi", "litestar", "msgspec", "uvicorn", "uvloop", "x402")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it ran. Servers and load share a core where there is only one."""

    cores: int
    server_core: int
    load_core: int
    python: str


class Result(msgspec.Struct, kw_only=True):
    """One run, filled as it goes. CPU times are in microseconds a request."""

    machine: Machine
    versions: dict[str, str]
    http: list[Line] = []
    threads_us: dict[str, dict[str, float]] = {}
    profiles: dict[str, Profile] = {}
    ledger: dict[str, list[Way]] = {}
    left_out: list[str] = []


def machine(server_core: int, load_core: int) -> Machine:
    return Machine(
        cores=os.cpu_count() or 1,
        server_core=server_core,
        load_core=load_core,
        python=platform.python_version(),
    )


def versions() -> dict[str, str]:
    """Of the packages whose speed this is about."""
    node: dict[str, str] = msgspec.json.decode((NODE_PROJECT / "package.json").read_bytes())["dependencies"]
    return {package: version(package) for package in _PACKAGES} | node | {"node": _node_version()}


def _node_version() -> str:
    """Which Node the peers run on; empty without one."""
    program = shutil.which("node")
    if program is None:
        return ""
    asked = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=True)
    return asked.stdout.strip()


def line(subject: Subject, seen: list[Round]) -> Line:
    """The rounds of a subject, to be compared with ours of its kind."""
    ours = "ours-unpaid" if subject.kind == "unpaid" else "ours-x402"
    return Line(
        subject=subject.name,
        what=subject.what,
        rounds=tuple(one.sample for one in seen),
        ours=None if subject.name == ours or subject.kind == "plain" else ours,
    )


def encode(result: Result) -> bytes:
    """The result with what follows from it: medians, ratios, verdicts."""
    kept = msgspec.to_builtins(result)
    for entry, one in zip(kept["http"], result.http, strict=True):
        entry["median"] = msgspec.to_builtins(medians(one.rounds))
    kept["ratios"] = msgspec.to_builtins(ratios(result.http))
    kept["goals"] = msgspec.to_builtins(verdicts(result.http))
    return msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n"
