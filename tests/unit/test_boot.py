"""What a machine is told has the buyer's data in it, untouched, and the program in it reports what there is, once."""

import builtins
import json
import os
import socket
import subprocess
import sys
import time
from email import message_from_string
from email.message import Message
from pathlib import Path
from typing import Any
from urllib import error, request

import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from hypothesis import given
from hypothesis import strategies as st
from spawn_providers import cloud_init

from spawn.domain.boot import Boot, merged, size
from spawn.domain.host_keys import host_key
from spawn.domain.reporter import LOG_MAX, program

KEY = host_key(bytes(range(32)))
URL = "https://spawn.example/v1/boots/" + "x" * 64
BOOT = Boot(host_key=KEY, callback_url=URL)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: not text.isspace())


def parts_of(text: str | None) -> list[Message]:
    assert text is not None
    parts = message_from_string(text).get_payload()
    assert isinstance(parts, list)
    assert all(isinstance(part, Message) for part in parts)
    return [part for part in parts if isinstance(part, Message)]


def content_of(part: Message) -> str:
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content.decode()


def test_nothing_is_told_where_there_is_nothing_to_tell() -> None:
    assert merged(None, Boot()) is None
    assert merged(" \n", Boot()) is None
    assert merged("#!/bin/sh", Boot()) == "#!/bin/sh"
    assert size(None, host_key=False, callback_url=None) == 0


@given(TEXTS)
def test_the_buyers_text_comes_first_and_untouched(text: str) -> None:
    given_, report, config = parts_of(merged(text, BOOT))
    assert content_of(given_) == text
    assert given_.get_content_type() == cloud_init.BY_BEGINNING
    assert content_of(report) == program(URL)
    assert (report.get_content_type(), config.get_content_type()) == (
        "text/cloud-boothook",
        "text/cloud-config",
    )
    read = yaml.safe_load(content_of(config))
    assert read["ssh_keys"] == {"ed25519_private": KEY.private, "ed25519_public": KEY.public}


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r", "\r\n", "\0"])
def test_every_end_of_a_text_survives(end: str) -> None:
    for text in ("#!/bin/sh" + end, "#!/bin/sh\r\ntrue" + end, "#!/bin/sh\n--spawn-0-\n--spawn-1-" + end):
        assert content_of(parts_of(merged(text, BOOT))[0]) == text


def test_a_message_of_the_buyer_is_a_part_as_it_stands() -> None:
    head = 'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="spawn-0-"\n'
    theirs = head + "\n--spawn-0-\n\n#!/bin/sh\n--spawn-0---\n"
    text = merged(theirs, BOOT)
    assert text is not None
    assert theirs in text
    nested, _, _ = parts_of(text)
    assert [part.get_payload() for part in nested.walk() if not part.is_multipart()] == ["#!/bin/sh"]
    # What we made may be added to in the same way: a provider does at a rebuild.
    again = cloud_init.joined(text, cloud_init.config({"ssh_pwauth": True}))
    assert [part.get_content_type() for part in parts_of(again)] == ["multipart/mixed", "text/cloud-config"]


@given(TEXTS, st.booleans(), st.binary(min_size=32, max_size=32))
def test_the_size_is_known_before_there_is_a_key(text: str, has_key: bool, seed: bytes) -> None:
    told = merged(text, Boot(host_key=host_key(seed) if has_key else None, callback_url=URL))
    assert told is not None
    assert size(text, host_key=has_key, callback_url=URL.replace("x", "y")) == len(told.encode())


def test_our_parts_are_small() -> None:
    assert size(None, host_key=True, callback_url=URL) < 3 * 1024 + 512


def test_no_traceback_shows_the_key_or_the_url() -> None:
    assert repr(BOOT) == "Boot(…)"


# --- the program ------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """The test has seen enough."""


