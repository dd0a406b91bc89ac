"""A module like `pynvml`, for machines with none, one, two different, lost and cut-up GPUs.

Invariant: it refuses as the real one does: by `NVMLError` with the code of nvml.h, before `nvmlInit` as after a loss,
and field by field where a model lacks the field.
"""

# ruff: noqa: N802 - the names are NVML's own

from types import SimpleNamespace
from typing import Any

import msgspec

UNINITIALIZED = 1
NOT_SUPPORTED = 3
NOT_FOUND = 6
DRIVER_NOT_LOADED = 9
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
VERSION_MISMATCH = 18
GIB = 1024**3


class NVMLError(Exception):
    """As pynvml's: the code is in `value`."""

    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


class FakeGpu(msgspec.Struct, kw_only=True):
    """One GPU. `refuses` are the questions that it answers with a code; `is_lost` refuses all of them."""

    name: str
    uuid: str
    memory: int
    compute: tuple[int, int] = (8, 9)
    temperature: int = 41
    utilization: int = 7
    milliwatts: int = 68_400
    processes: int = 0
    parts: dict[int, str] | None = None
    refuses: dict[str, int] = {}
    is_lost: bool = False


def rtx_4090() -> FakeGpu:
    return FakeGpu(
        name="NVIDIA GeForce RTX 4090",
        uuid="GPU-11111111-2222-3333-4444-555555555555",
        memory=24 * GIB,
        refuses={"nvmlDeviceGetSerial": NOT_SUPPORTED, "nvmlDeviceGetMigMode": NOT_SUPPORTED},
    )


def a100(parts: dict[int, str] | None = None) -> FakeGpu:
    return FakeGpu(
        name="NVIDIA A100-SXM4-80GB",
        uuid="GPU-aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
        memory=80 * GIB,
        compute=(8, 0),
        parts=parts,
    )


class FakeNvml:
    """The module. `init` is the code with which `nvmlInit` refuses."""

    NVMLError = NVMLError

    def __init__(self, *gpus: FakeGpu, init: int | None = None) -> None:
        self.gpus = list(gpus)
        self.init = init
        self.initialized = False
        self.shutdowns = 0

    # --- the machine

    def nvmlInit(self) -> None:
        if self.init is not None:
            raise NVMLError(self.init)
        self.initialized = True

    def nvmlShutdown(self) -> None:
        self._ready()
        self.initialized = False
        self.shutdowns += 1

    def nvmlSystemGetDriverVersion(self) -> str:
        self._ready()
        return "570.133.20"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        self._ready()
        return 12080

    def nvmlDeviceGetCount(self) -> int:
        self._ready()
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        self._ready()
        gpu = self.gpus[index]
        if gpu.is_lost or "nvmlDeviceGetHandleByIndex" in gpu.refuses:
            raise NVMLError(gpu.refuses.get("nvmlDeviceGetHandleByIndex", GPU_IS_LOST))
        return gpu

    # --- one device; a part of one is its UUID

    def nvmlDeviceGetUUID(self, gpu: FakeGpu | str) -> str:
        if isinstance(gpu, str):
            return gpu
        self._asked(gpu, "nvmlDeviceGetUUID")
        return gpu.uuid

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: FakeGpu, index: int) -> str:
        self._asked(gpu, "nvmlDeviceGetMigDeviceHandleByIndex")
        if index not in (gpu.parts or {}):
            raise NVMLError(NOT_FOUND)
        assert gpu.parts is not None
        return gpu.parts[index]

    def __getattr__(self, name: str) -> Any:
        """The questions that are all alike."""
        answers = _ANSWERS.get(name)
        if answers is None:
            raise AttributeError(name)

        def ask(gpu: FakeGpu, *_: int) -> Any:
            self._asked(gpu, name)
            return answers(gpu)

        return ask

    def _ready(self) -> None:
        if not self.initialized:
            raise NVMLError(UNINITIALIZED)

    def _asked(self, gpu: FakeGpu, name: str) -> None:
        self._ready()
        if gpu.is_lost:
            raise NVMLError(GPU_IS_LOST)
        if name in gpu.refuses:
            raise NVMLError(gpu.refuses[name])


_ANSWERS: dict[str, Any] = {
    "nvmlDeviceGetName": lambda gpu: gpu.name,
    "nvmlDeviceGetSerial": lambda gpu: "1320000000001",
    "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(total=gpu.memory, free=gpu.memory - GIB, used=GIB),
    "nvmlDeviceGetTemperatureV": lambda gpu: gpu.temperature,
    "nvmlDeviceGetTemperature": lambda gpu: gpu.temperature,
    "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=gpu.utilization, memory=3),
    "nvmlDeviceGetPowerUsage": lambda gpu: gpu.milliwatts,
    "nvmlDeviceGetPciInfo": lambda gpu: SimpleNamespace(busId=b"00000000:01:00.0"),
    "nvmlDeviceGetCurrPcieLinkGeneration": lambda gpu: 4,
    "nvmlDeviceGetCurrPcieLinkWidth": lambda gpu: 8,
    "nvmlDeviceGetMaxPcieLinkGeneration": lambda gpu: 5,
    "nvmlDeviceGetMaxPcieLinkWidth": lambda gpu: 16,
    "nvmlDeviceGetMigMode": lambda gpu: [int(gpu.parts is not None), 0],
    "nvmlDeviceGetMaxMigDeviceCount": lambda gpu: 7,
    "nvmlDeviceGetCudaComputeCapability": lambda gpu: gpu.compute,
    "nvmlDeviceGetComputeRunningProcesses": lambda gpu: [object()] * gpu.processes,
    "nvmlDeviceGetTotalEccErrors": lambda gpu: 2,
    "nvmlDeviceGetRemappedRows": lambda gpu: (1, 2, 0, 0),
    "nvmlDeviceGetVbiosVersion": lambda gpu: "95.02.3C.80.E1",
}
