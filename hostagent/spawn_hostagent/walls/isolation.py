"""The isolation profile: every setting that stands between a hostile tenant and the machine, in this one place.

Invariant: each container of a tenant is made of all of `LINES`, and each line says why it is there. What Docker does by
itself is said here too where a tenant's safety hangs on it, so that no other default can take it away. The walls of the
network are in `firewall`, in the same form.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from docker.types import DeviceRequest, LogConfig, Ulimit
from spawn_schemas.inventory import DiskLimit

PROCESSES_MAX: Final = 512
FILES_MAX: Final = 16384
LOG_BYTES: Final = 4 * 1024 * 1024
LOG_FILES: Final = 2
MIB: Final = 1024 * 1024
CAPABILITIES: Final = (
    # sshd asks for these three to log somebody in.
    "SETUID",
    "SETGID",
    "SYS_CHROOT",
    # apt and other installers set owners and modes of files, and end their own children.
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "KILL",
)


@dataclass(frozen=True)
class Wanted:
    """One container, after its order was found within the owner's limits. `volume` is its disk and where it goes."""

    cpus: float
    memory_mib: int
    disk_mib: int
    network: str
    resolvers: tuple[str, ...]
    disk_limit: DiskLimit
    volume: tuple[str, str] | None = None
    gpus: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    runtime: str | None = None


@dataclass(frozen=True)
class Line:
    """One line of the profile: `settings` are arguments of Docker's host configuration; lists of lines are joined."""

    name: str
    reason: str
    settings: Callable[[Wanted], dict[str, Any]]


def _scratch(memory_mib: int) -> dict[str, str]:
    """What a read-only root leaves writable beside the disk.

    It lives in the tenant's memory and counts as that: each has a size, or filling one would kill all that runs.
    """
    return {
        "/run": "rw,nosuid,nodev,mode=755,size=4m",
        "/tmp": f"rw,nosuid,nodev,exec,mode=1777,size={memory_mib // 2}m",  # noqa: S108 - the tenant's
        "/var/tmp": f"rw,nosuid,nodev,exec,mode=1777,size={memory_mib // 4}m",  # noqa: S108 - likewise
    }


def _disk(wanted: Wanted) -> dict[str, Any]:
    if wanted.disk_limit == "quota":
        return {"storage_opt": {"size": f"{wanted.disk_mib}M"}}
    if wanted.disk_limit == "loop":
        return {"read_only": True, "tmpfs": _scratch(wanted.memory_mib)}
    return {}


def _file_size(wanted: Wanted) -> dict[str, Any]:
    # Under a read-only root those files are read-only too.
    if wanted.disk_limit == "loop":
        return {}
    most = wanted.disk_mib * MIB
    return {"ulimits": [Ulimit(name="fsize", soft=most, hard=most)]}


def _volume(wanted: Wanted) -> dict[str, Any]:
    if wanted.volume is None:
        return {}
    name, path = wanted.volume
    return {"binds": {name: {"bind": path, "mode": "rw"}}}


def _gpus(wanted: Wanted) -> dict[str, Any]:
    if not wanted.gpus:
        return {}
    return {"device_requests": [DeviceRequest(device_ids=list(wanted.gpus), capabilities=[["gpu"]])]}


