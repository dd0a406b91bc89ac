"""What is found of a machine: every field by itself, and never an exception."""

import os
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml  # type: ignore[import-untyped]
import pytest
from spawn_hostagent.config import Limits
from spawn_hostagent.hardware import (
    HardwareDetector,
    System,
    UnsupportedMachine,
    _architecture,
    lend,
    unknown_gpus,
)
from spawn_hostagent.nvidia import NvmlReader, load_pynvml
from spawn_schemas.inventory import Gpu, Network

from tests.hostagent import fake_nvml
from tests.hostagent.fake_nvml import FakeNvml, a100, rtx_4090

A_SYSTEM = System(
    hostname="attic",
    os="Debian GNU/Linux 12",
    kernel="6.1",
    architecture="x86",
    cpu_model="a CPU",
    cpu_cores=8,
    cpu_threads=16,
    total_memory_mib=65536,
    total_disk_mib=1_000_000,
    free_disk_mib=500_000,
)


def detector(
    nvml: Any = None, *, limits: Limits | None = None, storage: Path = Path("/"), pci: Path = Path("/none")
) -> HardwareDetector:
    return HardwareDetector(limits or Limits(), storage, load_nvml=lambda: nvml, pci=pci)


def plug_in(folder: Path, vendor: str, kind: str = "0x030000") -> Path:
    device = folder / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text(vendor + "\n")
    (device / "class").write_text(kind + "\n")
    return folder


# --- GPUs


def test_without_a_gpu_there_is_nothing_and_no_problem() -> None:
    found = detector(None).inventory()
    assert (found.gpus, found.lent_gpus, found.nvidia_driver, found.nvidia_problem) == ((), (), None, None)


def test_the_real_module_without_a_driver_is_survived(tmp_path: Path) -> None:
    if load_pynvml() is not None:
        pytest.skip("this machine has an NVIDIA driver")
    assert detector(pynvml).inventory().nvidia_problem is None
    told = detector(pynvml, pci=plug_in(tmp_path, "0x10de")).inventory()
    assert "driver is not installed" in (told.nvidia_problem or "")


def test_every_field_of_a_gpu_is_told() -> None:
    (gpu,) = detector(FakeNvml(a100())).inventory().gpus
    assert gpu == Gpu(
        uuid="GPU-aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
        index=0,
        name="NVIDIA A100-SXM4-80GB",
        serial="1320000000001",
        memory_mib=81920,
        memory_free_mib=80896,
        temperature_c=41,
        utilization_percent=7,
        power_w=68,
        pci_bus_id="00000000:01:00.0",
        pcie_generation=4,
        pcie_width=8,
        pcie_generation_max=5,
        pcie_width_max=16,
        compute_capability="8.0",
        mig_enabled=False,
        ecc_errors=2,
        remapped_rows=3,
        vbios="95.02.3C.80.E1",
        processes=0,
    )


def test_the_versions_of_driver_and_cuda_are_told() -> None:
    found = detector(FakeNvml(a100())).inventory()
    assert (found.nvidia_driver, found.cuda) == ("570.133.20", "12.8")


def test_two_different_gpus_in_one_machine_are_two() -> None:
    found = detector(FakeNvml(rtx_4090(), a100())).inventory()
    assert [gpu.name for gpu in found.gpus] == ["NVIDIA GeForce RTX 4090", "NVIDIA A100-SXM4-80GB"]
    assert [gpu.compute_capability for gpu in found.gpus] == ["8.9", "8.0"]
    assert found.lent_gpus == tuple(gpu.uuid for gpu in found.gpus)


def test_a_field_that_a_model_lacks_is_none_and_no_problem() -> None:
    (gpu,) = detector(FakeNvml(rtx_4090())).inventory().gpus
    assert (gpu.serial, gpu.mig_enabled, gpu.problem) == (None, None, None)
    assert gpu.memory_mib == 24576


@pytest.mark.parametrize(
    ("question", "field"),
    [
        ("nvmlDeviceGetName", "name"),
        ("nvmlDeviceGetMemoryInfo", "memory_mib"),
        ("nvmlDeviceGetTemperatureV", "temperature_c"),
        ("nvmlDeviceGetUtilizationRates", "utilization_percent"),
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetPciInfo", "pci_bus_id"),
        ("nvmlDeviceGetCudaComputeCapability", "compute_capability"),
        ("nvmlDeviceGetTotalEccErrors", "ecc_errors"),
        ("nvmlDeviceGetRemappedRows", "remapped_rows"),
        ("nvmlDeviceGetVbiosVersion", "vbios"),
        ("nvmlDeviceGetComputeRunningProcesses", "processes"),
        ("nvmlDeviceGetMigMode", "mig_enabled"),
    ],
)
def test_a_fault_in_one_field_costs_that_field_and_is_said(question: str, field: str) -> None:
    whole, broken = a100(), a100()
    broken.refuses = {question: 999}
    (sound,) = detector(FakeNvml(whole)).inventory().gpus
    (gpu,) = detector(FakeNvml(broken)).inventory().gpus
    assert getattr(sound, field) is not None
    assert getattr(gpu, field) is None
    assert question.removeprefix("nvml") in (gpu.problem or "")
    differing = {name for name in Gpu.__struct_fields__ if getattr(gpu, name) != getattr(sound, name)}
    assert differing <= {field, "problem", "memory_free_mib"}


