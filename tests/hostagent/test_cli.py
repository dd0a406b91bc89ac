"""The commands beside a daemon, and the program itself: what they say, what they do, and how they end."""

import asyncio
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from spawn_hostagent.cli import uninstall as cli_uninstall
from spawn_hostagent.control import client as control
from spawn_schemas.inventory import Metrics
from spawn_schemas.orders import RentalReport

from tests.engines import ROOT
from tests.hostagent.cli_stage import RENTAL, Owner
from tests.hostagent.test_identity import registered

# --- the daemon's socket and files


@contextmanager
def answering(state: Path, answers: dict[str, dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """A daemon's socket, by a thread with a loop of its own; what it was asked."""
    state.mkdir(mode=0o700, exist_ok=True)
    asked: list[dict[str, Any]] = []
    loop = asyncio.new_event_loop()
    ready, over = threading.Event(), asyncio.Event()

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = json.loads(await reader.readline())
        asked.append(request)
        if (answer := answers.get(request["do"])) is not None:
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_unix_server(reply, state / control.SOCKET_NAME)
        ready.set()
        await over.wait()
        server.close()
        await server.wait_closed()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield asked
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def test_drain_undrain_and_logs_reach_the_daemon(owner: Owner) -> None:
    owner.write_config()
    answers: dict[str, dict[str, Any]] = {
        "drain": {"ok": True},
        "undrain": {"ok": True},
        "logs": {"ok": True, "text": "one\ntwo\x1b[2J\x07\n"},
    }
    with answering(owner.state, answers) as asked:
        assert "draining" in owner.says("drain")
        assert "taken again" in owner.says("undrain")
        logs = owner.says("logs", RENTAL, "-n", "7")
    assert asked == [{"do": "drain"}, {"do": "undrain"}, {"do": "logs", "rental_id": RENTAL, "lines": 7}]
    assert "one\ntwo" in logs
    assert "\x1b" not in logs, "a tenant's output must not steer the owner's terminal"


def test_the_daemons_refusal_is_said_in_its_words(owner: Owner) -> None:
    owner.write_config()
    with answering(owner.state, {"logs": {"ok": False, "message": "no rental srv_abc is here."}}):
        assert "no rental srv_abc is here." in owner.says("logs", RENTAL, status=1)


def test_a_daemon_that_breaks_off_is_said(owner: Owner) -> None:
    owner.write_config()
    with answering(owner.state, {}):
        assert "broke off" in owner.says("drain", status=1)


@pytest.mark.parametrize(
    "command", [["drain"], ["undrain"], ["logs", "srv_abc"], ["status"], ["status", "--json"]]
)
def test_without_a_daemon_the_way_to_start_one_is_said(owner: Owner, command: list[str]) -> None:
    owner.write_config()
    assert "spawn-host start" in owner.says(*command, status=1)


def test_a_socket_that_nobody_listens_at_is_no_daemon(owner: Owner) -> None:
    owner.write_config()
    owner.state.mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(owner.state / control.SOCKET_NAME))
    assert "no spawn-host runs" in owner.says("drain", status=1)


def a_status(**changes: Any) -> bytes:
    status = control.Status(
        pid=1,
        connected=True,
        since=int(time.time()) - 4000,
        tier="runc",
        rentals=(
            RentalReport(
                rental_id=RENTAL,
                generation=1,
                state="running",
                since=int(time.time()) - 60,
                disk_used_mib=2048,
            ),
        ),
        metrics=Metrics(cpu_percent=12.5, memory_percent=40.0),
    )
    return msgspec.json.encode(msgspec.structs.replace(status, **changes))


@contextmanager
def a_daemon(state: Path, status: bytes, *name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like the daemon, with its files."""
    state.mkdir(mode=0o700, exist_ok=True)
    (state / control.STATUS_NAME).write_bytes(status)
    code = "import sys; sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *(name or ("spawn-host", "start"))], stdin=subprocess.PIPE
    )
    (state / control.PID_NAME).write_text(f"{process.pid}\n")
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_status_is_a_table(owner: Owner) -> None:
    owner.write_config()
    with a_daemon(owner.state, a_status()):
        told = owner.says("status")
    for words in ("online for 67 min", "runc", "CPU 12 %", RENTAL, "running", "2.0 GiB"):
        assert words in told, told


def test_status_without_a_link_says_why(owner: Owner) -> None:
    owner.write_config()
    with a_daemon(
        owner.state, a_status(connected=False, last_error="certificate has expired", draining=True)
    ):
        told = owner.says("status")
    for words in ("no link to https://api.example.org", "certificate has expired", "draining"):
        assert words in told, told


def test_the_last_words_of_a_dead_daemon_are_not_taken_for_life(owner: Owner) -> None:
    owner.write_config()
    with a_daemon(owner.state, a_status()) as process:
        process.kill()
        process.communicate()
        assert "stopped; its last words are" in owner.says("status", status=1)
        assert json.loads(owner.says("status", "--json", status=1))["running"] is False


def test_a_daemon_that_is_silent_is_said_to_be(owner: Owner) -> None:
    owner.write_config()
    with a_daemon(owner.state, a_status()):
        then = time.time() - 300
        os.utime(owner.state / control.STATUS_NAME, (then, then))
        assert "silent for 5 min" in owner.says("status")


def test_a_status_of_another_version_is_said(owner: Owner) -> None:
    owner.write_config()
    with a_daemon(owner.state, b'{"pid": "one"}'):
        assert "another version" in owner.says("status", status=1)


def test_stop_ends_the_daemon_and_waits(owner: Owner) -> None:
    owner.write_config()
    with a_daemon(owner.state, a_status()) as process:
        waiter = threading.Thread(
            target=process.wait
        )  # its parent is this process: reap it, as systemd would
        waiter.start()
        assert "has stopped" in owner.says("stop", "--wait")
        waiter.join()
        # 0 is what Python says of a child that somebody else, here `stop --wait` itself, has reaped first.
        assert process.returncode in (-signal.SIGTERM, 0)


@pytest.mark.parametrize("name", [("sshd",), ("python3", "-m", "http.server")])
def test_stop_never_signals_somebody_elses_process(owner: Owner, name: tuple[str, ...]) -> None:
    owner.write_config()
    with a_daemon(owner.state, a_status(), *name) as process:
        assert "does not run" in owner.says("stop")
        assert process.poll() is None


def test_a_pid_that_was_used_again_is_not_ours(owner: Owner) -> None:
    owner.write_config()
    with a_daemon(owner.state, a_status()) as process:
        then = time.time() - 3600
        os.utime(owner.state / control.PID_NAME, (then, then))
        assert "does not run" in owner.says("stop")
        assert process.poll() is None


def test_stop_without_a_daemon_is_no_failure(owner: Owner) -> None:
    owner.write_config()
    assert "does not run" in owner.says("stop")


def test_start_needs_a_registration(owner: Owner) -> None:
    owner.write_config()
    assert "run `spawn-host setup`" in owner.says("start", status=1)


def test_start_refuses_another_service_than_the_registrations(owner: Owner) -> None:
    owner.write_config("https://other.example.org")
    registered(owner.state)
    assert "is registered at https://api.example.org" in owner.says("start", status=1)


# --- uninstall


def test_uninstall_refuses_while_anything_is_rented(owner: Owner) -> None:
    owner.write_config()
    registered(owner.state)
    owner.machines.rentals = ["srv_one", "srv_two"]
    told = owner.says("uninstall", "--yes", status=1)
    assert "2 containers of tenants here: srv_one, srv_two" in told
    assert (owner.state / "identity.json").exists()
    assert owner.machines.destroyed == []


def test_uninstall_removes_what_it_brought_and_says_what_it_left(owner: Owner) -> None:
    owner.write_config()
    registered(owner.state)
    cli_uninstall.UNIT.parent.mkdir()
    cli_uninstall.UNIT.write_text("[Unit]\n")
    told = owner.says("uninstall", "--yes")
    assert not owner.state.exists()
    assert not cli_uninstall.UNIT.exists()
    assert owner.config.exists()
    for words in ("the key of host_", str(owner.state), "left", str(owner.config), "revokes"):
        assert words in told, told


def test_uninstall_with_force_destroys_rentals_first(owner: Owner) -> None:
    owner.write_config()
    registered(owner.state)
    owner.machines.rentals = ["srv_one"]
    assert "destroyed 1 container" in owner.says("uninstall", "--yes", "--force")
    assert owner.machines.destroyed == ["srv_one"]
    assert not owner.state.exists()


class Daemon:
    """A process that takes one more rental before it ends."""

    pid, parent = 4711, 4710

    def __init__(self, owner: Owner, late: str | None) -> None:
        self.owner, self.late = owner, late
        self.is_over = False

    def ppid(self) -> int:
        return self.parent

    def terminate(self) -> None:
        if self.late:
            self.owner.machines.rentals.append(self.late)

    def wait(self, timeout: int) -> None:
        assert self.owner.machines.destroyed == [], "what is destroyed while it runs, it may start again"
        self.is_over = True


@pytest.mark.parametrize("late", [None, "srv_late"])
def test_uninstall_ends_rentals_after_the_daemon(
    owner: Owner, monkeypatch: pytest.MonkeyPatch, late: str | None
) -> None:
    owner.write_config()
    registered(owner.state)
    owner.machines.rentals = ["srv_one"]
    daemon = Daemon(owner, late)
    monkeypatch.setattr(control, "find_daemon", lambda _: daemon)
    owner.says("uninstall", "--yes", "--force")
    assert daemon.is_over
    assert owner.machines.destroyed == ["srv_one", *([late] if late else [])]
    assert owner.machines.rentals == []


def test_uninstall_keeps_what_was_rented_while_the_daemon_ended(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner.write_config()
    registered(owner.state)
    monkeypatch.setattr(control, "find_daemon", lambda _: Daemon(owner, "srv_late"))
    told = owner.says("uninstall", "--yes", status=1)
    assert "srv_late" in told
    assert "start it again" in told
    assert (owner.state / "identity.json").exists()


def test_uninstall_destroys_nothing_before_its_owner_agreed(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner.write_config()
    registered(owner.state)
    owner.machines.rentals = ["srv_one"]
    questions: list[str] = []

    def refuse(question: str) -> bool:
        questions.append(question)
        return False

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", refuse)
    assert "nothing was removed" in owner.says("uninstall", "--force", status=1)
    assert "Destroy 1 container" in questions[0]
    assert owner.machines.destroyed == []
    assert (owner.state / "identity.json").exists()


def test_uninstall_without_docker_is_only_for_who_insists(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner.write_config()
    registered(owner.state)
    owner.machines.broken = True
    assert "cannot be seen" in owner.says("uninstall", "--yes", status=1)
    assert (owner.state / "identity.json").exists()
    (owner.state / "rentals").mkdir()
    (owner.state / "rentals" / "spawn-srv_one-1.json").write_text("{}")
    asked: list[list[str]] = []
    monkeypatch.setattr("spawn_hostagent.preflight.programs.run_program", asked.append)
    told = owner.says("uninstall", "--yes", "--force")
    for words in ("was not asked", f"left     {owner.state} and the walls", "tenants may still run", "again"):
        assert words in told, told
    assert (owner.state / "rentals").exists()
    assert asked == [], "nothing is done to the walls"
    # Where the key was in a keyring, this is all that is left.
    shutil.rmtree(owner.state / "keys")
    owner.machines.broken = False
    owner.machines.rentals = ["srv_one"]
    assert "destroyed 1 container" in owner.says("uninstall", "--yes", "--force")
    assert not owner.state.exists()
    tables = [words[-1] for words in asked if words[0] == "nft"]
    assert tables == ["spawn", "spawn_counts"]


def test_uninstall_empties_a_state_folder_that_is_mounted(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner.write_config()
    registered(owner.state)
    remove = os.rmdir

    def rmdir(path: Any, **more: Any) -> None:
        if str(path) == str(owner.state):
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        remove(path, **more)

    monkeypatch.setattr("os.rmdir", rmdir)
    told = owner.says("uninstall", "--yes")
    assert f"removed  everything in {owner.state}" in told
    assert list(owner.state.iterdir()) == []


def test_uninstall_says_what_it_did_before_something_stays(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner.write_config()
    registered(owner.state)

    def refuse(path: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", f"{path}/disks")

    monkeypatch.setattr("shutil.rmtree", refuse)
    told = owner.says("uninstall", "--yes", status=1)
    assert "removed  the key of host_" in told
    assert f"{owner.state}/disks cannot be removed (Operation not permitted)" in told


@pytest.mark.parametrize(("parent", "is_refused"), [("the machine", True), ("the container", False)])
def test_uninstall_does_not_end_the_container_that_it_runs_in(
    owner: Owner, monkeypatch: pytest.MonkeyPatch, parent: str, is_refused: bool
) -> None:
    owner.write_config()
    registered(owner.state)
    daemon = Daemon(owner, None)
    places = {daemon.pid: "the container", os.getpid(): "the container", daemon.parent: parent}
    monkeypatch.setattr(control, "find_daemon", lambda _: daemon)
    monkeypatch.setattr(cli_uninstall, "IN_DOCKER", owner.config)
    monkeypatch.setattr(cli_uninstall, "_cgroup", places.__getitem__)
    told = owner.says("uninstall", "--yes", status=int(is_refused))
    assert ("docker stop" in told, daemon.is_over) == (is_refused, not is_refused)
    assert owner.state.exists() is is_refused


def test_uninstall_never_removes_somebody_elses_folder(owner: Owner) -> None:
    owner.write_config()
    owner.state.mkdir()
    (owner.state / "thesis.tex").write_text("years of work")
    assert "does not look like spawn-host's" in owner.says("uninstall", "--yes", status=1)
    assert (owner.state / "thesis.tex").exists()


def test_uninstall_asks(owner: Owner) -> None:
    owner.write_config()
    registered(owner.state)
    assert "--yes" in owner.says("uninstall", status=2)
    assert (owner.state / "identity.json").exists()


# --- the program itself


def run(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spawn_hostagent", *words],
        cwd=ROOT / "hostagent",
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "hostagent"), str(ROOT / "schemas")])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )


@pytest.mark.parametrize("words", [["--version"], ["version"]])
def test_the_version_is_told(words: list[str]) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (0, "spawn-host 0.1.0\n")


def test_every_command_explains_itself() -> None:
    told = run("--help").stdout
    names = ("setup", "start", "status", "drain", "undrain", "stop", "logs", "check", "uninstall", "version")
    assert [name for name in names if f"\n  {name} " not in told] == []
    assert "..." not in told.replace("[ARGS]...", ""), "a summary was cut off"


def test_an_unknown_command_is_a_usage_error() -> None:
    done = run("frob")
    assert done.returncode == 2
    assert "frob" in done.stderr


def test_heavy_modules_are_left_alone_until_they_are_needed() -> None:
    """The daemon carries what it imports for as long as it runs."""
    code = (
        "import sys; from spawn_hostagent import main, hardware, config; "
        "from spawn_hostagent.cli import common; from spawn_hostagent.joining import identity; "
        "common.open_detector(config.Config(service='')).inventory(); "
        "print([m for m in ('docker', 'rich.table', 'keyring', 'httpx', 'pynvml', 'yaml') if m in sys.modules])"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "hostagent"), str(ROOT / "schemas")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "['yaml']", done.stdout
