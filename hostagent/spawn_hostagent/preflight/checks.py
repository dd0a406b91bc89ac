"""What must be right before a stranger's container runs here: each thing judged, with what to do about it.

Invariant: judging is pure. A check that is not ok says in `remedy` what to do next; an `error` means that this machine
does not take tenants as it is, a `warning` that it does and could do better, `info` is told and never wrong.
"""

from collections.abc import Iterable
from typing import Final, Literal

import msgspec
from spawn_schemas.inventory import Isolation

from spawn_hostagent.config import Limits
from spawn_hostagent.hardware import Lent, System, unknown_gpus
from spawn_hostagent.nvidia import Nvidia
from spawn_hostagent.preflight.versions import (
    DOCKER_API_FLOOR,
    RUNC_FIX,
    TOOLKIT_FIX,
    parse_api,
    parse_version,
    runc_is_fixed,
    toolkit_is_fixed,
)

Severity = Literal["error", "warning", "info"]
KERNEL_FLOOR: Final = (5, 4)
"""The oldest long-term kernel with the cgroup and seccomp features that the profile uses and that still gets fixes."""
PYTHON_FLOOR: Final = (3, 10)
MEMORY_FLOOR_MIB: Final = 512
DISK_FLOOR_MIB: Final = 5 * 1024
CLOCK_WARNING_S: Final = 5
CLOCK_ERROR_S: Final = 3600


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table."""

    name: str
    ok: bool
    message: str
    severity: Severity = "error"
    remedy: str = ""


class DockerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What Docker says of itself. `problem` is why it said nothing."""

    problem: str | None = None
    remedy: str = ""
    version: str = ""
    api: str = ""
    runc: str = ""
    runc_backport: bool = False
    driver: str = ""
    cgroup_version: str = ""
    live_restore: bool = False
    runtimes: tuple[str, ...] = ()
    missing_limits: tuple[str, ...] = ()
    root: str = ""


class ToolkitFacts(msgspec.Struct, frozen=True, kw_only=True):
    """NVIDIA's container toolkit; None where it is not installed."""

    version: str | None = None


def system_checks(system: System, platform: str, python: tuple[int, int]) -> list[Check]:
    kernel = parse_version(system.kernel)
    return [
        _os_check(system, platform),
        Check(
            name="kernel",
            ok=platform != "linux" or (kernel is not None and kernel[:2] >= KERNEL_FLOOR),
            message=system.kernel,
            remedy=f"Upgrade to Linux {KERNEL_FLOOR[0]}.{KERNEL_FLOOR[1]} or newer.",
        ),
        Check(
            name="python",
            ok=python >= PYTHON_FLOOR,
            message=".".join(map(str, python)),
            remedy="Install Python 3.10 or newer, or the single-file program, which brings its own.",
        ),
    ]


def _os_check(system: System, platform: str) -> Check:
    if platform == "linux":
        return Check(name="system", ok=True, message=f"{system.os}, {system.architecture}")
    return Check(
        name="system",
        ok=False,
        severity="warning",
        message=f"{system.os}: tenants run in Docker's own virtual machine, whose network is not walled off",
        remedy="Lend a Linux machine to strangers; on this one set known_only: false and be your own tenant.",
    )


def docker_checks(docker: DockerFacts) -> list[Check]:
    """Docker and all that depends on it; one line only where it cannot be asked."""
    if docker.problem is not None:
        return [Check(name="docker", ok=False, message=docker.problem, remedy=docker.remedy)]
    api = parse_api(docker.api)
    return [
        Check(
            name="docker",
            ok=api >= DOCKER_API_FLOOR,
            message=f"{docker.version}, API {docker.api}, {docker.driver}",
            remedy="Upgrade to Docker 20.10 or newer.",
        ),
        runc_check(docker.runc, docker.runc_backport),
        Check(
            name="cgroups",
            ok=docker.cgroup_version in ("1", "2") and not docker.missing_limits,
            message=_cgroups(docker),
            remedy="Boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1), which has all limits.",
        ),
        Check(
            name="live-restore",
            ok=docker.live_restore,
            severity="warning",
            message="containers survive a restart of Docker" if docker.live_restore else "off",
            remedy='Put {"live-restore": true} into /etc/docker/daemon.json and run `systemctl reload docker`: else '
            "an upgrade of Docker ends every rental.",
        ),
    ]


