"""Builds what the agent is shipped as, and says what each takes on disk, to start and to idle: `make host-dist`.

Invariant: each is built from this tree and works apart from it; a folder that is handed in is all that is written to.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from tests.engines import ENGINES, ROOT
from tests.hostagent.agent_image import (
    build_image,
    command_in_container,
    image_size,
    mended_runc,
    pids_of_container,
)
from tests.hostagent.dist_measure import STARTS, Measured, Pids, Taken, apart, at_work, own_pids, timed
from tests.hostagent.docker_engine import Engine, engine
from tests.hostagent.namespaces import inside

VERSION: Final = "0.1.0"
AIMS: Final = "single file under 60 MB, image under 320 MB, an idle agent under 60 MB and 0.5 % of a core"
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


def install_tool(folder: Path, uv: str, python: str, *, locked: bool = True) -> Shipped:
    """`uv tool install` of the wheels, into a folder of its own. What they depend on comes from uv's cache or index.

    `locked` takes the versions that the tests run with, which are for Python 3.11 and newer.
    """
    begun = time.monotonic()
    wheels = build_wheels(folder)
    (agent,) = [wheel for wheel in wheels if wheel.name.startswith("spawn_host-")]
    home = folder / "tool"
    environment = {**os.environ, "UV_TOOL_DIR": str(home), "UV_TOOL_BIN_DIR": str(folder / "bin")}
    find = ["--find-links", str(agent.parent)]
    if locked:
        find += ["--constraints", str(ROOT / "requirements" / "all.lock")]
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


def _size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_BUILD_S, check=False
    )
    if done.returncode != 0:
        raise BuildFailed(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the table; None is what was not measured."""

    name: str
    size: int
    version: Taken | None = None
    measured: Measured | None = None


def _row(form: Shipped, command: Sequence[str], docker: Engine | None, pids: Pids, watch_s: float) -> Row:
    version = timed([*command, "--version"], STARTS)
    measured = None
    if docker is not None:
        with tempfile.TemporaryDirectory(prefix="spawn-dist-") as name:
            measured = at_work(docker, Path(name), command, pids, watch_s)
    return Row(name=form.name, size=form.size, version=version, measured=measured)


def _image_row(docker: Engine, folder: Path, watch_s: float) -> Row:
    """The image, run as the guide says. What its starts burn is Docker's as well, and not told apart."""
    build_image(docker, folder)
    with tempfile.TemporaryDirectory(prefix="spawn-dist-") as name:
        place = Path(name)
        (place / "agent").mkdir()
        program = command_in_container(
            docker, place, state=place / "agent", etc=place, more=mended_runc(place)
        )
        form = Shipped(name="image", program=program, size=image_size(docker), built_s=0)
        with inside(docker.network):
            version = timed([str(program), "--version"], STARTS)
        measured = at_work(
            docker, place, [str(program)], lambda lent: pids_of_container(lent.engine), watch_s
        )
    return Row(name=form.name, size=form.size, version=version, measured=measured)


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown, in the form in which docs/benchmarks.md keeps them."""
    lines = [
        "| form | size | `--version`, wall / CPU s | `check`, wall / CPU s | idle: RSS | PSS | CPU of a core |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        size = f"{row.size / 1e6:,.1f} MB" if row.size >= 1e6 else f"{row.size / 1e3:,.0f} kB"
        cells = [row.name, size, _both(row.version)]
        if row.measured is None:
            cells += [""] * 4
        else:
            idle = row.measured.idle
            cells += [_both(row.measured.check), f"{idle.resident / 1e6:.1f} MB", f"{idle.fair / 1e6:.1f} MB"]
            cells += [f"{idle.cpu_percent:.2f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _both(taken: Taken | None) -> str:
    return "" if taken is None else f"{taken.wall_s:.2f} / {taken.cpu_s:.2f}"


def _measure(folder: Path, docker: Engine | None, watch_s: float) -> Iterator[Row]:
    for wheel in build_wheels(folder / "plain"):
        yield Row(name=f"{wheel.name.split('-')[0]} wheel", size=wheel.stat().st_size)
    uv = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    forms = [build_program(folder)]
    if uv is not None:
        (folder / "uv").mkdir()
        forms.append(install_tool(folder / "uv", uv, sys.executable))
    for form in forms:
        yield _row(form, apart(form.program), docker, own_pids, watch_s)
    if docker is not None:
        yield _image_row(docker, folder, watch_s)


def main() -> None:
    """Build all forms in a temporary folder and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--watch-s", type=float, default=120, help="how long each idle agent is watched")
    asked = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spawn-host-dist-")))
        docker = stack.enter_context(engine(with_gpus=False)) if ENGINES["docker"]() else None
        rows = list(_measure(folder, docker, asked.watch_s))
    sys.stdout.write(table(rows) + "\n")
    sys.stdout.write(f"Aims: {AIMS}. Idle agents were watched for {asked.watch_s:.0f} s, connected.\n")
    if docker is None:
        sys.stdout.write("Image, check and idling need root and a Docker engine, and were not measured.\n")


if __name__ == "__main__":
    main()
