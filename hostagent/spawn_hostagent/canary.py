"""What this host's Docker really does: a canary container for each feature, looked at from the kernel's side.

Invariant: a feature works if the kernel says so of a running process, not if Docker took the setting: Docker accepts
some that it ignores. Nothing has to be pulled for it: the canary's image is made here, of one program that waits.
"""

import io
import ipaddress
import os
import struct
import tarfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final

import docker.errors
from docker import APIClient
from spawn_schemas.inventory import DiskLimit, Feature, Isolation, Tier

from spawn_hostagent import networks, walls
from spawn_hostagent.disks import DiskError, Disks
from spawn_hostagent.engine import said
from spawn_hostagent.firewall import Firewall, WallError
from spawn_hostagent.isolation import CAPABILITIES, LINES, MIB, Line, Wanted, settings_of
from spawn_hostagent.machines import MachineError

IMAGE: Final = "spawn-canary:1"
LABEL: Final = "sh.spawn.canary"
NETWORK: Final = "spawn-canary"
MEMORY_MIB: Final = 32
CPUS: Final = 0.5
CGROUPS: Final = Path("/sys/fs/cgroup")
RUNC_MINIMUM: Final = (1, 2, 8)
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

FLOOR: Final = (
    *(
        "memory",
        "cpu",
        "processes",
        "capabilities",
        "no-new-privileges",
        "seccomp",
        "unprivileged",
        "namespaces",
    ),
    "walls",
)
"""Without one of these no unknown tenant comes here."""
REMEDIES: Final = {
    "memory": "boot with the memory controller on (`cgroup_enable=memory swapaccount=1`), or use control groups v2.",
    "cpu": "the kernel needs CFS bandwidth control (CONFIG_CFS_BANDWIDTH).",
    "processes": "the kernel needs the pids controller (CONFIG_CGROUP_PIDS).",
    "capabilities": "Docker gives containers more than it was told to: look for a wrapper around runc.",
    "no-new-privileges": "update Docker to 20.10 or newer.",
    "seccomp": "the kernel needs CONFIG_SECCOMP_FILTER, and dockerd must not run with `--seccomp-profile=unconfined`.",
    "unprivileged": "Docker gives containers more than it was told to: look for a wrapper around runc.",
    "namespaces": "update Docker to 20.10 or newer, and do not set `default-cgroupns-mode` to host.",
    "walls": "install nftables and run the agent as root on Linux.",
    "userns": 'add `"userns-remap": "default"` to /etc/docker/daemon.json, while nothing is rented.',
    "quota": "put Docker's data on XFS mounted with `pquota`, with the overlay2 storage driver.",
    "loop": "install e2fsprogs and util-linux, and run the agent as root where /dev/loop-control is.",
    "gvisor": "install runsc, register it with Docker, and set `runtime: runsc` in agent.yaml.",
    "runc": "update runc to 1.2.8, 1.3.3 or a distribution's backport of them (CVE-2025-31133).",
}

Look = Callable[[int], str]
"""Looks at a process of the canary by its id on the host; returns what is wrong, or nothing."""


