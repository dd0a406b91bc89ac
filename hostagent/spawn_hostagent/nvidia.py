"""NVIDIA's GPUs as NVML tells of them: each field by itself, since any one of them may be refused.

Invariant: nothing that NVML says or fails to say raises. What it will not tell is None, and `problem` says why in
words that lead on. NVML is handed in as a module (`pynvml`, or one with the same names); its calls block.
"""

import ctypes
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec
from spawn_schemas.inventory import Gpu

MIB: Final = 1024 * 1024

# NVML's return codes (nvml.h, `nvmlReturn_t`); a module of another version has the same.
UNINITIALIZED: Final = 1
NOT_SUPPORTED: Final = 3
NOT_FOUND: Final = 6
DRIVER_NOT_LOADED: Final = 9
LIBRARY_NOT_FOUND: Final = 12
FUNCTION_NOT_FOUND: Final = 13
GPU_IS_LOST: Final = 15
RESET_REQUIRED: Final = 16
VERSION_MISMATCH: Final = 18
NO_DATA: Final = 21

_UNTOLD: Final = frozenset({NOT_SUPPORTED, FUNCTION_NOT_FOUND, NO_DATA})
"""Not a fault: this model, or this driver, does not have the field."""
_SAYINGS: Final[Mapping[int, str]] = {
    DRIVER_NOT_LOADED: "the NVIDIA driver is installed and not loaded: reboot, or run `modprobe nvidia`",
    LIBRARY_NOT_FOUND: "the NVIDIA driver is not installed: install the one that your distribution recommends",
    GPU_IS_LOST: "the GPU fell off the bus: reboot; if it comes back, look at its power and its slot",
    RESET_REQUIRED: "the GPU must be reset: reboot",
    VERSION_MISMATCH: "the NVIDIA driver was upgraded and the old one still runs: reboot",
}
_TEMPERATURE_OF_GPU: Final = 0
_UNCORRECTED: Final = 1
_AGGREGATE: Final = 1
_MIG_MOST: Final = 16


class Nvidia(msgspec.Struct, frozen=True, kw_only=True):
    """What NVML said of the machine. `cuda` is the newest that the driver runs, as `12.4`."""

    driver: str | None = None
    cuda: str | None = None
    problem: str | None = None
    gpus: tuple[Gpu, ...] = ()


