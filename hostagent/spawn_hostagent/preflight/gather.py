"""Looks at everything that `checks` judges: Docker, its parts, the wall, the clock and the isolation.

Invariant: looking changes nothing: canary containers have walls of their own, beside the tenants', and clean up after
themselves; what cannot be looked at is a check that failed, with the reason.
"""

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from spawn_schemas.inventory import Isolation

from spawn_hostagent.config import Config
from spawn_hostagent.failures import Failure
from spawn_hostagent.files import reason
from spawn_hostagent.hardware import HardwareDetector, lend
from spawn_hostagent.joining.service import Service
from spawn_hostagent.machines import MachineError
from spawn_hostagent.preflight import checks, programs
from spawn_hostagent.preflight.checks import Check, DockerFacts, ToolkitFacts
from spawn_hostagent.preflight.programs import Run, runc_backport, toolkit_version

DOCKER_TIMEOUT_S: Final = 15
_LIMITS: Final = {
    "MemoryLimit": "memory",
    "SwapLimit": "swap",
    "PidsLimit": "processes",
    "CpuCfsQuota": "CPU",
}
"""Keys of `docker info` that say whether the kernel can limit something, and what."""

Isolate = Callable[[], Awaitable[Isolation]]


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """All checks, and what setup wants of the looking besides."""

    checks: tuple[Check, ...]
    docker: DockerFacts
    isolation: Isolation | None = None


async def preflight(
    config: Config,
    detector: HardwareDetector,
    service: Service | None,
    isolate: Isolate,
    *,
    run: Run | None = None,
) -> Looked:
    """Look at everything. `service` None leaves out what is asked of it."""
    execute = run or programs.run_program
    docker = await asyncio.to_thread(docker_facts, config.docker_socket, execute)
    system = await asyncio.to_thread(detector.detect_system)
    nvidia = await asyncio.to_thread(detector.detect_gpus)
    lent = lend(config.limits, system, nvidia.gpus)
    toolkit = await asyncio.to_thread(_toolkit, execute) if lent.gpus else ToolkitFacts()
    found = [
        *checks.system_checks(system, sys.platform, sys.version_info[:2]),
        *checks.docker_checks(docker),
        *(await asyncio.to_thread(_nft, execute)),
        *checks.room_checks(system, lent, config.limits),
        *checks.gpu_checks(nvidia, lent, config.limits, docker, toolkit, detector.display_vendors()),
    ]
    if service is not None:
        found += await _service(service)
    isolation = None
    if docker.problem is None:
        isolation, told = await _isolation(isolate, known_only=config.known_only)
        found += told
    return Looked(checks=tuple(found), docker=docker, isolation=isolation)


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


def _toolkit(run: Run) -> ToolkitFacts:
    return ToolkitFacts(version=toolkit_version(run))


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


async def _isolation(isolate: Isolate, *, known_only: bool) -> tuple[Isolation | None, list[Check]]:
    try:
        isolation = await isolate()
    except (MachineError, Failure) as error:
        return None, [
            Check(
                name="isolation",
                ok=False,
                message=f"could not be tried: {error}",
                remedy="Repair what is listed above, then run `spawn-host check` again.",
            )
        ]
    return isolation, checks.isolation_checks(isolation, known_only=known_only)
