"""What the machine is made of, and how busy it is: the inventory and the figures of a heartbeat.

Invariant: detection never fails the agent. What the machine does not tell is None; what is lent never exceeds what
the owner's limits say, nor what is there less a reserve for the machine itself.
"""

import platform
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import psutil
from spawn_schemas.inventory import Gpu, Inventory, Isolation, Metrics, Network

from spawn_hostagent.config import MIB_PER_GB, Limits
from spawn_hostagent.files import write_private
from spawn_hostagent.nvidia import MIB, Nvidia, NvmlReader, load_pynvml

PCI_DEVICES: Final = Path("/sys/bus/pci/devices")
DISKS_FOLDER: Final = "disks"
NETWORK_FILE: Final = "network.json"
CPU_INFO: Final = Path("/proc/cpuinfo")
_DISPLAY_CLASSES: Final = ("0x0300", "0x0302", "0x0380", "0x1200")
"""PCI classes of what computes or shows: VGA, 3D, other display, processing accelerator."""
_VENDORS: Final = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
_CPU_SENSORS: Final = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")
"""Names of the kernel's drivers of CPU sensors, the best first."""
RESERVE_SHARE: Final = 10
"""One part in so many stays with the machine where the owner set no limit."""
RESERVE_MEMORY_MIB: Final = 1024
RESERVE_DISK_MIB: Final = 10 * MIB_PER_GB


class System(msgspec.Struct, frozen=True, kw_only=True):
    """The machine without its GPUs. `free_disk_mib` is of the file system that rentals are kept on."""

    hostname: str
    os: str
    kernel: str
    architecture: Literal["x86", "arm"]
    cpu_model: str
    cpu_cores: int
    cpu_threads: int
    total_memory_mib: int
    total_disk_mib: int
    free_disk_mib: int


class Lent(msgspec.Struct, frozen=True, kw_only=True):
    """What of the machine all tenants together may have; `gpus` are UUIDs."""

    cpus: float
    memory_mib: int
    disk_mib: int
    gpus: tuple[str, ...]


class UnsupportedMachine(Exception):
    """Nothing that we know runs on it; the message names what it is."""


