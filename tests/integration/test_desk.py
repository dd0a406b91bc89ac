"""The socket where a running service takes orders: who may ask, what is understood, and what is left behind.

Invariant tested throughout: whatever is sent, the next who asks is served.
"""

import asyncio
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from spawn_schemas.errors import Code, SpawnError

from spawn import desk
from spawn.desk import (
    Answer,
    Desk,
    DeskSilent,
    DeskUnusable,
    NobodyListens,
    ask,
    may_ask,
    open_desk,
    socket_of,
)
from spawn.services.admin import Credit, Order
from spawn.store.database import DatabaseFailed

pytestmark = pytest.mark.embedded

WALLET = "0x" + "5a" * 20
CREDIT = Credit(id="one", wallet=WALLET, usdc=5_000_000, reason="an outage")
NOBODY_UID = 65534


class Doing:
    """Does nothing with an order but remember it; `fails` is raised instead."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.orders: list[Order] = []
        self.fails = fails

    async def __call__(self, order: Order) -> tuple[str, ...]:
        if self.fails is not None:
            raise self.fails
        self.orders.append(order)
        return ("done",)


@asynccontextmanager
async def opened(folder: Path, do: Doing) -> AsyncIterator[Path]:
    path = folder / "spawn.db"
    async with open_desk(path, do):
        yield socket_of(path)


async def say(path: Path, line: bytes) -> Answer:
    """What comes back for these bytes."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(line)
    writer.write_eof()
    async with asyncio.timeout(10):
        answer = await reader.readline()
    writer.close()
    return msgspec.json.decode(answer, type=Answer)


async def test_an_order_is_carried_out_and_answered(tmp_path: Path) -> None:
    do = Doing()
    async with opened(tmp_path, do) as path:
        assert await ask(path, CREDIT) == Answer(said=("done",))
    assert do.orders == [CREDIT]


async def test_only_its_owner_may_open_the_socket_and_it_goes_with_the_service(tmp_path: Path) -> None:
    async with opened(tmp_path, Doing()) as path:
        assert path.name == "spawn.db.admin"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_a_refusal_says_what_to_do(tmp_path: Path) -> None:
    do = Doing(SpawnError(Code.CONFLICT, "It is so already.", next="Look first."))
    async with opened(tmp_path, do) as path:
        assert await ask(path, CREDIT) == Answer(said=("It is so already. Look first.",), refused=True)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (DatabaseFailed("the database is closed"), "the database is closed"),
        (ZeroDivisionError(), "log says why"),
    ],
)
async def test_a_failure_is_answered_without_its_insides(
    tmp_path: Path, failure: Exception, words: str
) -> None:
    do = Doing(failure)
    async with opened(tmp_path, do) as path:
        answer = await ask(path, CREDIT)
        assert answer.refused
        assert words in answer.said[0]
        do.fails = None
        assert await ask(path, CREDIT) == Answer(said=("done",))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "does not understand"),
        (b"\n", "does not understand"),
        (b"hello\n", "does not understand"),
        (b"\xff\x00\n", "does not understand"),
        (b'{"order":"destroy_everything"}\n', "does not understand"),
        (b'{"order":"credit","id":"x"}\n', "does not understand"),
        (msgspec.json.encode(msgspec.structs.replace(CREDIT, usdc=0)), "does not understand"),
        (msgspec.json.encode(msgspec.structs.replace(CREDIT, wallet="0x5A")), "does not understand"),
        (b"x" * (desk.LINE_MAX + 1) + b"\n", "65536 bytes"),
        (b"[" * 60_000 + b"\n", "does not understand"),
    ],
)
async def test_what_is_no_order_is_refused(tmp_path: Path, line: bytes, words: str) -> None:
    do = Doing()
    async with opened(tmp_path, do) as path:
        answer = await say(path, line)
        assert answer.refused
        assert words in answer.said[0]
        assert do.orders == []
        assert await ask(path, CREDIT) == Answer(said=("done",))


