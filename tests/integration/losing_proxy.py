"""Stands between us and a PostgreSQL server, and loses a COMMIT or its answer when it is told to.

Invariant: `lose` is about the one message that a client sends next, on whichever connection; everything else goes
through as it is, and nothing is read into it.
"""

import contextlib
import socket
import threading
from enum import Enum
from pathlib import Path
from typing import Final

PORT: Final = 5432
WAIT_S: Final = 10


class Loss(Enum):
    """What becomes of the next message."""

    MESSAGE = "the server never gets it"
    ANSWER = "the server obeys, and its answer is lost"
    EVERYTHING = "so is every later attempt to connect"
    HELD = "it is on its way, and arrives when `deliver` is called"


class LosingProxy:
    """A socket in `folder` that leads to the one in `server`."""

    def __init__(self, folder: Path, server: Path) -> None:
        self.folder = folder
        self._server = server
        self._through: set[socket.socket] = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / f".s.PGSQL.{PORT}"))
        self._listener.listen()
        self._loss: Loss | None = None
        self._gone = False
        self._delivery = threading.Event()
        self.messages = 0
        """What clients have sent so far."""
        self.held = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, loss: Loss) -> None:
        self._loss = loss

    def deliver(self) -> None:
        self._delivery.set()

    def cut(self, but: socket.socket | None = None) -> None:
        """Nobody gets through any more, nor is anybody still connected."""
        self._gone = True
        for connection in self._through - {but}:
            _end(connection)

    def mend(self) -> None:
        self._gone = False

    def close(self) -> None:
        self.cut()
        self._delivery.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._gone:
                    client.close()
                    continue
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._server / f".s.PGSQL.{PORT}"))
                self._through |= {client, server}
                answers = threading.Thread(target=self._pass_on, args=(server, client), daemon=True)
                answers.start()
                threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _pass_on(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65_536):
                client.sendall(data)
        _end(client)

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65_536):
                self.messages += 1
                loss, self._loss = self._loss, None
                if loss is not None:
                    self._lose(loss, data, client, server)
                    return
                server.sendall(data)
        _end(server)

    def _lose(self, loss: Loss, data: bytes, client: socket.socket, server: socket.socket) -> None:
        if loss is Loss.EVERYTHING:
            self.cut(but=server)
        if loss is Loss.HELD:
            _end(client)
            self.held.set()
            assert self._delivery.wait(WAIT_S)
        elif loss is Loss.ANSWER:
            # No answer may pass from here on, and whoever waits for one goes on waiting until it is given.
            client.shutdown(socket.SHUT_WR)
        if loss is not Loss.MESSAGE:
            server.sendall(data)
            # The server has obeyed when it has seen the end of what we say, and hangs up.
            server.shutdown(socket.SHUT_WR)
        _end(client)
        _end(server)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
