"""A lent machine as its agent describes it.

Invariant: none of it is trusted: it is shown, and compared with what is measured.
"""

from typing import Literal

import msgspec


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU. Each field that NVML would not tell is None; `problem` says what it said instead."""

    uuid: str
    index: int
    name: str | None = None
    serial: str | None = None
    memory_mib: int | None = None
    memory_free_mib: int | None = None
    memory_is_system: bool = False
    temperature_c: int | None = None
    utilization_percent: int | None = None
    power_w: int | None = None
    pci_bus_id: str | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    pcie_generation_max: int | None = None
    pcie_width_max: int | None = None
    compute_capability: str | None = None
    mig_enabled: bool | None = None
    mig_devices: tuple[str, ...] = ()
    ecc_errors: int | None = None
    remapped_rows: int | None = None
    vbios: str | None = None
    processes: int | None = None
    is_lost: bool = False
    problem: str | None = None


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """Measured against the service's own relay; None where it was not."""

    down_mbit: float | None = None
    up_mbit: float | None = None
    latency_ms: float | None = None


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """What the host's Docker was asked to do, by a canary container, and whether it did."""

    name: str
    works: bool
    says: str = ""
    remedy: str = ""


Tier = Literal["none", "runc", "runc+userns+quota", "gvisor"]
"""How well tenants are kept apart; `none` is below the floor: no tenant that is not known to the owner."""
DiskLimit = Literal["quota", "loop", "poll"]


class Isolation(msgspec.Struct, frozen=True, kw_only=True):
    tier: Tier = "none"
    disk_limit: DiskLimit = "poll"
    features: tuple[Feature, ...] = ()


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """The machine, and what of it its owner lends (`cpus`, `memory_mib`, `disk_mib`, GPUs of `lent_gpus`)."""

    hostname: str
    os: str
    kernel: str
    architecture: Literal["x86", "arm"]
    cpu_model: str
    cpu_cores: int
    cpu_threads: int
    total_memory_mib: int
    total_disk_mib: int
    cpus: float
    memory_mib: int
    disk_mib: int
    gpus: tuple[Gpu, ...] = ()
    lent_gpus: tuple[str, ...] = ()
    nvidia_driver: str | None = None
    cuda: str | None = None
    nvidia_problem: str | None = None
    docker_version: str | None = None
    network: Network = Network()
    isolation: Isolation = Isolation()


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """A heartbeat's figures; None where the machine does not tell."""

    cpu_percent: float | None = None
    cpu_temp_c: float | None = None
    memory_used_mib: int | None = None
    memory_percent: float | None = None
    disk_used_mib: int | None = None
    disk_percent: float | None = None
    gpu_temp_c: tuple[int | None, ...] = ()
    gpu_utilization_percent: tuple[int | None, ...] = ()
