"""Builds what the agent is shipped as, and says how large each is and how soon it starts: `make host-dist`.

Invariant: each is built from this tree and works apart from it; a folder that is handed in is all that is written to.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import msgspec

from tests.engines import ROOT

VERSION: Final = "0.1.0"
STARTS: Final = 5
_BUILD_S: Final = 600


class Shipped(msgspec.Struct, frozen=True, kw_only=True):
    """One form. `program` starts it, `size` is in bytes."""

    name: str
    program: Path
    size: int
    built_s: float


class BuildFailed(Exception):
    """The message has what the builder wrote."""


def build_wheels(folder: Path) -> list[Path]:
    """The wheels of the agent and of what it shares with the service, from a copy of the tree."""
    for name in ("schemas", "hostagent"):
        source = folder / "source" / name
        shutil.copytree(ROOT / name, source, ignore=shutil.ignore_patterns("__pycache__", "dist", "build"))
        _run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "wheels")], source
        )
    return sorted((folder / "wheels").glob("*.whl"))


def install_tool(folder: Path, uv: str, python: str) -> Shipped:
    """`uv tool install` of the wheels, into a folder of its own. What they depend on comes from uv's cache or index."""
    begun = time.monotonic()
    wheels = build_wheels(folder)
    (agent,) = [wheel for wheel in wheels if wheel.name.startswith("spawn_host-")]
    home = folder / "tool"
    environment = {**os.environ, "UV_TOOL_DIR": str(home), "UV_TOOL_BIN_DIR": str(folder / "bin")}
    lock = ROOT / "requirements" / "all.lock"
    find = ["--find-links", str(agent.parent), "--constraints", str(lock)]
    _run([uv, "tool", "install", "--quiet", "--python", python, *find, str(agent)], folder, environment)
    return Shipped(
        name=f"uv tool, {python if len(python) < 8 else 'this Python'}",
        program=folder / "bin" / "spawn-host",
        size=_size_of(home),
        built_s=time.monotonic() - begun,
    )


def build_program(folder: Path) -> Shipped:
    """The single file, by PyInstaller."""
    begun = time.monotonic()
    where = ["--distpath", str(folder / "dist"), "--workpath", str(folder / "work")]
    environment = {**os.environ, "PYINSTALLER_CONFIG_DIR": str(folder / "config")}
    spec = ROOT / "hostagent" / "agent.spec"
    _run(
        [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR", *where, str(spec)],
        folder,
        environment,
    )
    program = folder / "dist" / "spawn-host"
    return Shipped(
        name="single file", program=program, size=program.stat().st_size, built_s=time.monotonic() - begun
    )


def runs(program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The program, apart from this tree: no Python of ours in its environment, another folder."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SPAWN"))
    }
    return subprocess.run(
        [program, *words],
        cwd=program.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def start_s(program: Path) -> float:
    """Seconds of the fastest of some starts that answer with the version."""
    times = []
    for _ in range(STARTS):
        begun = time.monotonic()
        done = runs(program, "--version")
        times.append(time.monotonic() - begun)
        if done.stdout.strip() != f"spawn-host {VERSION}":
            raise BuildFailed(f"{program} does not start: {done.stdout}{done.stderr}")
    return min(times)


def _size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_BUILD_S, check=False
    )
    if done.returncode != 0:
        raise BuildFailed(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")


def main() -> None:
    """Build all forms in a temporary folder and print a line for each."""
    uv = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    with tempfile.TemporaryDirectory(prefix="spawn-host-dist-") as name:
        folder = Path(name)
        wheels = build_wheels(folder / "plain")
        print("form                   size       built in  starts in")
        for wheel in wheels:
            print(f"{wheel.name.split('-')[0] + ' wheel':20} {wheel.stat().st_size / 1000:7.0f} kB")
        forms = [build_program(folder)]
        if uv is not None:
            (folder / "uv").mkdir()
            forms.append(install_tool(folder / "uv", uv, sys.executable))
        for form in forms:
            line = f"{form.name:20} {form.size / 1e6:7.1f} MB {form.built_s:8.1f} s"
            print(f"{line} {start_s(form.program):8.2f} s")


if __name__ == "__main__":
    main()
