"""What this host's Docker really does: a canary container for each feature, looked at from the kernel's side.

Invariant: a feature works if the kernel says so of a running process, not if Docker took the setting: Docker accepts
some that it ignores. What does not work is tried again at once: one hiccup is no fault of the machine. Nothing has to
be pulled for it: the canary's image is made here.
"""

import io
import ipaddress
import tarfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import docker.errors
from docker import APIClient
from spawn_schemas.inventory import DiskLimit, Feature, Isolation, Tier

from spawn_hostagent.docker.engine import said, take_away
from spawn_hostagent.failures import Failure
from spawn_hostagent.files import held
from spawn_hostagent.machines import MachineError
from spawn_hostagent.preflight.programs import Run, runc_backport, toolkit_version
from spawn_hostagent.preflight.versions import (
    RUNC_FIX,
    TOOLKIT_FIX,
    parse_version,
    runc_is_fixed,
    toolkit_is_fixed,
)
from spawn_hostagent.walls import networks
from spawn_hostagent.walls.admission import refuse
from spawn_hostagent.walls.canary_image import END, LOG_PROGRAM, WAIT_PROGRAM, programs_for
from spawn_hostagent.walls.disks import DiskError, Disks
from spawn_hostagent.walls.firewall import WallError
from spawn_hostagent.walls.isolation import LINES, Line, Wanted, settings_of
from spawn_hostagent.walls.looks import CGROUPS, CPUS, LIMITS, MEMORY_MIB, PRIVILEGES, Look, is_small, walled

IMAGE: Final = "spawn-canary:2"
LABEL: Final = "sh.spawn.canary"
MEASURE_S_MAX: Final = 120
NAME: Final = "spawn-canary"
BRIDGE: Final = "spw-canary"
"""Walled in like the tenants' own."""
DISK_MIB: Final = 16
QUOTA: Final = {"size": "64M"}
QUOTA_MIB: Final = 64
LOG_PATIENCE_S: Final = 10.0
FLOOR: Final = (*LIMITS, *(name for name in PRIVILEGES if name != "userns"), "walls", "runc")
"""Without one of these no unknown tenant comes here."""
FLOOR_IF_MEASURED: Final = ("linux", "toolkit")
"""Likewise, where it is looked at: the toolkit is where a card is lent."""
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
    "runc": f"update runc to 1.2.8, 1.3.3, 1.4.0-rc.3 or a distribution's backport of the fix ({RUNC_FIX}).",
    "toolkit": f"upgrade nvidia-container-toolkit to 1.17.8 or newer ({TOOLKIT_FIX}), or set limits.gpus: none.",
}


def _make_image(client: APIClient, machine: str) -> None:
    if client.images(name=IMAGE):
        return
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, program in programs_for(machine).items():
            entry = tarfile.TarInfo(name.lstrip("/"))
            entry.size, entry.mode = len(program), 0o755
            tar.addfile(entry, io.BytesIO(program))
    repository, _, tag = IMAGE.partition(":")
    client.import_image_from_data(packed.getvalue(), repository=repository, tag=tag)