def _cgroups(docker: DockerFacts) -> str:
    text = f"version {docker.cgroup_version or 'unknown'}"
    return f"{text}, without limits of {', '.join(docker.missing_limits)}" if docker.missing_limits else text


def runc_check(told: str, is_backported: bool) -> Check:
    """Three escapes from a container (CVE-2025-31133, -52565, -52881) are fixed from certain versions on."""
    version = parse_version(told)
    if version is None:
        return Check(
            name="runc",
            ok=False,
            message="Docker does not tell the version of its runc",
            remedy="Upgrade to Docker 20.10 or newer, which tells: an old runc lets a container out.",
        )
    if runc_is_fixed(version):
        return Check(name="runc", ok=True, message=told)
    if is_backported:
        return Check(name="runc", ok=True, message=f"{told}, with the distribution's backport of {RUNC_FIX}")
    return Check(
        name="runc",
        ok=False,
        message=f"{told} lets a container out ({RUNC_FIX}), and its changelog names no backport",
        remedy="Upgrade runc to 1.2.8, 1.3.3, 1.4.0-rc.3 or newer, from your distribution or Docker's own packages.",
    )


def nft_check(version: str | None, problem: str | None) -> Check:
    """The wall around tenants is a table of nftables."""
    if version is None:
        return Check(
            name="nftables",
            ok=False,
            message="nft is not installed: tenants could reach your network",
            remedy="Install nftables (on Debian and Ubuntu: `apt-get install nftables`).",
        )
    if problem is not None:
        return Check(
            name="nftables",
            ok=False,
            message=f"{version}, and this user may not use it: {problem}",
            remedy="Run this as root (sudo), as the service does.",
        )
    return Check(name="nftables", ok=True, message=version)


def room_checks(system: System, lent: Lent, limits: Limits) -> list[Check]:
    """What is left to lend after the limits and the reserve."""
    return [
        Check(
            name="memory",
            ok=lent.memory_mib >= MEMORY_FLOOR_MIB,
            message=f"{_gib(lent.memory_mib)} lent of {_gib(system.total_memory_mib)}",
            remedy="Raise limits.memory_gb to 0.5 or more, if the machine has it.",
        ),
        Check(
            name="disk",
            ok=lent.disk_mib >= DISK_FLOOR_MIB,
            message=f"{_gib(lent.disk_mib)} lent, {_gib(system.free_disk_mib)} free of {_gib(system.total_disk_mib)}",
            remedy="Free some space (`docker system df` shows what Docker takes) or raise limits.disk_gb to 5 or more.",
        ),
        Check(
            name="cpus",
            ok=lent.cpus > 0,
            severity="info",
            message=f"{lent.cpus:g} lent of {system.cpu_threads} ({system.cpu_model})",
        ),
        *_hours(limits),
    ]


def _hours(limits: Limits) -> list[Check]:
    if not limits.hours:
        return []
    strict = ", and rentals are stopped outside of them" if limits.strict_hours else ""
    return [Check(name="hours", ok=True, severity="info", message=", ".join(limits.hours) + strict)]


def gpu_checks(
    nvidia: Nvidia,
    lent: Lent,
    limits: Limits,
    docker: DockerFacts,
    toolkit: ToolkitFacts,
    vendors: frozenset[str],
) -> list[Check]:
    """A line for each GPU; driver and toolkit only where there is an NVIDIA GPU to lend."""
    found = [*_foreign(vendors)]
    if nvidia.problem is not None:
        found.append(
            Check(
                name="nvidia driver",
                ok=False,
                severity="warning",
                message=nvidia.problem,
                remedy="Until then no GPU of this machine is lent; `nvidia-smi` must answer.",
            )
        )
    elif nvidia.gpus:
        found.append(
            Check(
                name="nvidia driver",
                ok=True,
                severity="info",
                message=f"{nvidia.driver or 'unknown'}, CUDA {nvidia.cuda or 'unknown'}",
            )
        )
    found += [
        _gpu(gpu.index, gpu.name, gpu.problem, gpu.mig_enabled, gpu.uuid in lent.gpus) for gpu in nvidia.gpus
    ]
    if lent.gpus:
        found.append(toolkit_check(docker, toolkit))
    for name in unknown_gpus(limits, nvidia.gpus):
        found.append(
            Check(
                name="limits.gpus",
                ok=False,
                severity="warning",
                message=f"this machine has no GPU {name}",
                remedy="`nvidia-smi -L` lists numbers and UUIDs; correct agent.yaml.",
            )
        )
    return found


