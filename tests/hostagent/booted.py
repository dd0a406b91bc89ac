"""A machine with a real systemd, in namespaces of its own: the units that are under test, Docker, and nothing else.

Invariant: what it writes goes to a folder of the test; its processes, networks and control groups end with it.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import psutil

from tests.engines import missing, require
from tests.hostagent.docker_engine import MENDED, base_image
from tests.hostagent.namespaces import World, world
from tests.hostagent.registry import serving

BOOT_S: Final = 60
CGROUPS: Final = Path("/sys/fs/cgroup")
SOCKET: Final = "unix:///var/run/docker.sock"
_TARGETS: Final = ("basic", "sysinit", "sockets", "shutdown", "network", "network-online", "multi-user")
_DOCKER: Final = """[Unit]
DefaultDependencies=no
[Service]
Type=notify
ExecStart=/usr/sbin/dockerd --log-level=warn --live-restore
StandardOutput=append:{folder}/docker.log
StandardError=append:{folder}/docker.log
Delegate=yes
KillMode=process
"""
_LOG: Final = "[Service]\nStandardOutput=append:{folder}/agent.log\nStandardError=append:{folder}/agent.log\n"
_ENTER: Final = """set -eu
for tree in {trees}; do
  mkdir -p "$tree/{group}"
  if [ -e "$tree/cpuset.cpus" ] && [ -e "$tree/tasks" ]; then
    cat "$tree/cpuset.cpus" >"$tree/{group}/cpuset.cpus"
    cat "$tree/cpuset.mems" >"$tree/{group}/cpuset.mems"
    echo 1 >"$tree/{group}/cgroup.clone_children"
  fi
  echo $$ >"$tree/{group}/cgroup.procs"
done
exec nsenter --net=/var/run/netns/{network} setpriv --pdeathsig KILL \\
  unshare --mount --pid --fork --uts --ipc --cgroup --propagation private --kill-child=KILL bash -c '{boot}'
"""
_BOOT: Final = """set -eu
mount -t proc proc /proc
{cgroups}
for place in etc var usr/local/bin; do
  mkdir -p "{folder}/over/$place" "{folder}/work/$place"
  mount -t overlay overlay -o "lowerdir=/$place,upperdir={folder}/over/$place,workdir={folder}/work/$place" "/$place"
