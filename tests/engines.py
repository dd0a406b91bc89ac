"""The engines that some tests need and a fresh machine may lack: each is skipped by name, or demanded.

Invariant: a test that needs an engine says so through `require`, so that `SPAWN_TEST_REQUIRE` (`all`, or a
comma list of engines) can turn its absence into a failure. CI demands all of them.
"""

import fcntl
import getpass
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import pytest

if TYPE_CHECKING:
    from spawn.devchain import Programs

ROOT: Final = Path(__file__).resolve().parent.parent
NODE_PROJECT: Final = ROOT / "tests" / "interop" / "node"
V1_PROJECT: Final = ROOT / "tests" / "interop" / "v1"
"""The clients of x402 version 1, in both languages."""
CONTRACTS_PROJECT: Final = ROOT / "tests" / "contracts"
"""Anvil, and the contracts that a test chain has."""
REQUIRE_VARIABLE: Final = "SPAWN_TEST_REQUIRE"


def _postgres_folder() -> Path | None:
    """Where `initdb` and `postgres` are; distributions keep them off the PATH."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    versions = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(versions, key=lambda folder: int(folder.parent.name), default=None)


def _has_docker() -> bool:
    """Whether an engine of the tests' own can be started, in a network of its own, and its image built."""
    programs = (
        "dockerd",
        "containerd",
        "runc",
        "iptables",
        "nft",
        "ip",
        "nsenter",
        "losetup",
        "mkfs.ext4",
        "mmdebstrap",
    )
    return os.geteuid() == 0 and all(map(shutil.which, programs))


def chromium() -> str | None:
    """The path of a Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path is not None), None)


def _has_npm() -> bool:
    return shutil.which("node") is not None and shutil.which("npm") is not None


def _uv() -> str | None:
    """The project's own uv, which `make setup` puts beside the Python that runs the tests; or else another."""
    return shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")


def bean_check() -> str | None:
    """The path of beancount's checker, which pip puts beside the Python that runs the tests, or None."""
    return shutil.which("bean-check", path=Path(sys.executable).parent) or shutil.which("bean-check")


ENGINES: Final[dict[str, Callable[[], bool]]] = {
    "postgresql": lambda: _postgres_folder() is not None and shutil.which("psql") is not None,
    "docker": _has_docker,
    "chromium": lambda: chromium() is not None,
    "node": _has_npm,
    "anvil": _has_npm,
    "atheris": lambda: importlib.util.find_spec("atheris") is not None,
    "uv": lambda: _uv() is not None,
    "hledger": lambda: shutil.which("hledger") is not None,
    "beancount": lambda: bean_check() is not None,
    "systemd": lambda: shutil.which("systemd-analyze") is not None and shutil.which("setpriv") is not None,
    "qemu": lambda: all(map(shutil.which, ("mmdebstrap", "genext2fs", "qemu-system-x86_64", "ssh"))),
}
"""Every engine a test may need, and how to see that it is here."""


def demanded() -> frozenset[str]:
    """The engines that must be present; raise ValueError for a name that is not an engine."""
    text = os.environ.get(REQUIRE_VARIABLE, "")
    if text == "all":
        return frozenset(ENGINES)
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    if unknown := names - ENGINES.keys():
        raise ValueError(
            f"{REQUIRE_VARIABLE} names {', '.join(sorted(unknown))}; engines are {', '.join(ENGINES)}, or all"
        )
    return names


def skips_refused() -> bool:
    """Whether any skip at all is a failure."""
    return os.environ.get(REQUIRE_VARIABLE) == "all"


def require(engine: str) -> None:
    """Skip the running test unless `engine` is here; fail it when the engine is demanded."""
    if not ENGINES[engine]():
        missing(engine, f"{engine} is not installed")


def missing(engine: str, reason: str) -> NoReturn:
    """End the running test because `engine` cannot be used: a failure when it is demanded, or else a skip."""
    if engine in demanded():
        pytest.fail(f"{reason}, and {REQUIRE_VARIABLE} demands it", pytrace=False)
    pytest.skip(reason)


def _node_packages_installed(project: Path) -> bool:
    wanted = json.loads((project / "package.json").read_text(encoding="utf-8"))["dependencies"]
    found = {}
    for name in wanted:
        path = project / "node_modules" / name / "package.json"
        if path.exists():
            found[name] = json.loads(path.read_text(encoding="utf-8"))["version"]
    return bool(found == wanted)


def node_project(project: Path = NODE_PROJECT) -> Path:
    """A folder of Node clients, with their packages installed at the exact versions it names.

    Node 18, the oldest we meet, has no global `crypto`; a script that signs takes it from `node:crypto`.
    """
    require("node")
    try:
        install_node_packages(project)
    except NodePackagesMissing as error:
        missing("node", str(error))
    return project


