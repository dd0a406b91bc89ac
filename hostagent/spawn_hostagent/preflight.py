"""Looks at everything that `checks` judges: Docker, its parts, the wall, the clock and the isolation.

Invariant: looking changes nothing but the canary containers, which clean up after themselves; what cannot be looked
at is a check that failed, with the reason.
"""

import asyncio
import gzip
import shutil
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from spawn_schemas.inventory import Isolation

from spawn_hostagent import checks
from spawn_hostagent.checks import Check, DockerFacts, ToolkitFacts
from spawn_hostagent.config import Config
from spawn_hostagent.failures import Failure
from spawn_hostagent.files import reason
from spawn_hostagent.hardware import HardwareDetector, lend
from spawn_hostagent.machines import MachineError
from spawn_hostagent.service import Service
from spawn_hostagent.versions import RUNC_FIX

DOCKER_TIMEOUT_S: Final = 15
PROGRAM_TIMEOUT_S: Final = 10
RUNC_CHANGELOG: Final = Path("/usr/share/doc/runc/changelog.Debian.gz")
_LIMITS: Final = {
    "MemoryLimit": "memory",
    "SwapLimit": "swap",
    "PidsLimit": "processes",
    "CpuCfsQuota": "CPU",
}
"""Keys of `docker info` that say whether the kernel can limit something, and what."""

Run = Callable[[list[str]], "tuple[int, str] | None"]
"""Runs a program; its exit status and what it wrote, None where it is not installed."""
Isolate = Callable[[], Awaitable[Isolation]]


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """All checks, and what setup wants of the looking besides."""

    checks: tuple[Check, ...]
    docker: DockerFacts


async def preflight(
    config: Config,
    detector: HardwareDetector,
    service: Service | None,
    isolate: Isolate,
    *,
    run: "Run | None" = None,
) -> Looked:
    """Look at everything. `service` None leaves out what is asked of it."""
    execute = run or run_program
    docker = await asyncio.to_thread(docker_facts, config.docker_socket, execute)
    system = await asyncio.to_thread(detector.detect_system)
    nvidia = await asyncio.to_thread(detector.detect_gpus)
    lent = lend(config.limits, system, nvidia.gpus)
    toolkit = await asyncio.to_thread(toolkit_facts, execute) if lent.gpus else ToolkitFacts()
    found = [
        *checks.system_checks(system, sys.platform, sys.version_info[:2]),
        *checks.docker_checks(docker),
        *(await asyncio.to_thread(_nft, execute)),
        *checks.room_checks(system, lent, config.limits),
        *checks.gpu_checks(nvidia, lent, config.limits, docker, toolkit, detector.display_vendors()),
    ]
    if service is not None:
        found += await _service(service)
    if docker.problem is None:
        found += await _isolation(isolate, known_only=config.known_only)
    return Looked(checks=tuple(found), docker=docker)


def docker_facts(address: str, run: Run) -> DockerFacts:
    """Ask Docker who it is. Blocks for up to `DOCKER_TIMEOUT_S` a question."""
    import docker  # noqa: PLC0415 - the daemon asks elsewhere
    from docker.errors import DockerException  # noqa: PLC0415

    closed = _closed(address)
    if closed is not None:
        return closed
    try:
        client = docker.DockerClient(base_url=address, timeout=DOCKER_TIMEOUT_S)
        try:
            return _facts(client.info(), client.version(), run)
        finally:
            client.close()
    except (DockerException, OSError) as error:
        return DockerFacts(
            problem=f"{address} does not answer: {error}",
            remedy="See what `docker info` says, and repair that first.",
        )


