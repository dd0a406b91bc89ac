"""The agent's image, built where no registry can be reached, and run as the owner's guide says.

Invariant: its Dockerfile is the one that owners build; only the base is made here, of the same Debian packages, and
Python's packages come from a folder. What the container is given is what the guide gives it, with other paths.
"""

import fcntl
import gzip
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import docker.errors
from spawn_hostagent.preflight.versions import RUNC_FIX

from images.build import EPOCH, SUITE, UNWANTED
from tests.engines import ROOT, missing, require
from tests.hostagent.docker_engine import IMAGES, Engine

IMAGE: Final = "spawn-host:latest"
_BASE: Final = "spawn-host-base:latest"
_DOCKERFILE: Final = ROOT / "hostagent" / "Dockerfile"
_GUIDE: Final = ROOT / "docs" / "hosting.md"
_PYTHON: Final = "3.11"
"""Of the Debian release that the image is made of."""
_SETTINGS: Final = ["ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
_INSTALLED: Final = re.compile(r"apt-get install -qq -y --no-install-recommends ([a-z0-9 -]+?)(?: \\|\))")
_WHOLE: Final = "usr-is-merged"
"""What Debian's own base image has too; without it a package asks for all of Perl."""


def _kept(name: str, make: Callable[[Path], None]) -> Path:
    """What was made under this name, once for all runs."""
    IMAGES.mkdir(exist_ok=True)
    path = IMAGES / name
    with (IMAGES / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = IMAGES / "unfinished-agent"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(path)
    return path


def _named(what: str, *parts: str) -> str:
    return f"{what}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def packages() -> tuple[str, ...]:
    """Every Debian package that the Dockerfile installs, in any of its stages."""
    found = {name for names in _INSTALLED.findall(_DOCKERFILE.read_text()) for name in names.split()}
    assert {"python3", "nftables", "python3-venv"} <= found, (
        f"{_DOCKERFILE} is written in another way: {found}"
    )
    return tuple(sorted(found))


def _run(command: list[str], why: str, **more: str) -> None:
    done = subprocess.run(
        command, env={**os.environ, **more}, capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode != 0:
        missing("docker", f"{why}:\n{done.stderr[-3000:]}")


def _make_base(folder: Path) -> None:
    chosen = ",".join((*packages(), _WHOLE))
    unwanted = [f"--dpkgopt=path-exclude={pattern}" for pattern in UNWANTED]
    clean = '--customize-hook=rm -rf "$1"/var/cache/apt/* "$1"/var/log/*.log'
    command = ["mmdebstrap", "--variant=minbase", "--format=tar", f"--include={chosen}", *unwanted, clean]
    _run(
        [*command, SUITE, str(folder / "root.tar")],
        "mmdebstrap could not make the base of the agent's image",
        SOURCE_DATE_EPOCH=EPOCH,
    )


def _needs() -> list[str]:
    """What the agent and what it shares with the service ask for, to run and to be built."""
    asked = set()
    for name in ("hostagent", "schemas"):
        project = tomllib.loads((ROOT / name / "pyproject.toml").read_text())
        asked |= {*project["build-system"]["requires"], *project["project"]["dependencies"]}
    return sorted(line for line in asked if not line.startswith("spawn-schemas"))


def _fetch_wheels(folder: Path) -> None:
    lock = (ROOT / "requirements" / "all.lock").read_text()
    pins = re.findall(r"(?m)^[A-Za-z0-9._-]+==[^ ;\\\n]+", lock)
    (folder / "constraints.txt").write_text("\n".join(pins) + "\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--only-binary=:all:", "--python-version", _PYTHON, "--dest", str(folder)]
    constraint = ["--constraint", str(folder / "constraints.txt")]
    _run([*command, *options, *constraint, *_needs()], "pip could not fetch the agent's dependencies")
    (folder / "constraints.txt").unlink()


def build_image(engine: Engine, folder: Path) -> float:
    """Build the image as `spawn-host` on this engine, without any network. Return the seconds of the build itself."""
    require("docker")
    context = folder / "context"
    base = _kept(_named("agent-base", SUITE, *packages()), _make_base)
    lock = (ROOT / "requirements" / "all.lock").read_text()
    wheels = _kept(_named("agent-wheels", lock, *_needs()), _fetch_wheels)
    client = engine.client()
    try:
        for name in ("schemas", "hostagent", "requirements"):
            shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__", "dist"))
        shutil.copy(ROOT / "LICENSE", context)
        shutil.copytree(wheels, context / "wheels")
        repository, _, tag = _BASE.partition(":")
        client.import_image_from_file(
            str(base / "root.tar"), repository=repository, tag=tag, changes=_SETTINGS
        )
        begun = time.monotonic()
        said = client.build(
            path=str(context),
            dockerfile="hostagent/Dockerfile",
            buildargs={"BASE": _BASE, "WHEELS": "wheels"},
            network_mode="none",
            tag=IMAGE,
            rm=True,
            decode=True,
        )
        lines = list(said)
        assert not any("error" in line for line in lines), lines[-12:]
        return time.monotonic() - begun
    finally:
        client.close()
        shutil.rmtree(context, ignore_errors=True)


def image_size(engine: Engine) -> int:
    """Bytes of all its layers, unpacked."""
    client = engine.client()
    try:
        (described,) = client.images(name=IMAGE)
        return int(described["Size"])
    finally:
        client.close()


def guide_block() -> str:
    """The shell function of the guide that gives a container what it needs."""
    found = re.search(r"```sh\n(lend\(\) \{\n.*?\n\})\n", _GUIDE.read_text(), re.DOTALL)
    assert found is not None, f"{_GUIDE} has no function lend()"
    return found[1]


def mended_runc(folder: Path) -> dict[str, str]:
    """What a container of the agent's is shown: a runc package that has the fix; Debian's own may be older."""
    documents = folder / "runc"
    documents.mkdir()
    with gzip.open(documents / "changelog.Debian.gz", "wt") as text:
        text.write(f"runc (1.1.5+ds1-1+deb12u2) bookworm-security; urgency=high\n\n  * Fix {RUNC_FIX}.\n")
    return {"/usr/share/doc/runc": str(documents)}


def command_in_container(
    engine: Engine, folder: Path, *, state: Path, etc: Path, more: Mapping[str, str] | None = None
) -> Path:
    """A program to be called like `spawn-host`, which does it in a container, as the guide says; it lies in `folder`.

    `state` and `etc` stand for the places of the same use; `more` are folders to be seen inside, by their places there.
    """
    if shutil.which("docker") is None:
        missing("docker", "Docker's command line is not installed")
    block = guide_block()
    for ours, theirs in (
        ("/var/run/docker.sock", engine.socket.removeprefix("unix://")),
        ("/var/lib/spawn-host", str(state)),
        ("/etc/spawn-host", str(etc)),
    ):
        assert ours in block, f"the guide's lend() does not say {ours}"
        block = block.replace(ours, theirs)
    seen = " ".join(shlex.quote(f"-v{here}:{there}:ro") for there, here in (more or {}).items())
    script = folder / "spawn-host-in-container"
    script.write_text(
        f"#!/bin/bash\nset -eu\nexport DOCKER_HOST={shlex.quote(engine.socket)}\n"
        # Whoever ends the program ends Docker's client, which tells the container.
        f'docker() {{ exec env docker "$@"; }}\n{block}\n'
        'case "${1:-}" in\n'
        f'  start) lend --rm --name spawn-host {seen} spawn-host "$@" ;;\n'
        '  status) docker exec spawn-host spawn-host "$@" ;;\n'
        f'  *) lend --rm -i {seen} spawn-host "$@" ;;\n'
        "esac\n"
    )
    script.chmod(0o755)
    return script


def pids_of_container(engine: Engine) -> list[int]:
    """The processes of the container that the guide calls spawn-host, as this machine numbers them."""
    client = engine.client()
    try:
        return [int(line[1]) for line in client.top("spawn-host")["Processes"]]
    except docker.errors.NotFound:
        return []
    finally:
        client.close()