def x402_v1_python() -> Path:
    """The Python of an environment that has PyPI `x402` 1.0, whose package has the name of version 2's.

    Built from its own lock, inside the project's environment. Once it is, uv only looks it over, offline.
    """
    require("uv")
    uv = _uv()
    assert uv is not None
    home = ROOT / ".venv" / "x402-v1"
    python = home / "bin" / "python"
    lock = ROOT / "requirements" / "x402-v1.lock"
    create = [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(home)]
    fill = [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", str(python), str(lock)]
    with alone_in(V1_PROJECT):
        for command in (create, fill):
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode != 0:
                missing("uv", f"uv could not install {lock.name}:\n{done.stderr}")
    return python


def anvil_programs() -> "Programs":
    """Anvil from npm, and our contracts' code. Skips or fails like `require`."""
    require("anvil")
    try:
        return build_anvil_programs()
    except NodePackagesMissing as error:
        missing("anvil", str(error))


def build_anvil_programs() -> "Programs":
    """Install anvil and the compiler once, and compile what has changed since. Raises NodePackagesMissing."""
    from spawn.devchain import Programs  # noqa: PLC0415 - it takes most of a second, and every test imports this module

    install_node_packages(CONTRACTS_PROJECT)
    sources = [CONTRACTS_PROJECT / "package.json", CONTRACTS_PROJECT / "build.mjs"]
    sources += sorted((CONTRACTS_PROJECT / "src").iterdir())
    version = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    packages = CONTRACTS_PROJECT / "node_modules"
    built = packages / f".contracts-{version}.json"
    if not built.exists():
        unfinished = built.with_suffix(f".{os.getpid()}")
        command = ["node", "build.mjs", str(unfinished)]
        done = subprocess.run(
            command, cwd=CONTRACTS_PROJECT, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode != 0:
            raise NodePackagesMissing(f"the contracts do not compile:\n{done.stdout}{done.stderr}")
        unfinished.rename(built)
    contracts = json.loads(built.read_text(encoding="utf-8"))
    # npm installs the program for this machine alone, in a package named for its kind.
    program = next(packages.glob("@foundry-rs/anvil-*/bin/anvil*"), None)
    if program is None:
        raise NodePackagesMissing("npm has no anvil for this kind of machine")
    return Programs(anvil=program, contracts=contracts)


class NodePackagesMissing(Exception):
    """npm could not install what a project of ours names; the message has what it said."""


def install_node_packages(project: Path) -> None:
    """Install what `package.json` in this folder names, at exact versions, once. Raises NodePackagesMissing."""
    with alone_in(project):
        if not _node_packages_installed(project):
            _install_node_packages(project)


@contextmanager
def alone_in(project: Path) -> Iterator[None]:
    """Wait until no other process of the run installs something for the project in this folder."""
    with (project / "package.json").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _install_node_packages(project: Path) -> None:
    # The lock would record where packages were fetched from, and the tree names no host. None of hundreds of packages
    # needs to run a script of its own here, or a compiler.
    install = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if install.returncode != 0:
        raise NodePackagesMissing(f"npm could not install the packages of {project}:\n{install.stderr}")


class Postgres:
    """A PostgreSQL of our own: one cluster in one folder, reached over a socket in that folder only."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = self._folder = folder
        self._programs = programs
        # The server refuses to run as root; its package brings a user for it.
        self._as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []

    def _run(self, *command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self._as_user, *command],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            cwd=self._folder,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{Path(command[0]).name} failed:\n{done.stdout}{done.stderr}")
        return done

    def start(self, *, durable: bool = False) -> None:
        if self._as_user:
            shutil.chown(self._folder, user="postgres")
        data = str(self._folder / "data")
        # `trust` is safe here: only the owner of the folder can reach the socket in it.
        self._run(str(self._programs / "initdb"), "-D", data, "-A", "trust", "-E", "UTF8", "-N", "--locale=C")
        options = (
            f"-c listen_addresses= -c unix_socket_directories={self._folder} "
            f"-c fsync={'on' if durable else 'off'} "
            "-c max_connections=400 -c shared_buffers=128MB -c log_min_messages=fatal"
        )
        log = str(self._folder / "log")
        self._run(str(self._programs / "pg_ctl"), "-D", data, "-l", log, "-w", "-o", options, "start")

    def pid(self) -> int:
        """Of the process that all its others are children of."""
        return int((self._folder / "data" / "postmaster.pid").read_text().splitlines()[0])

    def stop(self) -> None:
        data = str(self._folder / "data")
        self._run(str(self._programs / "pg_ctl"), "-D", data, "-m", "immediate", "-w", "stop")

    def restart(self) -> None:
        """As after a crash of the server: connections break off, and what was committed is found in its log."""
        data, log = str(self._folder / "data"), str(self._folder / "log")
        self._run(str(self._programs / "pg_ctl"), "-D", data, "-l", log, "-m", "immediate", "-w", "restart")

    def demand_password(self, database: str) -> None:
        """Let nobody into this database without one."""
        data = self._folder / "data"
        rules = data / "pg_hba.conf"
        rules.write_text(f"local {database} all scram-sha-256\n{rules.read_text()}")
        self._run(str(self._programs / "pg_ctl"), "-D", str(data), "reload")

    def url(self, database: str) -> str:
        """How a client of ours reaches a database of this name; `{database}` makes a template of it."""
        user = "postgres" if self._as_user else getpass.getuser()
        return f"postgresql://{user}@/{database}?host={self._folder}"

    def psql(self, script: str, *, stop_at_error: bool = True) -> str:
        """Run a script; return what psql wrote to stderr. Raise RuntimeError where it stops."""
        stop = f"--set=ON_ERROR_STOP={int(stop_at_error)}"
        where = ("-h", str(self._folder), "-d", "postgres")
        return self._run("psql", "--no-psqlrc", "--quiet", stop, *where, stdin=script).stderr


@contextmanager
def postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """A running, empty PostgreSQL, gone afterwards; only a `durable` one flushes. Skips or fails like `require`."""
    require("postgresql")
    programs = _postgres_folder()
    assert programs is not None
    # Not pytest's folder: a socket's path may have about 100 bytes, and another user has to reach it.
    with tempfile.TemporaryDirectory(prefix="spawn-pg-") as name:
        server = Postgres(Path(name), programs)
        server.start(durable=durable)
        try:
            yield server
        finally:
            server.stop()
