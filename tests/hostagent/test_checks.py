"""Each check is judged by facts, says what to do where it is not ok, and looks at the real machine without harm."""

import gzip
import sys
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from spawn_hostagent.config import Config, Limits
from spawn_hostagent.hardware import HardwareDetector, lend
from spawn_hostagent.joining.service import Service
from spawn_hostagent.machines import MachineError
from spawn_hostagent.nvidia import Nvidia
from spawn_hostagent.preflight import checks, programs
from spawn_hostagent.preflight import gather as preflight
from spawn_hostagent.preflight.checks import Check, DockerFacts, ToolkitFacts
from spawn_hostagent.preflight.versions import parse_version, runc_is_fixed
from spawn_schemas.inventory import Feature, Gpu, Isolation
from spawn_schemas.orders import Problem

from tests.hostagent.test_hardware import A_SYSTEM

GOOD_DOCKER = DockerFacts(
    version="28.3.0",
    api="1.51",
    runc="1.3.3",
    driver="overlay2",
    cgroup_version="2",
    live_restore=True,
    runtimes=("nvidia", "runc"),
)
A_GPU = Gpu(uuid="GPU-1", index=0, name="NVIDIA GeForce RTX 4090")


def by_name(found: list[Check] | tuple[Check, ...], name: str) -> Check:
    (check,) = [check for check in found if check.name == name]
    return check


# --- versions


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.1.5+ds1", (1, 1, 5)),
        ("1.1.12-0ubuntu3.1", (1, 1, 12)),
        ("runc version 1.3.3", (1, 3, 3)),
        ("6.18.44-fc-v509", (6, 18, 44)),
        ("5.15", (5, 15, 0)),
    ],
)
def test_versions_are_read_however_they_are_written(text: str, version: tuple[int, int, int]) -> None:
    assert (parse_version(text) or ())[:3] == version


@pytest.mark.parametrize("text", ["", "unknown", "v", "HEAD-abc"])
def test_what_is_no_version_is_none(text: str) -> None:
    assert parse_version(text) is None


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        ("1.1.12", False),
        ("1.2.7", False),
        ("1.2.8", True),
        ("1.2.9", True),
        ("1.3.0", False),
        ("1.3.2", False),
        ("1.3.3", True),
        ("1.4.0-rc.2", False),
        ("1.4.0-rc.3", True),
        ("1.4.0", True),
        ("1.5.0-rc.1", True),
        ("2.0.0", True),
    ],
)
def test_runc_is_fixed_from_the_first_fixed_of_its_line(text: str, fixed: bool) -> None:
    version = parse_version(text)
    assert version is not None
    assert runc_is_fixed(version) is fixed


# --- judging


def test_a_good_docker_is_ok_in_every_line() -> None:
    found = checks.docker_checks(GOOD_DOCKER)
    assert [check.name for check in found] == ["docker", "runc", "cgroups", "live-restore"]
    assert all(check.ok for check in found)


@pytest.mark.parametrize(
    ("change", "name", "severity"),
    [
        ({"api": "1.40"}, "docker", "error"),
        ({"api": "nonsense"}, "docker", "error"),
        ({"runc": "1.1.5+ds1"}, "runc", "error"),
        ({"runc": ""}, "runc", "error"),
        ({"cgroup_version": ""}, "cgroups", "error"),
        ({"missing_limits": ("swap",)}, "cgroups", "error"),
        ({"live_restore": False}, "live-restore", "warning"),
    ],
)
def test_each_fault_of_docker_is_one_line(change: dict[str, Any], name: str, severity: str) -> None:
    found = checks.docker_checks(msgspec.structs.replace(GOOD_DOCKER, **change))
    bad = [check for check in found if not check.ok]
    assert [(check.name, check.severity) for check in bad] == [(name, severity)]
    assert bad[0].remedy


def test_an_old_runc_with_the_distributions_backport_is_ok_and_says_so() -> None:
    found = checks.runc_check("1.1.5+ds1", is_backported=True)
    assert found.ok
    assert "backport" in found.message


def test_a_silent_docker_is_one_line_only() -> None:
    found = checks.docker_checks(DockerFacts(problem="nothing listens", remedy="Install Docker."))
    assert [(check.name, check.ok, check.remedy) for check in found] == [("docker", False, "Install Docker.")]


