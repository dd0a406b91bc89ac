"""A rental on a fake host, and what happens to its link: for tests of the whole daemon."""

import asyncio
import json
from pathlib import Path
from typing import Any

from spawn_hostagent.control.server import SOCKET_FILE
from spawn_schemas.orders import Desired

from tests.hostagent.clocks import START_S
from tests.hostagent.fake_host import FakeHost
from tests.hostagent.fake_service import FakeService
from tests.hostagent.orders import HOUR, A, command, start


def wanted(lease: int = START_S + HOUR, **fields: Any) -> Desired:
    defaults: dict[str, Any] = {
        "rental_id": A,
        "generation": 1,
        "state": "running",
        "lease_expires_at": lease,
    }
    return Desired(**(defaults | fields))


async def rent(host: FakeHost, service: FakeService, lease: int = START_S + HOUR) -> None:
    service.desired[A] = wanted(lease)
    await service.order(order := command(start(lease=lease)))
    assert (await service.ended(order)).state == "succeeded"


def lose_link(service: FakeService, *, http: bool = False) -> None:
    service.refuses_sockets, service.http_works = True, http
    service.cut()


async def ask(folder: Path, line: str) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(folder / SOCKET_FILE)
    try:
        writer.write(line.encode() + b"\n")
        answer: dict[str, Any] = json.loads(await asyncio.wait_for(reader.readline(), 10))
    finally:
        writer.close()
    return answer