class World:
    """Where the program runs: its files, a clock that only its own pauses move, and a receiver."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.now = 1000.0
        self.told: list[Any] = []
        self.refusals: list[int | Exception] = []
        self.pauses: list[float] = []
        self.ssh_greets = True
        self.result: dict[str, Any] | None = {"v1": {"errors": []}}
        self.result_after = 0.0
        self.log = folder / "output.log"
        self.log.write_text("said\n")
        patch.setattr(time, "sleep", self._sleep)
        patch.setattr(time, "monotonic", lambda: self.now)
        patch.setattr(request, "urlopen", self._receive)
        patch.setattr(socket, "create_connection", self._connect)
        patch.setattr(sys, "argv", ["part-002", "report"])

    def run(self) -> None:
        result = self.folder / "result.json"
        result.unlink(missing_ok=True)
        if self.result is not None and self.now >= self.result_after:
            result.write_text(json.dumps(self.result))
        text = program(URL).removeprefix("#cloud-boothook\n")
        text = text.replace("/run/cloud-init/result.json", str(result))
        text = text.replace("/var/log/cloud-init-output.log", str(self.log))
        me = str(self.folder / "part-002")
        exec(compile(text, me, "exec"), {"__name__": "__main__", "__file__": me})  # noqa: S102 - it is ours

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)
        if self.result is not None and self.now >= self.result_after:
            (self.folder / "result.json").write_text(json.dumps(self.result))
        if len(self.pauses) > 10_000:
            raise Stopped

    def _connect(self, address: tuple[str, int], timeout: float) -> socket.socket:
        assert address[0] in {"127.0.0.1", "::1"}
        assert address[1] == 22
        if not self.ssh_greets:
            raise ConnectionRefusedError
        near, far = socket.socketpair()
        with far:
            far.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        return near

    def _receive(self, sent: request.Request, timeout: float) -> Any:
        assert sent.full_url == URL
        assert sent.get_header("Content-type") == "application/json"
        assert isinstance(sent.data, bytes)
        if self.refusals:
            refusal = self.refusals.pop(0)
            if isinstance(refusal, Exception):
                raise refusal
            raise error.HTTPError(URL, refusal, "", {}, None)  # type: ignore[arg-type]  # any mapping does
        self.told.append(json.loads(sent.data))
        return socket.socket()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


DONE = {"cloud_init": "done", "log": "said\n"}


def test_each_thing_is_told_once(world: World) -> None:
    world.run()
    assert world.told == [{"ssh": True}, DONE]
    world.run()
    assert len(world.told) == 2


def test_a_failure_is_told_with_what_failed(world: World) -> None:
    world.result = {"v1": {"errors": ["('scripts_user', RuntimeError('…'))"]}}
    world.run()
    assert world.told[1] == {
        "cloud_init": "failed",
        "log": "said\nerror: ('scripts_user', RuntimeError('…'))\n",
    }


def test_a_log_is_cut_and_need_not_be_there(world: World) -> None:
    world.log.write_bytes(b"first" + b"\xff" * LOG_MAX + b"last")
    world.run()
    log = world.told[1]["log"]
    assert (len(log), log[-5:]) == (LOG_MAX, "\ufffdlast")
    (world.folder / "part-002.cloud_init").unlink()
    world.log.unlink()
    world.run()
    assert world.told[2] == {"cloud_init": "done", "log": ""}


def test_it_is_repeated_with_growing_pauses(world: World) -> None:
    """A 403 or 404 may be a proxy's of a service that is being replaced."""
    world.refusals = [503, 404, OSError("unreachable"), TimeoutError()]
    world.run()
    assert sorted(world.told, key=str) == sorted([{"ssh": True}, DONE], key=str)
    assert world.pauses[:2] == [2, 4]


@pytest.mark.parametrize("final", [400, 410, 413, 422])
def test_a_no_is_an_answer(world: World, final: int) -> None:
    world.refusals = [final, final]
    world.run()
    world.run()
    assert (world.told, world.refusals) == ([], [])


def test_it_gives_up_an_hour_after_cloud_init_ended(world: World) -> None:
    world.refusals, world.result_after = [503] * 10_000, 8_000.0
    world.run()
    assert 8_000 + 3_600 < world.now < 8_000 + 3_600 + 601
    assert world.told == []
    assert max(world.pauses) == 300


def test_without_ssh_the_rest_is_told_and_it_ends(world: World) -> None:
    world.ssh_greets = False
    for _ in range(2):
        began = world.now
        world.run()
        assert world.told == [DONE]
        assert 3_600 < world.now - began < 3_610


def test_it_waits_for_a_long_first_start(world: World) -> None:
    world.result_after = 9_000.0
    world.run()
    assert world.told == [{"ssh": True}, DONE]


def test_a_start_of_the_machine_hands_it_to_systemd(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["part-002"])
    monkeypatch.setattr(subprocess, "call", calls.append)
    with pytest.raises(SystemExit):
        world.run()
    (call,) = calls
    assert call[0] == "systemd-run"
    assert "--no-block" in call
    assert call[-3:] == [sys.executable, str(world.folder / "part-002"), "report"]
    for name in ("ssh", "cloud_init"):
        (world.folder / f"part-002.{name}").touch()
    world.run()
    assert len(calls) == 1


def test_the_shell_of_it_finds_python(tmp_path: Path) -> None:
    """As cloud-init runs it: a file without its first line. Here systemd-run is a program that writes down its call."""
    hook, bin_ = tmp_path / "part-002", tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "systemd-run").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    (bin_ / "systemd-run").chmod(0o700)
    (bin_ / "python3").symlink_to(sys.executable)
    hook.write_text(program(URL).removeprefix("#cloud-boothook\n"))
    hook.chmod(0o700)
    subprocess.run([hook], env={"PATH": f"{bin_}{os.pathsep}/bin"}, check=True, timeout=30)
    called = (tmp_path / "called").read_text().split()
    assert called[-2:] == [str(hook), "report"]
    assert "--no-block" in called


def test_no_url_ends_the_string_that_it_is_in() -> None:
    names: dict[str, Any] = {}
    line = next(line for line in program('https://x/"+1\\\n').splitlines() if line.startswith("URL = "))
    exec(line, {"__builtins__": vars(builtins)}, names)  # noqa: S102 - it is ours
    assert names["URL"] == 'https://x/"+1\\\n'