@pytest.mark.parametrize(
    ("offset_s", "ok", "severity", "words"),
    [
        (1.0, True, "error", "right"),
        (-1.0, True, "error", "right"),
        (40.0, False, "warning", "40 s behind"),
        (-300.0, False, "warning", "5 min ahead"),
        (3600.0, False, "error", "60 min behind"),
        (-90_000.0, False, "error", "25.0 h ahead"),
    ],
)
def test_a_clock_that_is_off_is_said_with_its_direction(
    offset_s: float, ok: bool, severity: str, words: str
) -> None:
    found = checks.clock_check(offset_s)
    assert (found.ok, found.severity) == (ok, severity)
    assert words in found.message


@pytest.mark.parametrize(
    ("toolkit", "runtimes", "ok", "words"),
    [
        (None, ("nvidia",), False, "not installed"),
        ("1.17.7", ("nvidia",), False, "CVE-2025-23266"),
        ("1.17.8", ("nvidia",), True, "1.17.8"),
        ("1.18.0", ("runc",), True, "hook"),
    ],
)
def test_the_toolkit_has_a_floor(
    toolkit: str | None, runtimes: tuple[str, ...], ok: bool, words: str
) -> None:
    docker = msgspec.structs.replace(GOOD_DOCKER, runtimes=runtimes)
    found = checks.toolkit_check(docker, ToolkitFacts(version=toolkit))
    assert found.ok is ok
    assert words in found.message


def test_without_a_gpu_nothing_is_said_of_drivers() -> None:
    lent = lend(Limits(), A_SYSTEM, ())
    assert (
        checks.gpu_checks(Nvidia(), lent, Limits(), GOOD_DOCKER, ToolkitFacts(), frozenset({"Intel"})) == []
    )


def test_every_gpu_has_a_line_and_the_toolkit_one() -> None:
    lost = Gpu(uuid="GPU-2", index=1, is_lost=True, problem="the GPU fell off the bus")
    nvidia = Nvidia(driver="570.1", cuda="12.8", gpus=(A_GPU, lost))
    lent = lend(Limits(), A_SYSTEM, nvidia.gpus)
    found = checks.gpu_checks(
        nvidia, lent, Limits(), GOOD_DOCKER, ToolkitFacts(version="1.17.8"), frozenset({"AMD", "NVIDIA"})
    )
    assert [check.name for check in found] == ["amd gpu", "nvidia driver", "gpu 0", "gpu 1", "nvidia toolkit"]
    assert [check.ok for check in found] == [True, True, True, False, True]
    assert checks.is_fit(found), "a lost GPU does not keep the rest of the machine from being lent"


def test_a_gpu_of_the_list_that_is_missing_is_a_line() -> None:
    limits = Limits(gpus=(7,))
    found = checks.gpu_checks(
        Nvidia(gpus=(A_GPU,)),
        lend(limits, A_SYSTEM, (A_GPU,)),
        limits,
        GOOD_DOCKER,
        ToolkitFacts(),
        frozenset(),
    )
    assert "no GPU 7" in by_name(found, "limits.gpus").message
    assert "kept for yourself" in by_name(found, "gpu 0").message


def test_below_the_floor_no_strangers_are_taken_and_each_reason_is_a_line() -> None:
    isolation = Isolation(
        tier="none",
        features=(
            Feature(name="canary memory", works=True),
            Feature(name="canary pids", works=False, says="a fork bomb ran", remedy="Boot with pids cgroup."),
        ),
    )
    found = checks.isolation_checks(isolation, known_only=True)
    assert [check.name for check in found] == ["isolation", "canary pids"]
    assert not checks.is_fit(found)
    assert checks.is_fit(checks.isolation_checks(isolation, known_only=False))
    assert checks.is_fit(checks.isolation_checks(Isolation(tier="runc"), known_only=True))


@pytest.mark.parametrize(
    ("limits", "name"), [(Limits(memory_gb=0.25), "memory"), (Limits(disk_gb=1.0), "disk")]
)
def test_too_little_to_lend_is_an_error(limits: Limits, name: str) -> None:
    found = checks.room_checks(A_SYSTEM, lend(limits, A_SYSTEM, ()), limits)
    assert [check.name for check in found if not check.ok] == [name]


def test_hours_are_shown() -> None:
    limits = Limits(hours=("22:00-06:00",), strict_hours=True)
    found = checks.room_checks(A_SYSTEM, lend(limits, A_SYSTEM, ()), limits)
    assert "22:00-06:00, and rentals are stopped" in by_name(found, "hours").message


@pytest.mark.parametrize(
    ("kernel", "platform", "python", "bad"),
    [
        ("6.1.0-13-amd64", "linux", (3, 10), []),
        ("4.19.0", "linux", (3, 12), ["kernel"]),
        ("23.4.0", "darwin", (3, 12), ["system"]),
        ("6.1.0", "linux", (3, 9), ["python"]),
    ],
)
def test_the_system_has_floors(kernel: str, platform: str, python: tuple[int, int], bad: list[str]) -> None:
    system = msgspec.structs.replace(A_SYSTEM, kernel=kernel)
    found = checks.system_checks(system, platform, python)
    assert [check.name for check in found if not check.ok] == bad


