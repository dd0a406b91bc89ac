"""install.sh: from a folder of releases, wholly or not at all, forwards and back."""

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from tests.engines import ROOT

SCRIPT = ROOT / "hostagent" / "install.sh"
SYSTEM = "linux" if sys.platform == "linux" else "macos"
PROCESSOR = "x86_64" if os.uname().machine in ("x86_64", "amd64") else "arm64"
NAME = f"spawn-host-{SYSTEM}-{PROCESSOR}"
PROGRAM = '#!/bin/sh\necho "spawn-host {version}"\n'


class Releases:
    """A folder as the workflow lays it out, reached by file://."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def publish(self, version: str, program: str = PROGRAM, *, latest: bool = True) -> Path:
        place = self.folder / version
        place.mkdir()
        (place / NAME).write_text(program.format(version=version))
        shutil.copy(ROOT / "hostagent" / "systemd" / "spawn-host.service", place)
        shutil.copy(ROOT / "hostagent" / "agent.yaml.example", place)
        lines = [
            f"{sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(place.iterdir())
        ]
        (place / "SHA256SUMS").write_text("".join(lines))
        if latest:
            (self.folder / "latest").write_text(f"{version}\n")
        return place


class Machine:
    """Where it is installed."""

    def __init__(self, folder: Path, releases: Releases) -> None:
        self.releases = releases
        self.prefix = folder / "opt"
        self.bin = folder / "bin"
        self.unit = folder / "units" / "spawn-host.service"
        self.unit.parent.mkdir()
        self.temporary = folder / "tmp"
        self.temporary.mkdir()

    def install(self, *options: str, status: int = 0, script: str | None = None, shell: str = "sh") -> str:
        """Run it as `curl … | sh` does, from a pipe; what it said."""
        places = ["--prefix", self.prefix, "--bin", self.bin, "--unit", self.unit]
        done = subprocess.run(
            [shell, "-s", "--", *map(str, places), *options],
            input=SCRIPT.read_text() if script is None else script,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.prefix),
                "TMPDIR": str(self.temporary),
                "SPAWN_HOST_RELEASES": f"file://{self.releases.folder}",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert list(self.temporary.iterdir()) == [], "it left something in the temporary folder"
        return done.stdout + done.stderr

    def version(self) -> str:
        done = subprocess.run(
            [self.bin / "spawn-host"], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, Releases(tmp_path / "releases"))


def test_the_latest_is_installed_with_its_unit(machine: Machine) -> None:
    machine.releases.publish("0.1.0")
    told = machine.install()
    assert machine.version() == "spawn-host 0.1.0"
    assert "next: spawn-host check, then spawn-host setup" in told
    assert f"ExecStart={machine.bin}/spawn-host start" in machine.unit.read_text()
    assert {path.name for path in (machine.prefix / "0.1.0").iterdir()} == {
        "SHA256SUMS",
        "agent.yaml.example",
        "spawn-host",
        "spawn-host.service",
    }


def test_an_upgrade_swaps_and_the_version_before_can_be_brought_back(machine: Machine) -> None:
    machine.releases.publish("0.1.0")
    machine.install()
    machine.releases.publish("0.2.0")
    assert "before it was 0.1.0, which --version brings back" in machine.install()
    assert machine.version() == "spawn-host 0.2.0"
    shutil.rmtree(machine.releases.folder / "0.1.0")  # it needs nobody to go back
    assert "is here already" in machine.install("--version", "0.1.0")
    assert machine.version() == "spawn-host 0.1.0"


def test_a_pinned_version_is_not_the_latest(machine: Machine) -> None:
    machine.releases.publish("0.1.0")
    machine.releases.publish("0.2.0")
    machine.install("--version", "0.1.0")
    assert machine.version() == "spawn-host 0.1.0"


@pytest.mark.parametrize("spoiled", [NAME, "spawn-host.service", "agent.yaml.example"])
def test_a_file_that_is_not_what_its_checksum_says_changes_nothing(machine: Machine, spoiled: str) -> None:
    machine.releases.publish("0.1.0")
    machine.install()
    place = machine.releases.publish("0.2.0")
    with (place / spoiled).open("a") as file:
        file.write("echo evil\n")
    assert "nothing was installed" in machine.install(status=1)
    assert machine.version() == "spawn-host 0.1.0"
    assert not (machine.prefix / "0.2.0").exists()


def test_a_manifest_that_was_exchanged_is_refused_where_it_is_pinned(machine: Machine) -> None:
    place = machine.releases.publish("0.1.0")
    right = sha256((place / "SHA256SUMS").read_bytes()).hexdigest()
    told = machine.install("--manifest-sha256", "0" * 64, status=1)
    assert "not the one that you named" in told
    machine.install("--manifest-sha256", right)
    assert machine.version() == "spawn-host 0.1.0"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("#!/bin/sh\nexit 127\n", "does not start on this machine"),
        ('#!/bin/sh\necho "spawn-host 9.9.9"\n', "not 0.2.0"),
        ("#!/no/such/interpreter\n", "does not start on this machine"),
    ],
)
def test_a_program_that_does_not_work_here_is_not_swapped_in(
    machine: Machine, program: str, words: str
) -> None:
    machine.releases.publish("0.1.0")
    machine.install()
    machine.releases.publish("0.2.0", program)
    assert words in machine.install(status=1)
    assert machine.version() == "spawn-host 0.1.0"


def test_a_damaged_installation_is_made_anew(machine: Machine) -> None:
    machine.releases.publish("0.1.0")
    machine.install()
    (machine.prefix / "0.1.0" / "spawn-host").write_text("#!/bin/sh\necho broken\n")
    machine.install()
    assert machine.version() == "spawn-host 0.1.0"


@pytest.mark.parametrize("lines", range(1, 4))
def test_half_a_script_does_nothing(machine: Machine, lines: int) -> None:
    """A download that broke off: whatever is there defines and calls nothing, or is not even a script."""
    machine.releases.publish("0.1.0")
    text = SCRIPT.read_text()
    half = text[: len(text) * lines // 4]
    done = subprocess.run(
        ["sh", "-s", "--", "--prefix", machine.prefix, "--bin", machine.bin, "--no-unit"],
        input=half,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(machine.prefix),
            "SPAWN_HOST_RELEASES": f"file://{machine.releases.folder}",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not machine.prefix.exists()
    assert not (machine.bin / "spawn-host").exists()
    assert done.stdout == ""


def test_the_call_is_the_last_line() -> None:
    lines = SCRIPT.read_text().splitlines()
    assert lines[-1] == 'spawn_host_install "$@"'
    code = [line for line in lines if line and not line.startswith((" ", "#", "}"))]
    assert code == ["set -eu", *[line for line in code if line.endswith("() {")], lines[-1]]


def test_a_unit_that_is_there_is_never_replaced(machine: Machine) -> None:
    """systemd would have to reload, and GPUs vanish from running containers when it does."""
    machine.releases.publish("0.1.0")
    machine.unit.write_text("[Unit]\n# of mine\n")
    assert "is not this version's" in machine.install()
    assert machine.unit.read_text() == "[Unit]\n# of mine\n"


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--frob"], 2, "unknown option --frob"),
        (["--version"], 2, "needs a value"),
        (["--version", "../../etc"], 1, "is not a version"),
        (["--version", "9.9.9"], 1, "cannot be downloaded"),
        (["--releases", "http://example.org"], 2, "not a safe address"),
        (["--releases", "@" + "RELEASES@"], 2, "--releases https://"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    machine: Machine, options: list[str], status: int, words: str
) -> None:
    machine.releases.publish("0.1.0")
    assert words in machine.install(*options, status=status)
    assert not (machine.bin / "spawn-host").exists()


@pytest.mark.parametrize("shell", ["sh", "bash", "dash"])
def test_shells_agree(machine: Machine, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    machine.releases.publish("0.1.0")
    machine.install(shell=shell)
    assert machine.version() == "spawn-host 0.1.0"