async def test_who_says_nothing_keeps_nobody_waiting(tmp_path: Path) -> None:
    async with opened(tmp_path, Doing()) as path:
        silent = [await asyncio.open_unix_connection(path) for _ in range(20)]
        assert await ask(path, CREDIT) == Answer(said=("done",))
        for _, writer in silent:
            writer.close()


async def test_stopping_does_not_wait_for_who_says_nothing(tmp_path: Path) -> None:
    server = Desk(socket_of(tmp_path / "spawn.db"), Doing())
    await server.start()
    _, writer = await asyncio.open_unix_connection(socket_of(tmp_path / "spawn.db"))
    # Whoever came first has been let in when whoever came second is answered.
    assert await ask(socket_of(tmp_path / "spawn.db"), CREDIT) == Answer(said=("done",))
    async with asyncio.timeout(20):
        await server.stop()
    await server.stop()
    writer.close()


async def test_a_socket_that_was_left_over_is_replaced(tmp_path: Path) -> None:
    path = socket_of(tmp_path / "spawn.db")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NobodyListens):
        await ask(path, CREDIT)
    async with opened(tmp_path, Doing()):
        assert await ask(path, CREDIT) == Answer(said=("done",))


async def test_a_file_in_the_way_is_left_alone_and_the_service_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = socket_of(tmp_path / "spawn.db")
    path.write_text("mine")
    async with opened(tmp_path, Doing()):
        pass
    assert path.read_text() == "mine"
    assert "in the way" in caplog.text


async def test_a_path_too_long_is_said_and_the_service_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / ("d" * 100)
    folder.mkdir()
    with pytest.raises(DeskUnusable, match="shorter path"):
        socket_of(folder / "spawn.db")
    async with open_desk(folder / "spawn.db", Doing()):
        assert list(folder.iterdir()) == []
    assert "shorter path" in caplog.text


def test_the_longest_path_there_may_be_works(tmp_path: Path) -> None:
    room = desk.PATH_MAX - len(os.fsencode(tmp_path.resolve())) - len("/.admin")
    path = socket_of(tmp_path / ("x" * room))
    with socket.socket(socket.AF_UNIX) as longest:
        longest.bind(str(path))
    with pytest.raises(DeskUnusable):
        socket_of(tmp_path / ("x" * (room + 1)))


async def test_a_service_that_says_nothing_may_have_done_it(tmp_path: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    path = tmp_path / "odd"
    async with await asyncio.start_unix_server(hang_up, path):
        with pytest.raises(DeskSilent, match="may have been done"):
            await ask(path, CREDIT)


@pytest.mark.parametrize(
    ("peer", "own", "may"),
    [(1000, 1000, True), (0, 1000, True), (1001, 1000, False), (1000, 0, False), (None, 1000, True)],
)
def test_who_may_ask(peer: int | None, own: int, may: bool) -> None:
    assert may_ask(peer, own) is may


ASK_AS_NOBODY = f"""
import os, socket, sys
os.setgid({NOBODY_UID}), os.setuid({NOBODY_UID})
with socket.socket(socket.AF_UNIX) as caller:
    try:
        caller.connect(sys.argv[1])
    except PermissionError:
        print("no permission")
    else:
        caller.sendall(b"{{}}\\n")
        print(caller.makefile().readline())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_another_user_is_kept_out_by_the_mode_and_by_who_it_is(tmp_path: Path) -> None:
    async def as_nobody(path: Path) -> str:
        run = subprocess.run
        done = await asyncio.to_thread(
            run,
            [sys.executable, "-c", ASK_AS_NOBODY, str(path)],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return str(done.stdout)

    do = Doing()
    # A folder that everybody may enter: what pytest makes is its owner's alone.
    folder = Path("/tmp") / f"spawn-desk-{os.getpid()}"  # noqa: S108 - removed again below
    folder.mkdir(mode=0o755)
    try:
        async with opened(folder, do) as path:
            assert "no permission" in await as_nobody(path)
            path.chmod(0o666)
            assert "as the user that the service runs as" in await as_nobody(path)
    finally:
        folder.rmdir()
    assert do.orders == []