def test_memory_that_is_shared_with_the_cpu_is_the_machines_and_flagged() -> None:
    spark = a100()
    spark.refuses = {"nvmlDeviceGetMemoryInfo": fake_nvml.NOT_SUPPORTED}
    (gpu,) = detector(FakeNvml(spark)).inventory().gpus
    assert gpu.memory_is_system
    assert gpu.memory_mib == psutil.virtual_memory().total // 2**20
    assert gpu.problem is None


def test_an_old_driver_is_asked_for_the_temperature_in_its_own_words() -> None:
    old = a100()
    old.refuses = {"nvmlDeviceGetTemperatureV": fake_nvml.FUNCTION_NOT_FOUND}
    (gpu,) = detector(FakeNvml(old)).inventory().gpus
    assert gpu.temperature_c == 41


def test_a_lost_gpu_keeps_its_name_and_is_not_lent() -> None:
    lost, sound = rtx_4090(), a100()
    machine = detector(FakeNvml(lost, sound))
    machine.inventory()
    lost.is_lost = True
    found = machine.inventory()
    assert found.gpus[0].uuid == rtx_4090().uuid
    assert found.gpus[0].is_lost
    assert "fell off the bus" in (found.gpus[0].problem or "")
    assert found.lent_gpus == (sound.uuid,)
    assert machine.metrics().gpu_temp_c == (None, 41)


def test_a_gpu_that_was_lost_from_the_start_is_never_lent() -> None:
    lost = rtx_4090()
    lost.is_lost = True
    found = detector(FakeNvml(lost)).inventory()
    assert (found.gpus[0].uuid, found.lent_gpus) == ("unknown-0", ())


def test_a_gpu_lost_between_two_questions_is_marked() -> None:
    going = rtx_4090()
    going.refuses |= {"nvmlDeviceGetUtilizationRates": fake_nvml.GPU_IS_LOST}
    (gpu,) = detector(FakeNvml(going)).inventory().gpus
    assert gpu.is_lost
    assert gpu.name is not None


def test_mig_is_detected_with_its_gaps_and_not_lent() -> None:
    found = detector(FakeNvml(a100({0: "MIG-one", 3: "MIG-two"}))).inventory()
    assert found.gpus[0].mig_enabled is True
    assert found.gpus[0].mig_devices == ("MIG-one", "MIG-two")
    assert found.lent_gpus == ()


@pytest.mark.parametrize(
    ("code", "words"),
    [(fake_nvml.VERSION_MISMATCH, "was upgraded"), (fake_nvml.DRIVER_NOT_LOADED, "not loaded"), (999, "999")],
)
def test_a_driver_that_does_not_start_is_said_and_tried_again(tmp_path: Path, code: int, words: str) -> None:
    nvml = FakeNvml(a100(), init=code)
    machine = detector(nvml, pci=plug_in(tmp_path, "0x10de", "0x030200"))
    assert words in (machine.inventory().nvidia_problem or "")
    assert machine.metrics().gpu_temp_c == ()
    nvml.init = None
    assert machine.inventory().nvidia_problem is None
    assert len(machine.inventory().gpus) == 1


def test_a_driver_that_was_let_go_is_taken_hold_of_again() -> None:
    nvml = FakeNvml(a100())
    reader = NvmlReader(lambda: nvml, 1024)
    assert len(reader.read().gpus) == 1
    nvml.initialized = False  # as after a reload of the module under our feet
    reader.read()
    assert len(reader.read().gpus) == 1
    reader.close()
    assert nvml.shutdowns == 1


def test_heat_and_use_are_told_by_gpu() -> None:
    metrics = detector(FakeNvml(rtx_4090(), a100())).metrics()
    assert metrics.gpu_temp_c == (41, 41)
    assert metrics.gpu_utilization_percent == (7, 7)


@pytest.mark.parametrize(
    ("vendor", "kind", "found"),
    [
        ("0x1002", "0x030000", {"AMD"}),
        ("0x10de", "0x030200", {"NVIDIA"}),
        ("0x10de", "0x040300", set()),  # the sound of a graphics card is not a GPU
        ("0x8086", "0x038000", {"Intel"}),
    ],
)
def test_gpus_are_seen_without_any_driver(tmp_path: Path, vendor: str, kind: str, found: set[str]) -> None:
    assert detector(pci=plug_in(tmp_path, vendor, kind)).display_vendors() == found


