"""Several processes that serve on one socket: starts them, starts one again that died, and ends them when told.

They share nothing but that socket and the database. Whoever waits to be let in waits at the socket, so that no worker's
death turns anybody away. Invariant: no worker outlives its supervisor, whose end it sees on the line between them; and
where the first cannot start, its refusal is the command's, and no other is tried.
"""

import contextlib
import logging
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from spawn import logs

log = logging.getLogger(__name__)

UP: Final = b"+"
"""What a worker says on its line once it serves."""
AGAIN_S: Final = 1.0
"""Before a worker that died is started again: what ended it may take a while to pass."""
PATIENCE_S: Final = 30.0
"""How long the workers may take to end; they let running requests end first."""


@dataclass(frozen=True, eq=False)
class _Worker:
    process: "subprocess.Popen[bytes]"
    line: socket.socket


class Supervisor:
    """Runs `count` times `command`, each with the numbers of its listener and of its line behind it."""

    def __init__(self, command: Sequence[str], count: int, listener: socket.socket) -> None:
        self._command = command
        self._count = count
        self._listener = listener
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Until SIGTERM or SIGINT, or until the first worker refuses to start; answers the exit status."""
        logs.start(sys.stderr)
        signal.signal(signal.SIGTERM, _terminated)
        try:
            self._start()
            return self._keep()
        except (KeyboardInterrupt, SystemExit):
            return 0
        finally:
            self._end()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            numbers = (self._listener.fileno(), theirs.fileno())
            command = [*self._command, *map(str, numbers)]
            process = subprocess.Popen(command, pass_fds=numbers)  # noqa: S603 - our own program
        worker = _Worker(process, ours)
        self._workers.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _keep(self) -> int:
        anybody_was_up = False
        while True:
            for key, _ in self._selector.select():
                worker: _Worker = key.data
                if worker.line.recv(1) == UP:
                    anybody_was_up = True
                else:
                    status = self._bury(worker)
                    if not anybody_was_up:
                        return status
                    log.warning("worker %d ended (%d): another takes its place", worker.process.pid, status)
                    time.sleep(AGAIN_S)
                while len(self._workers) < self._count:
                    self._start()

    def _bury(self, worker: _Worker) -> int:
        self._selector.unregister(worker.line)
        self._workers.remove(worker)
        worker.line.close()
        return worker.process.wait()

    def _end(self) -> None:
        """Let all end in order, at the same time; end by force who takes too long."""
        for told in (signal.SIGTERM, signal.SIGINT):
            signal.signal(told, signal.SIG_IGN)
        for worker in self._workers:
            worker.process.terminate()
        until = time.monotonic() + PATIENCE_S
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, until - time.monotonic()))
            worker.process.kill()
            worker.process.wait()
            worker.line.close()
        self._selector.close()
        self._listener.close()


def _terminated(*_: object) -> NoReturn:
    raise SystemExit(0)