def waiting_program(machine: str) -> bytes:
    """A whole ELF program that does nothing but wait; `machine` is as `uname -m` says. Raises ValueError."""
    if machine in ("x86_64", "amd64"):
        # mov eax, 34 (pause); syscall; jmp back
        number, code = 62, bytes.fromhex("b8220000000f05ebf7")
    elif machine in ("aarch64", "arm64"):
        # mov x0..x4, 0; mov x8, 73 (ppoll); svc 0; b back to the first
        words = (
            0xD2800000,
            0xD2800001,
            0xD2800002,
            0xD2800003,
            0xD2800004,
            0xD2800928,
            0xD4000001,
            0x17FFFFF9,
        )
        number, code = 183, struct.pack("<8I", *words)
    else:
        raise ValueError(f"no canary is known for machines of the kind {machine}")
    base, header = 0x400000, 64 + 56
    size = header + len(code)
    elf = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf += struct.pack("<HHIQQQIHHHHHH", 2, number, 1, base + header, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    elf += struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return elf + code


def _make_image(client: APIClient, machine: str) -> None:
    if client.images(name=IMAGE):
        return
    program = waiting_program(machine)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("wait")
        entry.size, entry.mode = len(program), 0o755
        tar.addfile(entry, io.BytesIO(program))
    repository, _, tag = IMAGE.partition(":")
    client.import_image_from_data(packed.getvalue(), repository=repository, tag=tag)


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


LOOKS: Final[dict[str, Look]] = {
    "memory": _memory,
    "cpu": _cpu,
    "processes": _processes,
    "capabilities": _capabilities,
    "unprivileged": _unprivileged,
    "no-new-privileges": _no_new_privileges,
    "seccomp": _seccomp,
    "namespaces": _namespaces,
}


class Canary:
    """Tries one host. Its calls block for seconds: they belong in a thread."""

    def __init__(
        self,
        client: APIClient,
        firewall: Firewall,
        disks: Disks,
        runtime: str | None,
        lines: tuple[Line, ...] = LINES,
    ) -> None:
        self._client, self._firewall, self._disks = client, firewall, disks
        self._runtime = runtime
        self._lines = lines

    def measure(self) -> Isolation:
        """Find out everything. Raises docker.errors.APIError where even a plain container cannot be made."""
        info = self._client.info()
        self.remove_left()
        if info.get("OSType") != "linux" or not CGROUPS.exists():
            says = "Docker runs in a machine that the agent does not see into"
            return Isolation(
                features=(Feature(name="linux", works=False, says=says, remedy="rent out a Linux machine."),)
            )
        _make_image(self._client, str(info["Architecture"]))
        features = [self._feature(name, look) for name, look in LOOKS.items()]
        features.append(_told("walls", self._walls()))
        features.append(self._feature("userns", _userns))
        features.append(_told("quota", self._quota()))
        features.append(_told("loop", self._loop()))
        features.append(_told("gvisor", self._gvisor(info.get("Runtimes") or {})))
        features.append(_told("runc", _runc(self._client.version())))
        return Isolation(tier=tier_of(features), disk_limit=disk_limit_of(features), features=tuple(features))

    def remove_left(self) -> None:
        """What a crash in the middle of this left."""
        for container in self._client.containers(all=True, filters={"label": LABEL}):
            self._client.remove_container(container["Id"], force=True, v=True)
        networks.remove(self._client, NETWORK)

    def _feature(self, name: str, look: Look) -> Feature:
        try:
            return _told(name, self._look(look, self._lines_for(name)))
        except docker.errors.APIError as error:
            return _told(name, said(error))

    def _lines_for(self, name: str) -> tuple[Line, ...]:
        return tuple(line for line in self._lines if line.name == name)

    def _look(self, look: Look, lines: Iterable[Line], **more: object) -> str:
        wanted = Wanted(
            cpus=CPUS, memory_mib=MEMORY_MIB, disk_mib=32, network="none", resolvers=(), disk_limit="poll"
        )
        settings = {"network_mode": "none", **settings_of(lines, wanted), **more}
        made = self._client.create_container(
            IMAGE, ["/wait"], labels={LABEL: ""}, host_config=self._client.create_host_config(**settings)
        )
        try:
            self._client.start(made["Id"])
            state = self._client.inspect_container(made["Id"])["State"]
            return look(state["Pid"]) if state["Running"] else f"it ended at once with {state['ExitCode']}"
        except OSError as error:
            return f"the agent does not see it: {error}"
        finally:
            self._client.remove_container(made["Id"], force=True, v=True)

    def _walls(self) -> str:
        try:
            self._firewall.mend()
            networks.make_named(self._client, NETWORK, {LABEL: ""})
            (config,) = self._client.inspect_network(NETWORK)["IPAM"]["Config"]
            gateway = str(config.get("Gateway") or next(ipaddress.IPv4Network(config["Subnet"]).hosts()))
            return self._look(partial(_walled, gateway), (), network_mode=NETWORK)
        except (WallError, MachineError) as error:
            return str(error)
        except docker.errors.APIError as error:
            return said(error)
        finally:
            networks.remove(self._client, NETWORK)

    def _quota(self) -> str:
        try:
            return self._look(lambda _: "", (), storage_opt={"size": "64M"})
        except docker.errors.APIError as error:
            return said(error)

    def _loop(self) -> str:
        name = "spawn-canary-disk"
        try:
            self._disks.make(self._client, name, 16, {LABEL: ""})
            binds = {name: {"bind": "/disk", "mode": "rw"}}
            return self._look(_disk_is_small, (), binds=binds, read_only=True)
        except (DiskError, OSError) as error:
            return str(error)
        except docker.errors.APIError as error:
            return said(error)
        finally:
            self._disks.remove(self._client, name)

    def _gvisor(self, runtimes: dict[str, object]) -> str:
        if self._runtime is None:
            return "agent.yaml names no runtime"
        if self._runtime not in runtimes:
            return f"Docker knows no runtime {self._runtime}"
        try:
            return self._look(lambda _: "", (), runtime=self._runtime)
        except docker.errors.APIError as error:
            return said(error)


def _walled(gateway: str, pid: int) -> str:
    return "a tenant reaches this machine's own services" if walls.is_open(pid, gateway) else ""


def _disk_is_small(pid: int) -> str:
    size = os.statvfs(f"/proc/{pid}/root/disk")
    mib = size.f_blocks * size.f_frsize // MIB
    return "" if mib <= 16 else f"the disk has {mib} MiB, not 16"


def _runc(version: dict[str, object]) -> str:
    components = version.get("Components")
    for component in components if isinstance(components, list) else ():
        if component["Name"] == "runc":
            numbers = component["Version"].partition("-")[0].partition("+")[0].split(".")
            if tuple(int(number) for number in numbers if number.isdigit()) >= RUNC_MINIMUM:
                return ""
            return f"{component['Version']}: unless your distribution fixed it, tenants can get out (CVE-2025-31133)"
    return "Docker does not say which runc it has"


def _told(name: str, wrong: str) -> Feature:
    return Feature(name=name, works=not wrong, says=wrong, remedy=REMEDIES[name] if wrong else "")


def tier_of(features: Iterable[Feature]) -> Tier:
    """How well tenants are kept apart, by what works."""
    works = {feature.name for feature in features if feature.works}
    if not works.issuperset(FLOOR):
        return "none"
    if "gvisor" in works:
        return "gvisor"
    return "runc+userns+quota" if {"userns", "quota"} <= works else "runc"


def disk_limit_of(features: Iterable[Feature]) -> DiskLimit:
    """The best way there is to keep a tenant within its disk."""
    works = {feature.name for feature in features if feature.works}
    return "quota" if "quota" in works else "loop" if "loop" in works else "poll"