LINES: Final = (
    Line(
        "memory",
        "A tenant that takes more than it rented is killed, not its neighbour; swap would let it go on by twice.",
        lambda wanted: {"mem_limit": wanted.memory_mib * MIB, "memswap_limit": wanted.memory_mib * MIB},
    ),
    Line(
        "cpu",
        "A share of the cores in time. `cpu_count` is accepted on Linux and limits nothing.",
        lambda wanted: {"nano_cpus": round(wanted.cpus * 1_000_000_000)},
    ),
    Line(
        "processes",
        "A fork bomb takes all process ids of the machine.",
        lambda _: {"pids_limit": PROCESSES_MAX},
    ),
    Line(
        "capabilities",
        "Root inside is nobody outside: no raw packets, devices, mounts, modules, clocks or foreign files.",
        lambda _: {"cap_drop": ["ALL"], "cap_add": list(CAPABILITIES)},
    ),
    Line(
        "no-new-privileges",
        "A file with the set-user-id bit or with capabilities gives nothing to who runs it.",
        lambda _: {"security_opt": ["no-new-privileges=true"]},
    ),
    Line(
        "seccomp",
        "Docker's own filter stays on: new namespaces, keyrings, BPF and old system calls are where kernels break.",
        lambda _: {},
    ),
    Line(
        "unprivileged",
        "A privileged container is the host: all devices, no filter.",
        lambda _: {"privileged": False},
    ),
    Line(
        "namespaces",
        "Processes, shared memory and control groups of the host and of others are not even seen.",
        lambda _: {"ipc_mode": "private", "cgroupns": "private"},
    ),
    Line(
        "network",
        "A bridge of its own: neighbours share no wire, and the firewall knows a tenant by its interface.",
        lambda wanted: {"network_mode": wanted.network, "dns": list(wanted.resolvers)},
    ),
    Line(
        "ports",
        "Ports are published on loopback, for the tunnel; the owner's LAN does not see them.",
        lambda wanted: {"port_bindings": dict.fromkeys(wanted.ports, ("127.0.0.1", None))},
    ),
    Line(
        "disk",
        "What a tenant writes ends where its disk ends: by quota, or by a read-only root beside a disk of fixed size.",
        _disk,
    ),
    Line(
        "file size",
        "/etc/hosts and two more are files of Docker's on the host, outside of any quota (as in CVE-2020-8557): none "
        "outgrows the disk that was rented, and who makes them large is stopped at the next look.",
        _file_size,
    ),
    Line(
        "volume",
        "The one thing mounted is the rental's own disk. No path of the host, and never Docker's socket.",
        _volume,
    ),
    Line(
        "gpus",
        "Exactly the cards that were rented, by UUID: an index names another card after a change.",
        _gpus,
    ),
    Line(
        "files",
        "Open files are memory of the kernel's; a core dump may be written by a program of the host, as root.",
        lambda _: {
            "ulimits": [
                Ulimit(name="nofile", soft=FILES_MAX, hard=FILES_MAX),
                Ulimit(name="core", soft=0, hard=0),
            ]
        },
    ),
    Line(
        "logs",
        "What a tenant prints lands on the owner's disk, outside of any quota.",
        lambda _: {
            "log_config": LogConfig(
                type=LogConfig.types.JSON, config={"max-size": str(LOG_BYTES), "max-file": str(LOG_FILES)}
            )
        },
    ),
    Line(
        "init",
        "The dead children of a tenant's program are reaped, or they fill the process limit; and it hears SIGTERM.",
        lambda _: {"init": True},
    ),
    Line(
        "restart",
        "Only the agent starts a rental again: Docker knows no lease.",
        lambda _: {"restart_policy": {"Name": "no"}},
    ),
    Line(
        "out-of-memory order",
        "If the machine itself runs out of memory, tenants go before what its owner runs.",
        lambda _: {"oom_score_adj": 500},
    ),
    Line(
        "runtime",
        "The runtime that the owner chose; gVisor puts a kernel of its own between tenant and machine.",
        lambda wanted: {"runtime": wanted.runtime} if wanted.runtime else {},
    ),
)


def settings_of(lines: Iterable[Line], wanted: Wanted) -> dict[str, Any]:
    """The arguments of Docker's host configuration that these lines make together."""
    joined: dict[str, Any] = {}
    for line in lines:
        for name, value in line.settings(wanted).items():
            if isinstance(value, list) and name in joined:
                joined[name] = [*joined[name], *value]
            elif name in joined:
                raise ValueError(f"two lines of the profile set {name}")
            else:
                joined[name] = value
    return joined
