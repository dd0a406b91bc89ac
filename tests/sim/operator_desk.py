"""How the operator reaches the service and its files: orders by the living process, looks past it.

Invariant: what the operator looks at is one moment of the committed database; what is ordered runs in a task of the
process, and is lost with it.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from spawn_ledger.tx import Params, Row, Tx
from spawn_schemas.errors import Code, SpawnError

from spawn.services.admin import Order
from spawn.store.database import NO_PARAMS
from spawn.store.places import file_of
from spawn.store.sqlite import connect_writer
from spawn.store.sqlite_writer import SqliteTx
from tests.sim.client_types import ConnectionLost
from tests.sim.oracle.bars import Bars
from tests.sim.process import Process

if TYPE_CHECKING:
    from tests.sim.world import World

T = TypeVar("T")

TRIES: Final = 10_000
"""More than anybody repeats an order before the calm, in which it comes through."""


RESTORES_BEGUN: Final = "restores begun"
RESTORES_DONE: Final = "restores done"


def is_restoring(world: "World") -> bool:
    """Whether the operator has the database's files to itself, and the copies are not to be touched."""
    return world.counts[RESTORES_BEGUN] > world.counts[RESTORES_DONE]


def database_of(world: "World") -> Path:
    return file_of(world.settings.database_url)


def bars_of(world: "World") -> Bars:
    """Where the oracle keeps what the operator gave."""
    return next(part for part in world.parts if isinstance(part, Bars))


async def ask(world: "World", make: Callable[[Process], Coroutine[Any, Any, T]]) -> T:
    """Let the living process do something. Raises ConnectionLost when there is none, or it dies meanwhile."""
    process = world.process
    if process is None or not process.is_ready:
        raise ConnectionLost
    task = process.spawn(make(process), name="for the operator")
    await asyncio.wait([task])
    if task.cancelled():
        raise ConnectionLost
    return task.result()


async def carry_out(world: "World", order: Order) -> tuple[str, ...]:
    """Give an order once. Raises SpawnError for a refusal, ConnectionLost when nobody knows what was done."""
    try:
        said = await ask(world, lambda process: process.service.workers.clerk.carry_out(order))
    except SpawnError as refusal:
        if refusal.code is Code.OVERLOADED:
            raise ConnectionLost from refusal
        world.count(f"order refused: {type(order).__name__} {refusal.code.value}")
        raise
    world.count(f"order: {type(order).__name__}")
    world.step(f"ordered: {' '.join(said)[:120]}")
    return said


async def insist(world: "World", order: Order) -> tuple[str, ...]:
    """Give an order, and again until it was answered, as a person would. Raises SpawnError for a refusal."""
    tries = 0
    while True:
        with contextlib.suppress(ConnectionLost):
            return await carry_out(world, order)
        tries += 1
        if tries >= TRIES:
            world.violation("live", f"nobody ever carried out {order}")
        await asyncio.sleep(world.random.uniform(1.0, 300.0))


class FileDatabase:
    """`spawn.store.database.Database` of a command that has the file to itself, or only reads: nobody waits for it."""

    def __init__(self, tx: Tx, begin: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self._tx = tx
        self._begin = begin

    @property
    def exclusive(self) -> bool:
        return True

    async def read(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        with self._begin():
            return self._tx.all(sql, params)

    async def write(self, fn: Callable[[Tx], T]) -> T:
        with self._begin():
            return fn(self._tx)

    async def close(self) -> None:
        """Whoever opened the file closes it."""


def looking(tx: Tx) -> FileDatabase:
    """The database as a snapshot shows it."""
    return FileDatabase(tx, contextlib.nullcontext)


@contextlib.contextmanager
def owning(path: Path) -> Iterator[FileDatabase]:
    """The file at `path`, which nobody else has; each read and write is a transaction."""
    with contextlib.closing(connect_writer(path)) as connection:

        @contextlib.contextmanager
        def begin() -> Iterator[None]:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

        yield FileDatabase(cast("Tx", SqliteTx(connection)), begin)
