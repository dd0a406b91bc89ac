"""What the kernel says of a running process: its limits, its privileges, what it shares with the host.

Invariant: each look reads what the kernel keeps, never what Docker was told; it says what is wrong, or nothing.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from spawn_hostagent.walls import tries as walls
from spawn_hostagent.walls.isolation import CAPABILITIES, MIB

MEMORY_MIB: Final = 32
CPUS: Final = 0.5
CGROUPS: Final = Path("/sys/fs/cgroup")
_NUMBERS: Final = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SYS_CHROOT": 18,
}
"""Linux's numbers of the capabilities that tenants keep (linux/capability.h)."""

_SYS_ADMIN: Final = 21

Look = Callable[[int], str]
"""Looks at a process by its id on the host; returns what is wrong, or nothing."""


def _status(pid: int, field: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    return ""


def cgroup_file(pid: int, controller: str, name: str) -> Path | None:
    """Where the kernel keeps this file for the process's control group; None if it has no such controller.

    Version 1 has a tree for each controller, version 2 one for all (cgroups(7)).
    """
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        # A process in a namespace of its own sees its group as the root; from outside the path is whole.
        if controller in controllers.split(","):
            found = CGROUPS / controller / path.lstrip("/") / name
            if found.exists():
                return found
        if controllers == "":
            found = CGROUPS / path.lstrip("/") / name
            if found.exists():
                return found
    return None


def _limit(pid: int, controller: str, old: str, new: str) -> str:
    file = cgroup_file(pid, controller, old) or cgroup_file(pid, controller, new)
    return file.read_text().strip() if file is not None else "no such controller"


def _memory(pid: int) -> str:
    most = str(MEMORY_MIB * MIB)
    memory = _limit(pid, "memory", "memory.limit_in_bytes", "memory.max")
    if memory != most:
        return f"the limit is {memory}, not {most}"
    both = _limit(pid, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max")
    return "" if both in (most, "0") else f"with swap the limit is {both}"


def _cpu(pid: int) -> str:
    quota = _limit(pid, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0]
    return "" if quota == str(int(CPUS * 100_000)) else f"the quota is {quota}"


def _processes(pid: int) -> str:
    most = _limit(pid, "pids", "pids.max", "pids.max")
    return "" if most.isdigit() else f"the limit is {most}"


def _capabilities(pid: int) -> str:
    allowed = sum(1 << _NUMBERS[name] for name in CAPABILITIES)
    bound = int(_status(pid, "CapBnd"), 16)
    return "" if bound & ~allowed == 0 else f"the bounding set is {bound:x}"


def _unprivileged(pid: int) -> str:
    # A privileged container has all of them; CAP_SYS_ADMIN is in none of Docker's smaller sets.
    return "it may do what the host's root may" if int(_status(pid, "CapBnd"), 16) & 1 << _SYS_ADMIN else ""


def _seccomp(pid: int) -> str:
    return "" if _status(pid, "Seccomp") == "2" else "no filter is on"


def _no_new_privileges(pid: int) -> str:
    return "" if _status(pid, "NoNewPrivs") == "1" else "the bit is not set"


def _namespaces(pid: int) -> str:
    shared = [
        kind
        for kind in ("pid", "ipc", "mnt", "net", "uts", "cgroup")
        if os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}")
    ]
    return f"shared with the host: {', '.join(shared)}" if shared else ""


def _userns(pid: int) -> str:
    first = Path(f"/proc/{pid}/uid_map").read_text().split()
    return "" if first[:2] != ["0", "0"] else "root inside is root outside"


LIMITS: Final[dict[str, Look]] = {
    "memory": _memory,
    "cpu": _cpu,
    "processes": _processes,
}
"""What the host's kernel holds a container to, whichever runtime made it."""
PRIVILEGES: Final[dict[str, Look]] = {
    "capabilities": _capabilities,
    "unprivileged": _unprivileged,
    "no-new-privileges": _no_new_privileges,
    "seccomp": _seccomp,
    "namespaces": _namespaces,
    "userns": _userns,
}
"""What its programs may ask of the host's kernel; programs under gVisor ask that of a kernel of their own."""


def walled(gateway: str, pid: int) -> str:
    return "a tenant reaches this machine's own services" if walls.is_open(pid, gateway) else ""


def is_small(place: str, most_mib: int, pid: int) -> str:
    """Whether what this process sees at that place ends at its limit; Docker takes some limits and does nothing."""
    size = os.statvfs(f"/proc/{pid}/root{place}")
    mib = size.f_blocks * size.f_frsize // MIB
    return (
        "" if mib <= most_mib else f"it has {mib} MiB, not {most_mib}: the limit was taken and does nothing"
    )
