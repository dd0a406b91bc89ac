"""Several services on one PostgreSQL and one world, each with connections and memory of its own.

Invariant: they share the virtual clock, the chain and the cloud, as processes on one machine would, and nothing else.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import msgspec

from spawn.app import build
from tests import databases
from tests.harness import BASE_URL, SeededEntropy, VirtualClock, World, open_world


@asynccontextmanager
async def beside(world: World, name: str, **changes: Any) -> AsyncIterator[World]:
    """Another replica in this world; `changes` are to its settings."""
    db = await databases.open_database(world.settings.database_url)
    try:
        parts = replace(world.parts, db=db, entropy=SeededEntropy(name))
        settings = msgspec.structs.replace(world.settings, **changes)
        service = await build(settings, parts, ticking=False)
        transport = httpx.ASGITransport(app=cast("Any", service.app))
        async with httpx.AsyncClient(transport=transport, base_url=BASE_URL) as http:
            yield replace(world, settings=settings, parts=parts, service=service, http=http)
        await service.workers.deliveries.stop()
        await service.operator.stop()
    finally:
        await db.close()


@asynccontextmanager
async def two_replicas(
    folder: Path, *, clock: VirtualClock | None = None, **changes: Any
) -> AsyncIterator[tuple[World, World]]:
    """A world on PostgreSQL with two replicas; needs the fixture `postgres_server`."""
    url = databases.server_url(f"replicas_{folder.name[:40]}")
    async with (
        open_world(folder, clock=clock, database_url=url, **changes) as first,
        beside(first, "second") as second,
    ):
        yield first, second