class HardwareDetector:
    """Looks at the machine. Every call blocks for up to some hundred milliseconds: keep it off the event loop.

    `storage` is where rentals lie on disk; `load_nvml` returns a module like `pynvml`, or None; `network` is what was
    measured before.
    """

    def __init__(
        self,
        limits: Limits,
        storage: Path,
        *,
        load_nvml: Callable[[], Any] = load_pynvml,
        pci: Path = PCI_DEVICES,
        network: Network | None = None,
    ) -> None:
        self._limits = limits
        self._storage = _existing(storage)
        self._pci = pci
        self._nvml = NvmlReader(load_nvml, psutil.virtual_memory().total // MIB)
        self._network = network or Network()
        psutil.cpu_percent(None)  # the first answer of a process is meaningless

    def detect_gpus(self) -> Nvidia:
        """NVIDIA's GPUs and their driver. That there is no driver is a problem only where there is a GPU."""
        found = self._nvml.read()
        if found.driver is None and not found.gpus and "NVIDIA" not in self.display_vendors():
            return Nvidia()
        return found

    def detect_system(self) -> System:
        """Everything but GPUs. Raises UnsupportedMachine on a processor that is neither x86-64 nor 64-bit ARM."""
        disk = psutil.disk_usage(str(self._storage))
        threads = psutil.cpu_count() or 1
        return System(
            hostname=socket.gethostname(),
            os=_os_name(),
            kernel=platform.release(),
            architecture=_architecture(platform.machine()),
            cpu_model=_cpu_model(),
            cpu_cores=psutil.cpu_count(logical=False) or threads,
            cpu_threads=threads,
            total_memory_mib=psutil.virtual_memory().total // MIB,
            total_disk_mib=disk.total // MIB,
            free_disk_mib=disk.free // MIB,
        )

    def detect_network(self, measure: Callable[[], Network]) -> Network:
        """Measure against the service's relay (`preflight.speed` does), and remember it for inventories."""
        self._network = measure()
        return self._network

    def inventory(
        self, isolation: Isolation | None = None, docker_version: str | None = None, used_disk_mib: int = 0
    ) -> Inventory:
        """The machine and what is lent of it. `used_disk_mib` is what rentals say that they take now; it stays lent."""
        system = self.detect_system()
        nvidia = self.detect_gpus()
        # A disk of fixed size keeps what its tenant deleted, and one that is stopped does not say what it has.
        used_mib = max(used_disk_mib, used_by_disks(self._storage))
        lent = lend(self._limits, system, nvidia.gpus, used_mib)
        return Inventory(
            hostname=system.hostname,
            os=system.os,
            kernel=system.kernel,
            architecture=system.architecture,
            cpu_model=system.cpu_model,
            cpu_cores=system.cpu_cores,
            cpu_threads=system.cpu_threads,
            total_memory_mib=system.total_memory_mib,
            total_disk_mib=system.total_disk_mib,
            cpus=lent.cpus,
            memory_mib=lent.memory_mib,
            disk_mib=lent.disk_mib,
            gpus=nvidia.gpus,
            lent_gpus=lent.gpus,
            nvidia_driver=nvidia.driver,
            cuda=nvidia.cuda,
            nvidia_problem=nvidia.problem,
            docker_version=docker_version,
            network=self._network,
            isolation=isolation or Isolation(),
        )

    def metrics(self) -> Metrics:
        """The figures of a heartbeat; CPU is the mean since the call before."""
        memory = psutil.virtual_memory()
        disk = psutil.disk_usage(str(self._storage))
        heat, use = self._nvml.heat()
        return Metrics(
            cpu_percent=psutil.cpu_percent(None),
            cpu_temp_c=_cpu_temperature(),
            memory_used_mib=(memory.total - memory.available) // MIB,
            memory_percent=memory.percent,
            disk_used_mib=disk.used // MIB,
            disk_percent=disk.percent,
            gpu_temp_c=heat,
            gpu_utilization_percent=use,
        )

    def display_vendors(self) -> frozenset[str]:
        """Whose GPUs are plugged in, driver or not: `NVIDIA`, `AMD`, `Intel`."""
        found = set()
        for device in sorted(self._pci.glob("*")) if self._pci.is_dir() else []:
            if _read(device / "class")[:6] in _DISPLAY_CLASSES:
                found.add(_VENDORS.get(_read(device / "vendor"), "unknown"))
        return frozenset(found)

    def close(self) -> None:
        """Let go of the NVIDIA driver."""
        self._nvml.close()


def lend(limits: Limits, system: System, gpus: tuple[Gpu, ...], used_disk_mib: int = 0) -> Lent:
    """What the owner lends: each limit, but never more than there is; without one, all but a reserve."""
    memory = max(
        0, system.total_memory_mib - max(RESERVE_MEMORY_MIB, system.total_memory_mib // RESERVE_SHARE)
    )
    room = system.free_disk_mib + used_disk_mib
    disk = max(0, room - max(RESERVE_DISK_MIB, system.total_disk_mib // RESERVE_SHARE))
    cpus = system.cpu_threads * (RESERVE_SHARE - 1) / RESERVE_SHARE
    return Lent(
        cpus=cpus if limits.cpus is None else min(limits.cpus, system.cpu_threads),
        memory_mib=memory
        if limits.memory_gb is None
        else min(_mib(limits.memory_gb), system.total_memory_mib),
        disk_mib=disk if limits.disk_gb is None else min(_mib(limits.disk_gb), room),
        gpus=tuple(gpu.uuid for gpu in gpus if is_lendable(gpu) and _chosen(gpu, limits)),
    )


def used_by_disks(state_dir: Path) -> int:
    """MiB that tenants' disks of fixed size take now: their files have holes, and grow up to what was promised."""
    sizes = (path.stat().st_blocks * 512 for path in (state_dir / DISKS_FOLDER).glob("*.img"))
    return sum(sizes) // MIB


def is_lendable(gpu: Gpu) -> bool:
    """Whether a tenant can have it: it answers, has a name of its own, and is not cut up (MIG is only detected)."""
    return not gpu.is_lost and not gpu.mig_enabled and not gpu.uuid.startswith("unknown-")


def unknown_gpus(limits: Limits, gpus: tuple[Gpu, ...]) -> tuple[str, ...]:
    """Those of the owner's list that the machine does not have."""
    if isinstance(limits.gpus, str):
        return ()
    have = {name for gpu in gpus for name in (gpu.uuid, gpu.index)}
    return tuple(str(wanted) for wanted in limits.gpus if wanted not in have)


def _chosen(gpu: Gpu, limits: Limits) -> bool:
    if isinstance(limits.gpus, str):
        return limits.gpus == "all"
    return gpu.uuid in limits.gpus or gpu.index in limits.gpus


def _mib(gigabytes: float) -> int:
    return int(gigabytes * MIB_PER_GB)


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there: state is measured before it is made."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def _architecture(machine: str) -> Literal["x86", "arm"]:
    match machine.lower():
        case "x86_64" | "amd64":
            return "x86"
        case "aarch64" | "arm64":
            return "arm"
        case other:
            raise UnsupportedMachine(
                f"this machine is {other or 'of an unknown kind'}: only 64-bit x86 and ARM are lent."
            )


def _os_name() -> str:
    if sys.platform == "linux":
        try:
            release = platform.freedesktop_os_release()
        except OSError:
            return "Linux"
        return release.get("PRETTY_NAME", "Linux")
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    return f"{platform.system()} {platform.version()}"


def _cpu_model() -> str:
    """The marketing name on x86; ARM's kernels do not tell one."""
    for line in _read(CPU_INFO).splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or platform.machine()


def _cpu_temperature() -> float | None:
    """None where there are no sensors: in a virtual machine, and outside Linux."""
    read: Callable[[], dict[str, list[Any]]] | None = getattr(psutil, "sensors_temperatures", None)
    if read is None:
        return None
    sensors = read()
    for name in _CPU_SENSORS:
        if told := [sensor.current for sensor in sensors.get(name, ()) if sensor.current is not None]:
            return float(max(told))
    return None


def _read(path: Path) -> str:
    """What the kernel says in a file, or nothing where it has no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def load_network(state_dir: Path) -> Network:
    """What was measured last; nothing where nothing was, or where the file is not ours to read."""
    try:
        return msgspec.json.decode((state_dir / NETWORK_FILE).read_bytes(), type=Network)
    except (OSError, msgspec.DecodeError):
        return Network()


def save_network(state_dir: Path, network: Network) -> None:
    """Keep it for the inventories of the daemon. Raises Failure."""
    write_private(state_dir / NETWORK_FILE, msgspec.json.encode(network))
