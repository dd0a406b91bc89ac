"""install.sh from a server on loopback that answers, breaks off, stumbles or waits; and where something is missing."""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.hostagent.test_install import NAME, SCRIPT, SYSTEM, Machine, Releases

PROGRAM_PATH = f"/0.2.0/{NAME}"
TOOLS = (
    "sh",
    "cat",
    "chmod",
    "cmp",
    "cp",
    "dirname",
    "basename",
    "env",
    "grep",
    "id",
    "ln",
    "mkdir",
    "mktemp",
    "mv",
)
MORE_TOOLS = ("readlink", "rm", "sed", "tr", "uname", "curl", "sha256sum")


class Server(ThreadingHTTPServer):
    """Serves a folder. `stumbles` counts 503s to be given for a path; `short` are paths that break off half-way."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.stumbles: dict[str, int] = {}
        self.short: set[str] = set()
        self.asked: list[str] = []
        self.held: set[str] = set()
        self.waiting = threading.Event()
        self.go_on = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.stumbles.get(self.path, 0) > 0:
            self.server.stumbles[self.path] -= 1
            self.send_error(503)
            return
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.path in self.server.held:
            self.server.waiting.set()
            assert self.server.go_on.wait(60)
        elif self.path in self.server.short:
            self.wfile.write(content[: len(content) // 2])
        else:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the tests' stderr."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "releases") as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            yield serving
        finally:
            serving.go_on.set()
            serving.shutdown()
            thread.join()


@pytest.fixture
def machine(tmp_path: Path, server: Server) -> Machine:
    """One with version 0.1.0, while 0.2.0 is the latest."""
    made = Machine(tmp_path, Releases(tmp_path / "releases"))
    made.releases.publish("0.1.0")
    made.install()
    made.releases.publish("0.2.0")
    return made


def test_the_latest_comes_from_a_server(machine: Machine, server: Server) -> None:
    assert "before it was 0.1.0" in machine.install("--releases", f"{server.address}/")
    assert machine.version() == "spawn-host 0.2.0"
    assert server.asked[0] == "/latest"
    asked = len(server.asked)
    assert "is here already" in machine.install("--releases", server.address, "--version", "0.2.0")
    assert len(server.asked) == asked, "it fetched what it had"


def test_a_server_that_stumbles_is_asked_again(machine: Machine, server: Server) -> None:
    server.stumbles[PROGRAM_PATH] = 1
    machine.install("--releases", server.address)
    assert server.asked.count(PROGRAM_PATH) == 2
    assert machine.version() == "spawn-host 0.2.0"


@pytest.mark.parametrize("path", ["/latest", "/0.2.0/SHA256SUMS", PROGRAM_PATH, "/0.2.0/agent.yaml.example"])
def test_a_download_that_breaks_off_changes_nothing(machine: Machine, server: Server, path: str) -> None:
    server.short.add(path)
    assert f"{path} cannot be downloaded" in machine.install("--releases", server.address, status=1)
    assert machine.version() == "spawn-host 0.1.0"
    assert not (machine.prefix / "0.2.0").exists()
    server.short.clear()
    machine.install("--releases", server.address)
    assert machine.version() == "spawn-host 0.2.0"


def test_what_was_exchanged_on_the_server_is_not_installed(machine: Machine, server: Server) -> None:
    (server.folder / PROGRAM_PATH.lstrip("/")).write_text("#!/bin/sh\necho 'spawn-host 0.2.0'\n# and more\n")
    assert "nothing was installed" in machine.install("--releases", server.address, status=1)
    assert machine.version() == "spawn-host 0.1.0"


def test_who_interrupts_it_finds_what_was_there(machine: Machine, server: Server) -> None:
    server.held.add(PROGRAM_PATH)
    running = subprocess.Popen(
        ["sh", str(SCRIPT), "--prefix", machine.prefix, "--bin", machine.bin, "--no-unit"],
        env={**os.environ, "TMPDIR": str(machine.temporary), "SPAWN_HOST_RELEASES": server.address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert server.waiting.wait(60)
    # As a terminal does: everybody in the foreground hears it.
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(60) == 130
    assert list(machine.temporary.iterdir()) == []
    assert machine.version() == "spawn-host 0.1.0"
    assert {path.name for path in machine.prefix.iterdir()} == {"0.1.0"}


@contextmanager
def tools(folder: Path, monkeypatch: pytest.MonkeyPatch, *without: str, **instead: str) -> Iterator[None]:
    """A machine with these programs alone; `instead` are scripts in place of some."""
    place = folder / "tools"
    place.mkdir()
    for name in {*TOOLS, *MORE_TOOLS} - {*without, *instead}:
        found = shutil.which(name)
        assert found is not None, name
        (place / name).symlink_to(found)
    for name, script in instead.items():
        (place / name).write_text(f"#!/bin/sh\n{script}\n")
        (place / name).chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(place))
        yield


@pytest.mark.parametrize(
    ("system", "processor", "says"),
    [
        ("FreeBSD", "amd64", "there is no spawn-host for FreeBSD"),
        ("Linux", "riscv64", "there is no spawn-host for riscv64"),
        ("Darwin" if SYSTEM == "linux" else "Linux", "x86_64", "version 0.2.0 has no spawn-host-"),
    ],
)
def test_a_machine_that_nothing_is_built_for_is_named(
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    processor: str,
    says: str,
) -> None:
    uname = f'case "$1" in -s) echo {system} ;; -m) echo {processor} ;; esac'
    with tools(tmp_path, monkeypatch, uname=uname):
        told = machine.install(status=1)
    assert says in told
    assert told.count("spawn-host install:") == 1, told
    assert machine.version() == "spawn-host 0.1.0"


def test_a_machine_without_curl_and_wget_is_told(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tools(tmp_path, monkeypatch, "curl"):
        assert "neither curl nor wget is installed" in machine.install(status=1)


def test_a_mac_has_another_program_for_checksums(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("sha256sum")
    shasum = f'[ "$1 $2" = "-a 256" ] || exit 9; shift 2; exec {real} "$@"'
    with tools(tmp_path, monkeypatch, "sha256sum", shasum=shasum):
        machine.install()
        assert machine.version() == "spawn-host 0.2.0"
        (machine.prefix / "0.2.0" / "spawn-host").write_text("#!/bin/sh\necho broken\n")
        machine.install()
    assert machine.version() == "spawn-host 0.2.0"


def test_wget_does_where_there_is_no_curl(
    machine: Machine, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its options, as the script gives them; this machine may have no wget."""
    real = shutil.which("curl")
    wget = f'[ "$1 $2 $3 $4" = "-q --tries=3 --timeout=60 -O" ] || exit 9; exec {real} -fsS -o "$5" "$6"'
    with tools(tmp_path, monkeypatch, "curl", wget=wget):
        machine.install("--releases", server.address)
    assert machine.version() == "spawn-host 0.2.0"
