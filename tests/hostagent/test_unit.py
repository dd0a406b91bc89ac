"""The systemd unit: it says what systemd understands, and lets the agent do all that it does and little more."""

import configparser
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.engines import ROOT, require
from tests.hostagent.agent_image import guide_block
from tests.hostagent.docker_engine import Engine, engine
from tests.hostagent.namespaces import inside

UNIT: Final = ROOT / "hostagent" / "systemd" / "spawn-host.service"
PROGRAM: Final = "/usr/local/bin/spawn-host"
EXPOSURE_MAX: Final = 4.0
"""Of `systemd-analyze security`, 10 being bare; what it holds against the unit is what the unit says it needs."""


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    require("systemd")
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def settings() -> configparser.SectionProxy:
    """The unit's service section; a setting that is said many times is there once."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd tells capitals apart
    parser.read(UNIT)
    return parser["Service"]


def capabilities() -> frozenset[str]:
    return frozenset(word.removeprefix("CAP_") for word in settings()["CapabilityBoundingSet"].split())


def verified(folder: Path, text: str) -> str:
    """What systemd has to say against this unit, once its program is there."""
    unit = folder / UNIT.name
    program = folder / "spawn-host"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert PROGRAM in text
    unit.write_text(text.replace(PROGRAM, str(program)))
    done = analyze("verify", "--man=no", str(unit))
    return done.stderr if done.returncode == 0 else f"{done.stderr}status {done.returncode}"


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    assert verified(tmp_path, UNIT.read_text()) == ""


def test_what_systemd_does_not_understand_would_be_seen(tmp_path: Path) -> None:
    assert "ProtectHoem" in verified(tmp_path, UNIT.read_text().replace("ProtectHome", "ProtectHoem"))


def test_it_is_hardened() -> None:
    limit = f"--threshold={EXPOSURE_MAX * 10:.0f}"
    done = analyze("security", "--offline=yes", "--no-pager", limit, str(UNIT))
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


def test_it_starts_the_program_that_install_puts_there() -> None:
    assert settings()["ExecStart"] == f"{PROGRAM} start --config /etc/spawn-host/agent.yaml"
    assert settings()["StateDirectory"] == "spawn-host", (
        "which is the default of state_dir, /var/lib/spawn-host"
    )


def test_a_container_is_given_the_same_capabilities() -> None:
    assert frozenset(re.findall(r"--cap-add (\w+)", guide_block())) == capabilities()
    assert "--cap-drop ALL" in guide_block()
    assert "--security-opt no-new-privileges" in guide_block()


@pytest.fixture(scope="module")
def docker() -> Iterator[Engine]:
    with engine(with_gpus=False) as running:
        yield running


def features(docker: Engine, folder: Path, *before: str) -> dict[str, Any]:
    """Each row of `spawn-host check`, run by a root who was left no more than `before` leaves him."""
    config = folder / "agent.yaml"
    config.write_text(
        f"service: http://127.0.0.1:9\nstate_dir: {folder}/state\ndocker_socket: {docker.socket}\n"
    )
    with inside(docker.network):
        done = subprocess.run(
            [*before, sys.executable, "-m", "spawn_hostagent", "check", "--json", "--config", str(config)],
            env={**os.environ, "PATH": f"{docker.programs}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.stdout, done.stderr
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def bound(names: frozenset[str]) -> tuple[str, ...]:
    """Runs a program as root with no more than these capabilities, now or later, as the unit does."""
    kept = ",".join(f"+{name.lower()}" for name in sorted(names))
    return ("setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all", "--no-new-privs", "--")


def test_its_capabilities_are_enough_for_all_that_is_checked(docker: Engine, tmp_path: Path) -> None:
    free = features(docker, tmp_path)
    assert free["isolation"]["message"] == "tier runc, disks limited by loop", free
    bounded = features(docker, tmp_path, *bound(capabilities()))
    # What is free of the disk is of the moment.
    assert free.pop("disk")["ok"]
    assert bounded.pop("disk")["ok"]
    assert bounded == free