def test_whatever_is_not_ok_says_what_to_do() -> None:
    found = [
        *checks.system_checks(msgspec.structs.replace(A_SYSTEM, kernel="x"), "linux", (2, 7)),
        *checks.docker_checks(DockerFacts(api="1.1", runc="1.0.0")),
        checks.nft_check(None, None),
        checks.nft_check("nftables v1", "Operation not permitted"),
        *checks.room_checks(A_SYSTEM, lend(Limits(memory_gb=0.1, disk_gb=0.1), A_SYSTEM, ()), Limits()),
        *checks.gpu_checks(
            Nvidia(problem="broken"),
            lend(Limits(), A_SYSTEM, ()),
            Limits(gpus=(1,)),
            GOOD_DOCKER,
            ToolkitFacts(),
            frozenset(),
        ),
        checks.clock_check(100.0),
        *checks.isolation_checks(Isolation(), known_only=True),
    ]
    bad = [check for check in found if not check.ok]
    assert len(bad) >= 12
    assert [check.name for check in bad if not check.remedy] == []


# --- looking


def answering(answers: dict[str, tuple[int, str]]) -> programs.Run:
    return lambda command: answers.get(command[0])


def test_the_backport_is_found_in_debians_changelog(tmp_path: Path) -> None:
    path = tmp_path / "changelog.Debian.gz"
    with gzip.open(path, "wt") as text:
        text.write("runc (1.1.5+ds1-1+deb12u2) bookworm-security\n  * Fix CVE-2025-31133, CVE-2025-52565\n")
    assert programs.runc_backport(answering({}), path)
    with gzip.open(path, "wt") as text:
        text.write("runc (1.1.5+ds1-1+deb12u1) bookworm-security\n  * CVE-2024-21626\n")
    assert not programs.runc_backport(answering({}), path)


def test_the_backport_is_found_in_an_rpms_changelog(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert programs.runc_backport(answering({"rpm": (0, "- Resolves CVE-2025-31133")}), missing)
    assert not programs.runc_backport(answering({"rpm": (1, "package runc is not installed")}), missing)
    assert not programs.runc_backport(answering({}), missing)


@pytest.mark.parametrize(
    ("program", "told", "version"),
    [
        (
            "nvidia-ctk",
            "NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80a9b9d0db00d9b1d73c0128c8962c55f4d",
            "1.17.8",
        ),
        (
            "nvidia-container-cli",
            "cli-version: 1.17.8\nlib-version: 1.17.8\nbuild date: 2025-05-30",
            "1.17.8",
        ),
    ],
)
def test_the_toolkits_version_is_read(program: str, told: str, version: str) -> None:
    assert programs.toolkit_version(answering({program: (0, told)})) == version
    assert programs.toolkit_version(answering({program: (1, told)})) is None
    assert programs.toolkit_version(answering({})) is None


def test_a_socket_where_nothing_listens_is_said(tmp_path: Path) -> None:
    facts = preflight.docker_facts(f"unix://{tmp_path}/none.sock", answering({}))
    assert "nothing listens" in (facts.problem or "")
    assert "Install Docker" in facts.remedy


async def test_a_machine_without_docker_is_looked_at_to_the_end(tmp_path: Path) -> None:
    """The real thing, but for Docker and the service; the canaries are not tried without Docker."""
    config = Config(service="https://api.example.org", docker_socket=f"unix://{tmp_path}/none.sock")

    async def never() -> Isolation:
        raise AssertionError("canaries need Docker")

    def silent(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route to host")

    service = Service(config.service, client=lambda: httpx.AsyncClient(transport=httpx.MockTransport(silent)))
    detector = HardwareDetector(config.limits, tmp_path, load_nvml=lambda: None)
    found = (await preflight.preflight(config, detector, service, never)).checks
    assert not by_name(found, "docker").ok
    assert "no route to host" in by_name(found, "service").message
    assert by_name(found, "python").message == ".".join(map(str, sys.version_info[:2]))
    assert not checks.is_fit(found)


async def test_canaries_that_cannot_run_are_a_line() -> None:
    async def broken() -> Isolation:
        raise MachineError(Problem(code="docker_failed", message="Docker went away."))

    isolation, found = await preflight._isolation(broken, known_only=True)
    assert isolation is None
    assert "Docker went away." in found[0].message
    assert not found[0].ok
