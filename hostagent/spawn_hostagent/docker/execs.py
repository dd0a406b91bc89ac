"""Programs run inside a rental on command, and what a rental printed.

Invariant: what is read is bounded in bytes and in time, whatever the tenant's program does. Docker has no call that
ends an `exec`, so that one which takes too long is ended by its process id on the host, once that is seen to be in
the container.
"""

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Any, Final

import psutil
from docker import APIClient
from docker.utils.socket import frames_iter

from spawn_hostagent.docker.engine import NO_ANSWER
from spawn_hostagent.machines import ExecResult

OUTPUT_BYTES_MAX: Final = 64 * 1024
STDERR: Final = 2


class _Kept:
    """The first bytes of a stream."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._room = OUTPUT_BYTES_MAX

    def add(self, part: bytes) -> None:
        if self._room:
            self._parts.append(part[: self._room])
            self._room -= len(self._parts[-1])

    def text(self) -> str:
        return b"".join(self._parts).decode(errors="replace")


def run(client: APIClient, container_id: str, argv: tuple[str, ...], timeout_s: float) -> ExecResult | None:
    """Run it and wait; None if it did not end in time, and was ended. Blocks. Raises docker.errors.APIError."""
    exec_id: str = client.exec_create(container_id, list(argv))["Id"]
    stream: Any = client.exec_start(exec_id, socket=True)
    # The SDK's stream leaves the socket under it to the garbage collector, and hands out no other way to it.
    under: socket.socket = stream._sock
    late = threading.Event()
    # Another hold on the same connection, so that closing it here cannot close somebody else's file.
    cut = socket.socket(fileno=os.dup(stream.fileno()))

    def give_up() -> None:
        late.set()
        # This thread may use the client: the other one waits on a connection that has left the client's hands.
        _end(client, exec_id, container_id)
        with contextlib.suppress(OSError):
            # A child that left its parent may hold the stream open. An error: it had ended by itself.
            cut.shutdown(socket.SHUT_RDWR)

    watch = threading.Timer(timeout_s, give_up)
    watch.start()
    kept = {STDERR: _Kept()}
    out = _Kept()
    try:
        for kind, part in frames_iter(stream, tty=False):  # type: ignore[no-untyped-call]  # its stub has no types
            kept.get(kind, out).add(part)
    except OSError:
        if not late.is_set():
            raise
    finally:
        watch.cancel()
        watch.join()
        cut.close()
        stream.close()
        under.close()
    if late.is_set():
        return None
    exit_code = client.exec_inspect(exec_id)["ExitCode"]
    return ExecResult(
        exit_code=-1 if exit_code is None else exit_code, stdout=out.text(), stderr=kept[STDERR].text()
    )


def _end(client: APIClient, exec_id: str, container_id: str) -> None:
    """Kill the process and its children, unless that number belongs to something outside of the container by now."""
    try:
        pid = int(client.exec_inspect(exec_id)["Pid"])
        if pid <= 0 or container_id not in Path(f"/proc/{pid}/cgroup").read_text():
            return
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            process.kill()
    except (*NO_ANSWER, psutil.Error):
        return  # it has ended, or the agent does not see the host's processes; the stream is cut all the same


def last_lines(client: APIClient, container_id: str, lines: int) -> str:
    """What the container printed last, the last `OUTPUT_BYTES_MAX` bytes of it. Blocks."""
    kept = b""
    for part in client.logs(container_id, stdout=True, stderr=True, stream=True, follow=False, tail=lines):
        kept = (kept + part)[-OUTPUT_BYTES_MAX:]
    return kept.decode(errors="replace")