def _foreign(vendors: frozenset[str]) -> Iterable[Check]:
    if "AMD" in vendors:
        yield Check(
            name="amd gpu",
            ok=True,
            severity="info",
            message="seen and not lent: this version lends NVIDIA GPUs only",
        )


def _gpu(index: int, name: str | None, problem: str | None, mig: bool | None, is_lent: bool) -> Check:
    what = name or "unknown"
    if problem is not None:
        return Check(
            name=f"gpu {index}",
            ok=False,
            severity="warning",
            message=f"{what}: {problem}",
            remedy="It is lent only if it answers; the others are not affected.",
        )
    state = "lent" if is_lent else "cut up by MIG, which is not lent yet" if mig else "kept for yourself"
    return Check(name=f"gpu {index}", ok=True, severity="info", message=f"{what}, {state}")


def toolkit_check(docker: DockerFacts, toolkit: ToolkitFacts) -> Check:
    """What brings a GPU into a container, and was a way out of it before 1.17.8 (CVE-2025-23266)."""
    version = None if toolkit.version is None else parse_version(toolkit.version)
    if version is None:
        return Check(
            name="nvidia toolkit",
            ok=False,
            message="not installed: no container gets a GPU",
            remedy="Install nvidia-container-toolkit 1.17.8 or newer, then `nvidia-ctk runtime configure "
            "--runtime=docker` and restart Docker; or set limits.gpus: none.",
        )
    if not toolkit_is_fixed(str(toolkit.version)):
        return Check(
            name="nvidia toolkit",
            ok=False,
            message=f"{toolkit.version} lets a container out ({TOOLKIT_FIX})",
            remedy="Upgrade nvidia-container-toolkit to 1.17.8 or newer, or set limits.gpus: none.",
        )
    if docker.problem is None and "nvidia" not in docker.runtimes:
        return Check(
            name="nvidia toolkit",
            ok=True,
            severity="info",
            message=f"{toolkit.version}; Docker calls its hook, since no runtime named nvidia is set up",
        )
    return Check(name="nvidia toolkit", ok=True, message=str(toolkit.version))


def clock_check(offset_s: float) -> Check:
    """Leases and signatures are judged by the service's clock; the agent makes up for the difference."""
    off = abs(offset_s)
    if off < CLOCK_WARNING_S:
        return Check(name="clock", ok=True, message="right to within a few seconds")
    return Check(
        name="clock",
        ok=False,
        severity="error" if off >= CLOCK_ERROR_S else "warning",
        message=f"{_span(off)} {'behind' if offset_s > 0 else 'ahead of'} the service's",
        remedy="Let the system keep the time: `timedatectl set-ntp true`.",
    )


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def isolation_checks(isolation: Isolation, *, known_only: bool) -> list[Check]:
    """The tier, and a line for each canary that did not come through: a fault, or what a higher tier would need."""
    below = isolation.tier == "none"
    tier = Check(
        name="isolation",
        ok=not below,
        severity="error" if known_only else "warning",
        message=f"tier {isolation.tier}, disks limited by {isolation.disk_limit}"
        + (": no strangers are taken" if below else ""),
        remedy="Repair what is listed below it; meanwhile only an owner who is his own tenant sets known_only: false.",
    )
    return [tier] + [
        Check(
            name=feature.name,
            ok=False,
            severity="warning" if below else "info",
            message=feature.says or "does not work",
            remedy=feature.remedy,
        )
        for feature in isolation.features
        if not feature.works and feature.name not in ("runc", "toolkit")  # lines of their own say it
    ]


def is_fit(checks: Iterable[Check]) -> bool:
    """Whether this machine can take tenants: nothing of severity `error` failed."""
    return not any(check.severity == "error" and not check.ok for check in checks)


def _gib(mib: int) -> str:
    return f"{mib / 1024:.1f} GiB"