# --- the rest of the machine


def test_the_system_is_this_one() -> None:
    system = detector().detect_system()
    assert system.hostname == platform.node()
    assert system.cpu_threads == psutil.cpu_count()
    assert system.total_memory_mib == psutil.virtual_memory().total // 2**20
    assert system.total_disk_mib == psutil.disk_usage("/").total // 2**20
    assert system.os
    assert system.cpu_model


def test_storage_that_is_not_made_yet_is_measured_where_it_will_lie(tmp_path: Path) -> None:
    system = detector(storage=tmp_path / "not" / "yet").detect_system()
    assert system.total_disk_mib == psutil.disk_usage(str(tmp_path)).total // 2**20


@pytest.mark.parametrize(
    ("machine", "ours"), [("x86_64", "x86"), ("AMD64", "x86"), ("aarch64", "arm"), ("arm64", "arm")]
)
def test_architectures_have_one_name_each(machine: str, ours: str) -> None:
    assert _architecture(machine) == ours


def test_another_architecture_is_refused_by_its_name() -> None:
    with pytest.raises(UnsupportedMachine, match="riscv64"):
        _architecture("riscv64")


def test_the_figures_of_a_heartbeat_are_plausible() -> None:
    metrics = detector().metrics()
    assert 0 <= (metrics.cpu_percent or 0) <= 100
    assert 0 < (metrics.memory_used_mib or 0) <= psutil.virtual_memory().total // 2**20
    assert 0 < (metrics.disk_percent or 0) <= 100


def test_the_network_is_remembered_for_the_inventory() -> None:
    machine = detector()
    machine.detect_network(lambda: Network(down_mbit=940.0, up_mbit=35.5, latency_ms=12.0))
    assert machine.inventory().network.up_mbit == 35.5


# --- what is lent


def test_without_limits_all_but_a_reserve_is_lent() -> None:
    lent = lend(Limits(), A_SYSTEM, ())
    assert lent.cpus == pytest.approx(14.4)
    assert (lent.memory_mib, lent.disk_mib) == (65536 - 6553, 400_000)


def test_limits_are_kept_and_never_promise_more_than_there_is() -> None:
    modest = lend(Limits(cpus=4, memory_gb=8, disk_gb=100), A_SYSTEM, ())
    assert (modest.cpus, modest.memory_mib, modest.disk_mib) == (4, 8192, 102_400)
    boast = lend(Limits(cpus=400, memory_gb=800, disk_gb=10_000), A_SYSTEM, ())
    assert (boast.cpus, boast.memory_mib, boast.disk_mib) == (16, 65536, 500_000)


def test_disk_that_rentals_take_now_stays_lent() -> None:
    assert lend(Limits(), A_SYSTEM, (), used_disk_mib=50_000).disk_mib == 450_000


def test_what_rentals_take_is_what_they_say_or_what_their_disks_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is stopped says nothing; one by quota has no file."""
    usage = SimpleNamespace(total=100 * 2**30, free=50 * 2**30)
    monkeypatch.setattr(psutil, "disk_usage", lambda _: usage)
    (tmp_path / "disks").mkdir()
    with (tmp_path / "disks" / "spawn-srv_a-1.img").open("wb") as disk:
        disk.truncate(2**30)
        os.posix_fallocate(disk.fileno(), 0, 8 * 2**20)
    found = detector(storage=tmp_path, limits=Limits(disk_gb=90))
    for said_mib, taken_mib in ((0, 8), (5, 8), (20, 20)):
        assert found.inventory(used_disk_mib=said_mib).disk_mib == 50 * 1024 + taken_mib


@pytest.mark.parametrize(
    ("gpus", "lent"),
    [
        ("all", [0, 1]),
        ("none", []),
        ((1,), [1]),
        (("GPU-11111111-2222-3333-4444-555555555555",), [0]),
        (("GPU-of-another-machine",), []),
    ],
)
def test_the_owner_chooses_gpus_by_number_or_uuid(gpus: Any, lent: list[int]) -> None:
    found = detector(FakeNvml(rtx_4090(), a100()), limits=Limits(gpus=gpus)).inventory()
    assert found.lent_gpus == tuple(found.gpus[index].uuid for index in lent)


def test_a_gpu_of_the_list_that_is_not_there_is_named() -> None:
    gpus = detector(FakeNvml(rtx_4090())).inventory().gpus
    assert unknown_gpus(Limits(gpus=(0, 3, "GPU-gone")), gpus) == ("3", "GPU-gone")
    assert unknown_gpus(Limits(gpus="all"), gpus) == ()