def load_pynvml() -> Any:
    """The module `pynvml`, or None where the driver's library is not there: it costs 13 MiB to import."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return None
    elif sys.platform == "darwin":
        return None
    import pynvml  # type: ignore[import-untyped]  # noqa: PLC0415 - see above

    return pynvml


class NvmlReader:
    """Reads all GPUs, as often as asked, from one thread at a time.

    `system_memory_mib` stands in where GPU and CPU share their memory and NVML refuses to tell the GPU's (GB10).
    """

    def __init__(self, load: Callable[[], Any], system_memory_mib: int) -> None:
        self._load = load
        self._system_memory_mib = system_memory_mib
        self._nvml: Any = None
        self._uuids: dict[int, str] = {}

    def read(self) -> Nvidia:
        """Everything. A driver that was broken is tried again each time."""
        if (problem := self._open()) is not None:
            return Nvidia(problem=problem)
        asked = _Asked(self._nvml)
        driver = asked("nvmlSystemGetDriverVersion")
        cuda = asked("nvmlSystemGetCudaDriverVersion_v2")
        count = asked("nvmlDeviceGetCount") or 0
        gpus = tuple(self._gpu(index) for index in range(count))
        if UNINITIALIZED in asked.codes:
            self.close()
        return Nvidia(
            driver=None if driver is None else _text(driver),
            cuda=None if not cuda else f"{cuda // 1000}.{cuda % 1000 // 10}",
            problem=asked.problem(),
            gpus=gpus,
        )

    def heat(self) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """Temperature in °C and utilization in percent of each GPU, and nothing else: asked with each heartbeat."""
        if self._open() is not None:
            return (), ()
        found = []
        for index in range(_Asked(self._nvml)("nvmlDeviceGetCount") or 0):
            handle = _Asked(self._nvml)("nvmlDeviceGetHandleByIndex", index)
            asked = _Asked(self._nvml, handle)
            found.append((_temperature(asked), _utilization(asked)) if handle is not None else (None, None))
        return tuple(heat for heat, _ in found), tuple(use for _, use in found)

    def close(self) -> None:
        """Let go of the driver, so that it can be upgraded; the next read takes hold again."""
        if self._nvml is not None:
            with suppress(self._nvml.NVMLError):  # it was not initialized, which is what is wanted
                self._nvml.nvmlShutdown()
        self._nvml = None

    def _open(self) -> str | None:
        """Initialize, unless it is; what was in the way, or None."""
        if self._nvml is not None:
            return None
        nvml = self._load()
        if nvml is None:
            return _SAYINGS[LIBRARY_NOT_FOUND]
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            if error.value == LIBRARY_NOT_FOUND:
                return _SAYINGS[LIBRARY_NOT_FOUND]
            return _saying(error)
        self._nvml = nvml
        return None

    def _gpu(self, index: int) -> Gpu:
        first = _Asked(self._nvml)
        handle = first("nvmlDeviceGetHandleByIndex", index)
        asked = _Asked(self._nvml, handle, first)
        if handle is None:
            return Gpu(
                uuid=self._uuids.get(index, f"unknown-{index}"),
                index=index,
                is_lost=GPU_IS_LOST in asked.codes,
                problem=asked.problem() or "NVML does not say what it is",
            )
        uuid = asked("nvmlDeviceGetUUID")
        if uuid is not None:
            self._uuids[index] = _text(uuid)
        return self._described(index, asked)

    def _described(self, index: int, asked: "_Asked") -> Gpu:
        total, free, is_system = self._memory(asked)
        mig = _mig_enabled(asked)
        power = asked("nvmlDeviceGetPowerUsage")
        compute = asked("nvmlDeviceGetCudaComputeCapability")
        pci = asked("nvmlDeviceGetPciInfo")
        remapped = asked("nvmlDeviceGetRemappedRows")
        processes = asked("nvmlDeviceGetComputeRunningProcesses")
        fields: dict[str, Any] = {
            "name": _text_of(asked("nvmlDeviceGetName")),
            "serial": _text_of(asked("nvmlDeviceGetSerial")),
            "memory_mib": total,
            "memory_free_mib": free,
            "memory_is_system": is_system,
            "temperature_c": _temperature(asked),
            "utilization_percent": _utilization(asked),
            "power_w": None if power is None else round(power / 1000),
            "pci_bus_id": None if pci is None else _text(pci.busId),
            "pcie_generation": asked("nvmlDeviceGetCurrPcieLinkGeneration"),
            "pcie_width": asked("nvmlDeviceGetCurrPcieLinkWidth"),
            "pcie_generation_max": asked("nvmlDeviceGetMaxPcieLinkGeneration"),
            "pcie_width_max": asked("nvmlDeviceGetMaxPcieLinkWidth"),
            "compute_capability": None if compute is None else f"{compute[0]}.{compute[1]}",
            "mig_enabled": mig,
            "mig_devices": _mig_devices(asked) if mig else (),
            "ecc_errors": asked("nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _AGGREGATE),
            "remapped_rows": None if remapped is None else remapped[0] + remapped[1],
            "vbios": _text_of(asked("nvmlDeviceGetVbiosVersion")),
            "processes": None if processes is None else len(processes),
        }
        return Gpu(
            uuid=self._uuids.get(index, f"unknown-{index}"),
            index=index,
            is_lost=GPU_IS_LOST in asked.codes,
            problem=asked.problem(),
            **fields,
        )

    def _memory(self, asked: "_Asked") -> tuple[int | None, int | None, bool]:
        memory = asked("nvmlDeviceGetMemoryInfo")
        if memory is not None:
            return memory.total // MIB, memory.free // MIB, False
        if asked.last in _UNTOLD:
            return self._system_memory_mib, None, True
        return None, None, False


class _Asked:
    """Puts questions to NVML, of the machine or of one device, and keeps what it refused."""

    def __init__(self, nvml: Any, handle: Any = None, before: "_Asked | None" = None) -> None:
        self._nvml = nvml
        self._handle = handle
        self._refused: dict[str, str] = {} if before is None else dict(before._refused)
        self.codes: set[int] = set() if before is None else set(before.codes)
        self.last: int | None = None
        """The code of the last question, None for an answer."""

    def __call__(self, name: str, *arguments: Any) -> Any:
        self.last = None
        function = getattr(self._nvml, name, None)
        if function is None:  # a module older than the question
            self.last = FUNCTION_NOT_FOUND
            return None
        device = () if self._handle is None else (self._handle,)
        try:
            return function(*device, *arguments)
        except self._nvml.NVMLError as error:
            self.last = error.value
            self.codes.add(error.value)
            if error.value not in _UNTOLD:
                self._refused[name] = _saying(error)
            return None

    def part(self, index: int) -> str | None:
        """The UUID of one MIG device; None for a number that no part has."""
        try:
            part = self._nvml.nvmlDeviceGetMigDeviceHandleByIndex(self._handle, index)
            return _text(self._nvml.nvmlDeviceGetUUID(part))
        except self._nvml.NVMLError as error:
            if error.value != NOT_FOUND:
                self.codes.add(error.value)
                self._refused["nvmlDeviceGetMigDeviceHandleByIndex"] = _saying(error)
            return None

    def problem(self) -> str | None:
        """One sentence on all that was refused; a lost GPU refuses everything, and is said once."""
        for code in (GPU_IS_LOST, VERSION_MISMATCH, DRIVER_NOT_LOADED, RESET_REQUIRED):
            if code in self.codes:
                return _SAYINGS[code]
        if not self._refused:
            return None
        told = (f"{name.removeprefix('nvml')}: {saying}" for name, saying in sorted(self._refused.items()))
        return "NVML refused " + "; ".join(told)


def _saying(error: Any) -> str:
    return _SAYINGS.get(error.value) or f"{error} (NVML code {error.value})"


def _temperature(asked: _Asked) -> int | None:
    found = asked("nvmlDeviceGetTemperatureV", _TEMPERATURE_OF_GPU)
    if found is None and asked.last == FUNCTION_NOT_FOUND:  # drivers before 565
        found = asked("nvmlDeviceGetTemperature", _TEMPERATURE_OF_GPU)
    return None if found is None else int(found)


def _utilization(asked: _Asked) -> int | None:
    found = asked("nvmlDeviceGetUtilizationRates")
    return None if found is None else int(found.gpu)


def _mig_enabled(asked: _Asked) -> bool | None:
    found = asked("nvmlDeviceGetMigMode")
    return None if found is None else bool(found[0])


def _mig_devices(asked: _Asked) -> tuple[str, ...]:
    """The UUIDs of the GPU's parts. They are numbered with gaps, and a gap is NOT_FOUND."""
    most = min(asked("nvmlDeviceGetMaxMigDeviceCount") or 0, _MIG_MOST)
    return tuple(uuid for uuid in map(asked.part, range(most)) if uuid is not None)


def _text_of(found: Any) -> str | None:
    return None if found is None else _text(found)


def _text(found: Any) -> str:
    """Modules of some versions answer in bytes."""
    return found.decode(errors="replace") if isinstance(found, bytes) else str(found)
