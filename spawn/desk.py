"""Where the running service takes orders of its operator: a Unix socket beside the database.

SQLite has one writing process, so the command line cannot write while a service runs; it asks here. Invariant: who
is answered runs as the same user as the service, or as root; and an order is a line of JSON, as its answer is.
"""

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec
from spawn_schemas.errors import SpawnError

from spawn.services.admin import Order
from spawn.store.database import StoreError

log = logging.getLogger(__name__)

SUFFIX: Final = ".admin"
PATH_MAX: Final = 100
"""Bytes: Linux keeps 108 for the path of a socket, others 104, and the last is a zero."""
LINE_MAX: Final = 65_536
"""Bytes of an order or of an answer."""
ASKING_S: Final = 5.0
"""How long whoever connects may take to say what it wants."""
ANSWER_S: Final = 30.0
"""How long the command line waits for the answer."""
_PEER: Final = struct.Struct("iII")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, in sentences; or why it was not, and then nothing was."""

    said: tuple[str, ...]
    refused: bool = False


_orders: Final[msgspec.json.Decoder[Order]] = msgspec.json.Decoder(Order)
_answers: Final = msgspec.json.Decoder(Answer)

Do = Callable[[Order], Awaitable[tuple[str, ...]]]


class DeskUnusable(StoreError):
    """The socket cannot be used; the message says what to do instead. Nothing was asked for."""


class DeskSilent(StoreError):
    """An order was sent and no answer came: it may have been carried out."""


def socket_of(database: Path) -> Path:
    """Where the service that holds this database takes orders. Raises DeskUnusable where that has too long a name."""
    resolved = database.resolve()
    path = resolved.with_name(resolved.name + SUFFIX)
    if len(os.fsencode(path)) > PATH_MAX:
        raise DeskUnusable(
            f"{path} is longer than the {PATH_MAX} bytes that a socket may be named by: `spawn admin` can change "
            "nothing while the service runs. Stop the service for it, or move the database to a shorter path."
        )
    return path


async def carried_out(do: Do, order: Order) -> Answer:
    """Do it, and say what came of it, be it a refusal."""
    try:
        return Answer(said=await do(order))
    except SpawnError as refusal:
        return Answer(said=(" ".join(filter(None, (refusal.message, refusal.next))),), refused=True)


# --- the service's side -------------------------------------------------------------------------------------------


class Desk:
    """Listens while the service is up. The caller holds the database, so a socket that is there already is stale."""

    def __init__(self, path: Path, do: Do) -> None:
        self._path = path
        self._do = do
        self._server: asyncio.Server | None = None
        self._asking: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises DeskUnusable when something that is no socket is in the way, or the folder cannot be written."""
        listener = _listener(self._path)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=LINE_MAX)

    async def stop(self) -> None:
        """Take no more orders; what is being carried out is cut off, and its transaction is whole or was never."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        self._path.unlink(missing_ok=True)
        for task in tuple(self._asking):
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        try:
            writer.write(msgspec.json.encode(await self._answer(reader, writer)) + b"\n")
            async with asyncio.timeout(ASKING_S):
                await writer.drain()
        except (OSError, TimeoutError):
            log.info("whoever asked at the admin socket went away")
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Answer:
        try:
            async with asyncio.timeout(ASKING_S):
                line = await reader.readline()
        except ValueError:
            return _refusal(f"An order has at most {LINE_MAX} bytes.")
        except TimeoutError:
            return _refusal("No order came: it is one line of JSON.")
        # Only now: a connection that is closed with bytes unread takes its answer with it.
        if not may_ask(_peer_uid(writer), os.geteuid()):
            log.warning("another user's process asked at the admin socket and was refused")
            return _refusal("Run `spawn admin` as the user that the service runs as, or as root.")
        try:
            order = _orders.decode(line)
        except msgspec.DecodeError as error:
            return _refusal(
                f"The service does not understand this order ({error}): use the spawn of its version."
            )
        try:
            answer = await carried_out(self._do, order)
        except StoreError as error:
            return _refusal(f"The order was not carried out: {str(error).rstrip('.')}.")
        except Exception:
            log.exception("an order of the operator could not be carried out")
            return _refusal("The order was not carried out: the service's log says why.")
        log.info("ordered by the operator: %s", " ".join(answer.said))
        return answer


@contextlib.asynccontextmanager
async def open_desk(database: Path, do: Do) -> AsyncIterator[None]:
    """Take orders for the service that holds this database. Where it cannot, the service does without, and says so."""
    try:
        desk = Desk(socket_of(database), do)
        await desk.start()
    except DeskUnusable as error:
        log.warning("no orders of the operator are taken: %s", error)
        yield
        return
    try:
        yield
    finally:
        await desk.stop()


def _refusal(sentence: str) -> Answer:
    return Answer(said=(sentence,), refused=True)


def may_ask(peer_uid: int | None, own_uid: int) -> bool:
    """Whether a process of this user may give orders. None: the system does not say, and the file's mode decides."""
    return peer_uid is None or peer_uid in {0, own_uid}


def _peer_uid(writer: asyncio.StreamWriter) -> int | None:
    if sys.platform != "linux":
        return None
    connection: socket.socket = writer.get_extra_info("socket")
    _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(uid)


def _listener(path: Path) -> socket.socket:
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            _remove_stale(path)
            listener.bind(os.fspath(path))
            undo.callback(path.unlink, missing_ok=True)
            # Before it listens: until then nobody can connect, whatever the mode.
            path.chmod(0o600)
        except OSError as error:
            raise DeskUnusable(
                f"cannot listen on {path}: {error.strerror}. The folder of the database must be writable."
            ) from error
        listener.listen()
        undo.pop_all()
    return listener


def _remove_stale(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise DeskUnusable(
                f"{path} is in the way of the service's admin socket: move that file elsewhere."
            )
        path.unlink()


# --- the command line's side --------------------------------------------------------------------------------------


async def ask(path: Path, order: Order) -> Answer:
    """Give an order to the service that listens there.

    Raises DeskUnusable where nobody listens, or another user does, DeskSilent when no answer came.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=LINE_MAX)
    except PermissionError as error:
        raise DeskUnusable(
            f"{path} belongs to another user: run `spawn admin` as the user that the service runs as, or as root."
        ) from error
    except OSError as error:
        raise NobodyListens(
            f"another process holds the database, and nobody takes orders at {path}: wait until it is done, or up, or "
            "stop it."
        ) from error
    try:
        async with asyncio.timeout(ANSWER_S):
            writer.write(msgspec.json.encode(order) + b"\n")
            await writer.drain()
            line = await reader.readline()
        return _answers.decode(line)
    except (OSError, TimeoutError, ValueError, msgspec.DecodeError) as error:
        raise DeskSilent(
            "the service gave no answer: what was ordered may have been done. Look before you repeat it."
        ) from error
    finally:
        writer.close()


class NobodyListens(DeskUnusable):
    """There is no socket, or one that is left over."""