class Canary:
    """Tries one host. Its calls block for seconds: they belong in a thread.

    `put_up_walls` makes the walls stand that are tried, around `bridge` among others; `name` is of everything that is
    made, so that two at once do not meet. `run` runs programs that tell versions.
    """

    def __init__(
        self,
        client: APIClient,
        put_up_walls: Callable[[], None],
        disks: Disks,
        runtime: str | None,
        run: Run,
        *,
        has_cards: bool,
        lines: tuple[Line, ...] = LINES,
        name: str = NAME,
        bridge: str = BRIDGE,
    ) -> None:
        self._client, self._put_up_walls, self._disks = client, put_up_walls, disks
        self._runtime, self._run, self._has_cards = runtime, run, has_cards
        self._lines, self._name, self._bridge = lines, name, bridge

    def measure(self) -> Isolation:
        """Find out everything, alone: to a check beside the daemon its canaries would be what a crash left.

        Raises docker.errors.APIError where even a plain container cannot be made, and MachineError.
        """
        try:
            with held(self._disks.lock, MEASURE_S_MAX):
                return self._measure()
        except Failure as error:
            raise refuse("docker_failed", str(error)) from error

    def _measure(self) -> Isolation:
        info = self._client.info()
        self.remove_left()
        if info.get("OSType") != "linux" or not CGROUPS.exists():
            says = "Docker runs in a machine that the agent does not see into"
            return Isolation(
                features=(Feature(name="linux", works=False, says=says, remedy="rent out a Linux machine."),)
            )
        _make_image(self._client, str(info["Architecture"]))
        gvisor = self._tried("gvisor", lambda: self._gvisor(info.get("Runtimes") or {}))
        # Under gVisor the process that the host sees is gVisor's own, with the privileges that it works with.
        plain = None if gvisor.works else self._runtime
        features = [
            *(self._feature(name, look, self._runtime) for name, look in LIMITS.items()),
            *(self._feature(name, look, plain) for name, look in PRIVILEGES.items()),
            self._tried("walls", self._walls),
            self._tried("quota", self._quota),
            self._tried("loop", self._loop),
            gvisor,
            self._tried("runc", self._runc),
            *([self._tried("toolkit", self._toolkit)] if self._has_cards else []),
        ]
        return Isolation(tier=tier_of(features), disk_limit=disk_limit_of(features), features=tuple(features))

    def remove_left(self) -> None:
        """What a crash in the middle of this left."""
        for container in self._client.containers(all=True, filters={"label": f"{LABEL}={self._name}"}):
            # An image brings labels, to tenants' containers and the owner's, and no name.
            if f"/{self._name}" in container["Names"]:
                take_away(self._client, container["Id"])
        networks.remove(self._client, self._name)

    def _feature(self, name: str, look: Look, runtime: str | None) -> Feature:
        lines = [line for line in self._lines if line.name in (name, "runtime")]
        return self._tried(name, lambda: self._look(look, lines, runtime))

    def _tried(self, name: str, attempt: Callable[[], str]) -> Feature:
        """What became of it, at the second try if the first said that something is wrong."""
        wrong = self._told(attempt) and self._told(attempt)
        return Feature(name=name, works=not wrong, says=wrong, remedy=REMEDIES[name] if wrong else "")

    def _told(self, attempt: Callable[[], str]) -> str:
        try:
            return attempt()
        except docker.errors.APIError as error:
            return said(error)
        except (DiskError, MachineError, WallError) as error:
            return str(error)
        except OSError as error:
            return f"the agent does not see it: {error}"

    def _look(
        self,
        look: Look,
        lines: Iterable[Line] = (),
        runtime: str | None = None,
        program: str = WAIT_PROGRAM,
        **more: object,
    ) -> str:
        wanted = Wanted(
            cpus=CPUS,
            memory_mib=MEMORY_MIB,
            disk_mib=32,
            network="none",
            resolvers=(),
            disk_limit="poll",
            runtime=runtime,
        )
        settings = {"network_mode": "none", **settings_of(lines, wanted), **more}
        made = self._client.create_container(
            IMAGE,
            [program],
            name=self._name,
            labels={LABEL: self._name},
            host_config=self._client.create_host_config(**settings),
        )
        try:
            self._client.start(made["Id"])
            state = self._client.inspect_container(made["Id"])["State"]
            return look(state["Pid"]) if state["Running"] else f"it ended at once with {state['ExitCode']}"
        finally:
            take_away(self._client, made["Id"])

    def _walls(self) -> str:
        self._put_up_walls()
        try:
            networks.make_named(self._client, self._name, {LABEL: self._name}, self._bridge)
            (config,) = self._client.inspect_network(self._name)["IPAM"]["Config"]
            gateway = str(config.get("Gateway") or next(ipaddress.IPv4Network(config["Subnet"]).hosts()))
            return self._look(partial(walled, gateway), network_mode=self._name)
        finally:
            networks.remove(self._client, self._name)

    def _quota(self) -> str:
        return self._look(partial(is_small, "/", QUOTA_MIB), storage_opt=QUOTA)

    def _loop(self) -> str:
        name = f"{self._name}-disk"
        try:
            self._disks.make(self._client, name, DISK_MIB, {LABEL: self._name})
            binds = {name: {"bind": "/disk", "mode": "rw"}}
            return self._look(partial(is_small, "/disk", DISK_MIB), binds=binds, read_only=True)
        finally:
            self._disks.remove(self._client, name)

    def _gvisor(self, runtimes: dict[str, object]) -> str:
        if self._runtime is None:
            return "agent.yaml names no runtime"
        if self._runtime not in runtimes:
            return f"Docker knows no runtime {self._runtime}"
        lines = [line for line in self._lines if line.name in ("logs", "runtime")]
        return self._look(lambda _: self._kernel_of_it(), lines, self._runtime, LOG_PROGRAM)

    def _kernel_of_it(self) -> str:
        """gVisor's kernel says so in its log, which any program inside may read; Linux keeps its own from them."""
        deadline, log = time.monotonic() + LOG_PATIENCE_S, b""
        while END not in log and time.monotonic() < deadline:
            time.sleep(0.05)
            log = self._client.logs(self._name, stdout=True, stderr=False)
        if b"gVisor" in log:
            return ""
        return f"a program under the runtime {self._runtime} does not find gVisor's kernel around it"

    def _runc(self) -> str:
        parts = self._client.version().get("Components") or ()
        told = next((str(part.get("Version", "")) for part in parts if part.get("Name") == "runc"), "")
        version = parse_version(told)
        if version is None:
            return "Docker does not tell the version of its runc"
        if runc_is_fixed(version) or runc_backport(self._run):
            return ""
        return f"{told} lets a container out ({RUNC_FIX}), and its changelog names no backport"

    def _toolkit(self) -> str:
        told = toolkit_version(self._run)
        # Where there is none, no container gets a card, and none gets out by it.
        if told is None or toolkit_is_fixed(told):
            return ""
        return f"{told} lets a container out ({TOOLKIT_FIX})"


def why_below(isolation: Isolation) -> str:
    """What keeps strangers away from this host, in words, with what to do."""
    return "; ".join(
        f"{feature.name}: {feature.says} - {feature.remedy}" for feature in below_floor(isolation.features)
    )


def below_floor(features: Iterable[Feature]) -> tuple[Feature, ...]:
    """What keeps strangers away: each with what is wrong and what to do."""
    return tuple(
        feature for feature in features if feature.name in (*FLOOR, *FLOOR_IF_MEASURED) and not feature.works
    )


def tier_of(features: Iterable[Feature]) -> Tier:
    """How well tenants are kept apart, by what works."""
    measured = tuple(features)
    works = {feature.name for feature in measured if feature.works}
    if below_floor(measured) or not works.issuperset(FLOOR):
        return "none"
    if "gvisor" in works:
        return "gvisor"
    return "runc+userns+quota" if {"userns", "quota"} <= works else "runc"


def disk_limit_of(features: Iterable[Feature]) -> DiskLimit:
    """The best way there is to keep a tenant within its disk."""
    works = {feature.name for feature in features if feature.works}
    return "quota" if "quota" in works else "loop" if "loop" in works else "poll"