def _closed(address: str) -> DockerFacts | None:
    """Why a Unix socket cannot be opened, None where it can: the SDK hides the reason, and leaves its socket open."""
    scheme, _, path = address.partition("://")
    if scheme != "unix":
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(DOCKER_TIMEOUT_S)
        try:
            line.connect(path)
        except PermissionError:
            return DockerFacts(
                problem=f"{address} may not be opened by this user",
                remedy="Run this as root (sudo), as the service does.",
            )
        except OSError as error:
            return DockerFacts(
                problem=f"nothing listens at {address} ({reason(error)})",
                remedy="Install Docker and start it (`systemctl enable --now docker`), or name its socket in "
                "agent.yaml (docker_socket).",
            )
    return None


def _facts(info: dict[str, Any], version: dict[str, Any], run: Run) -> DockerFacts:
    parts = {str(part.get("Name")): str(part.get("Version", "")) for part in version.get("Components") or ()}
    return DockerFacts(
        version=str(version.get("Version", "")),
        api=str(version.get("ApiVersion", "")),
        runc=parts.get("runc", ""),
        runc_backport=runc_backport(run),
        driver=str(info.get("Driver", "")),
        cgroup_version=str(info.get("CgroupVersion", "")),
        live_restore=bool(info.get("LiveRestoreEnabled")),
        runtimes=tuple(sorted(info.get("Runtimes") or ())),
        missing_limits=tuple(what for key, what in _LIMITS.items() if info.get(key) is False),
        root=str(info.get("DockerRootDir", "")),
    )


def runc_backport(run: Run, changelog: Path = RUNC_CHANGELOG) -> bool:
    """Whether the distribution's package says that it has the fix, in a version that looks too old."""
    try:
        with gzip.open(changelog, "rt", encoding="utf-8", errors="replace") as text:
            if any(RUNC_FIX in line for line in text):
                return True
    except OSError:  # not Debian's runc, or packages without documents
        pass
    told = run(["rpm", "-q", "--changelog", "runc"])
    return told is not None and told[0] == 0 and RUNC_FIX in told[1]


def toolkit_facts(run: Run) -> ToolkitFacts:
    """NVIDIA's toolkit, by whichever of its programs is there."""
    for program in ("nvidia-ctk", "nvidia-container-toolkit", "nvidia-container-cli"):
        told = run([program, "--version"])
        if told is not None and told[0] == 0:
            lines = [line for line in told[1].splitlines() if "version" in line.lower()]
            return ToolkitFacts(version=_after_version(lines[0] if lines else told[1]))
    return ToolkitFacts()


def _after_version(line: str) -> str:
    """`NVIDIA Container Toolkit CLI version 1.17.8` and `cli-version: 1.17.8` end in it."""
    words = line.replace(":", " ").split()
    return words[-1] if words else line


def run_program(command: list[str]) -> tuple[int, str] | None:
    path = shutil.which(command[0])
    if path is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - programs that this module names, without anything of a stranger's
            [path, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PROGRAM_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout.decode(errors="replace")


def _nft(run: Run) -> list[Check]:
    if sys.platform != "linux":
        return []
    version = run(["nft", "--version"])
    if version is None:
        return [checks.nft_check(None, None)]
    listed = run(["nft", "list", "tables"])
    problem = (
        None if listed is None or listed[0] == 0 else (listed[1].strip().splitlines() or ["no reason"])[0]
    )
    return [checks.nft_check(version[1].strip(), problem)]


async def _service(service: Service) -> list[Check]:
    try:
        offset_s = await service.clock_offset()
    except Failure as error:
        return [
            Check(
                name="service",
                ok=False,
                message=str(error),
                remedy="The address is `service` in agent.yaml; this machine must reach it over HTTPS, port 443.",
            )
        ]
    return [Check(name="service", ok=True, message="answers"), checks.clock_check(offset_s)]


async def _isolation(isolate: Isolate, *, known_only: bool) -> list[Check]:
    try:
        return checks.isolation_checks(await isolate(), known_only=known_only)
    except MachineError as error:
        return [
            Check(
                name="isolation",
                ok=False,
                message=f"could not be tried: {error}",
                remedy="Repair what is listed above, then run `spawn-host check` again.",
            )
        ]