done
mkdir -p {folder}/docker /var/lib/docker
mount --bind {folder}/docker /var/lib/docker
mkdir -p {folder}/state /var/lib/spawn-host
mount --bind {folder}/state /var/lib/spawn-host
install -m 0755 {program} /usr/local/bin/spawn-host
install -m 0755 {folder}/programs/rpm /usr/local/bin/rpm
mount -t tmpfs tmpfs /run
cp -r {folder}/units /run/units
mkdir -p /run/lock
# Nothing of this machine is started: neither its units, nor what generates some.
export SYSTEMD_UNIT_PATH=/run/units SYSTEMD_GENERATOR_PATH=/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/none
export container=other
exec /lib/systemd/systemd --system --unit=main.target --show-status=0 --log-target=console
"""


class Booted:
    """`base` is our image, to be pulled from a registry that stands in its network, `network`. See `lending.Lent`.

    Its runc is mended, as far as `programs` say.
    """

    def __init__(self, folder: Path, around: World, base: str, init: psutil.Process) -> None:
        self.folder, self.base, self._init = folder, base, init
        self.network = around.host
        self.socket = SOCKET
        self.programs = folder / "programs"

    def enter(self, *command: str) -> list[str]:
        """The command line that runs this inside, in a shell's words."""
        return ["nsenter", "--target", str(self._init.pid), "--all", "--", *command]

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.enter(*command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    def systemctl(self, *words: str) -> str:
        """Do this; what it said. Fails where systemd does."""
        done = self.run("systemctl", *words)
        assert done.returncode == 0, done.stdout + done.stderr + self.said()
        return done.stdout

    def shows(self, *names: str, unit: str = "spawn-host") -> dict[str, str]:
        """These properties of a unit."""
        lines = self.systemctl("show", unit, "--property", ",".join(names)).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def said(self) -> str:
        """What the agent wrote last."""
        log = self.folder / "agent.log"
        return log.read_text()[-3000:] if log.exists() else ""


def _trees() -> list[Path]:
    """Where control groups are entered: one tree for each controller, or one for all (cgroups(7))."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in sorted(CGROUPS.iterdir()) if path.name != "unified" and not path.is_symlink()]


def _mounts(trees: list[Path]) -> str:
    """The same trees for the machine, each beginning at its own group."""
    if trees == [CGROUPS]:
        return f"mount -t cgroup2 cgroup2 {CGROUPS}"
    lines = [f"mount -t tmpfs tmpfs {CGROUPS}"]
    for tree in trees:
        options = "none,name=systemd" if tree.name == "systemd" else tree.name
        lines += [f"mkdir {tree}", f"mount -t cgroup -o {options} cgroup {tree}"]
    return "\n".join(lines)


def _write_units(folder: Path, unit: str, more: dict[str, str]) -> None:
    units = folder / "units"
    units.mkdir()
    for name in _TARGETS:
        (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    wants = "[Unit]\nDefaultDependencies=no\nWants=docker.service\n"
    (units / "main.target").write_text(wants)
    (units / "docker.service").write_text(_DOCKER.format(folder=folder))
    for name, text in {"spawn-host.service": unit, **more}.items():
        (units / name).write_text(text)
        (units / f"{name}.d").mkdir()
        (units / f"{name}.d" / "log.conf").write_text(_LOG.format(folder=folder))


def _remove_groups(trees: list[Path], group: str) -> None:
    """Once their processes are buried, which takes the kernel a moment."""
    deadline = time.monotonic() + BOOT_S
    for tree in trees:
        while (tree / group).exists():
            for path, _, _ in os.walk(tree / group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)
            assert time.monotonic() < deadline, f"{tree / group} is still used"
            time.sleep(0.05)


def _is_up(init: psutil.Process) -> bool:
    asked = ["nsenter", "--target", str(init.pid), "--all", "--", "systemctl", "is-active", "docker"]
    return subprocess.run(asked, capture_output=True, timeout=30, check=False).stdout == b"active\n"


@contextmanager
def booted(program: Path, unit: str, more: dict[str, str] | None = None) -> Iterator[Booted]:
    """A machine with this program installed and these units; Docker runs. Skips or fails like `require`."""
    require("systemd")
    layout, digest = base_image()
    trees = _trees()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="spawn-boot-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _write_units(folder, unit, more or {})
        (folder / "programs").mkdir()
        (folder / "programs" / "rpm").write_text(MENDED)
        around = stack.enter_context(world())
        registry = stack.enter_context(serving(layout, around.host))
        group = folder.name
        boot = _BOOT.format(folder=folder, program=program, cgroups=_mounts(trees))
        assert "'" not in boot
        script = _ENTER.format(trees=" ".join(map(str, trees)), group=group, network=around.host, boot=boot)
        stack.callback(_remove_groups, trees, group)
        with (folder / "console.log").open("wb") as log:
            started = subprocess.Popen(
                ["bash", "-c", script], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        stack.callback(started.wait, 60)
        stack.callback(started.kill)
        yield Booted(folder, around, registry.reference(digest), _wait(started, folder))


def _wait(started: "subprocess.Popen[bytes]", folder: Path) -> psutil.Process:
    """Its first process, once Docker runs."""
    deadline = time.monotonic() + BOOT_S
    while True:
        children = psutil.Process(started.pid).children() if started.poll() is None else []
        if children and children[0].name() == "systemd" and _is_up(children[0]):
            return children[0]
        if started.poll() is not None or time.monotonic() > deadline:
            missing("systemd", f"systemd did not start here:\n{(folder / 'console.log').read_text()[-3000:]}")
        time.sleep(0.1)
