"""Docker's threads: what a tenant or a registry keeps waiting keeps nobody else waiting."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from spawn_hostagent.docker.engine import ASKED_THREADS, SLOW_THREADS, Engine

from tests.hostagent.clocks import WAIT_S


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    engine = Engine("unix:///nowhere")
    monkeypatch.setattr(engine, "_knock", lambda: None)
    monkeypatch.setattr(engine, "client", lambda: None)
    yield engine
    engine.close()


@pytest.mark.parametrize(("name", "threads"), [("call_asked", ASKED_THREADS), ("call_slow", SLOW_THREADS)])
async def test_a_stop_waits_for_nobody_elses_work(engine: Engine, name: str, threads: int) -> None:
    over = threading.Event()
    begun = threading.Semaphore(0)

    def work(_: Any) -> None:
        begun.release()
        assert over.wait(WAIT_S)

    call: Callable[[Any], Any] = getattr(engine, name)
    waiting = [asyncio.ensure_future(call(work)) for _ in range(2 * threads)]
    try:
        for _ in range(threads):
            assert await asyncio.to_thread(begun.acquire, True, WAIT_S)
        assert await asyncio.wait_for(engine.call_change(lambda _: "stopped"), WAIT_S) == "stopped"
        assert await asyncio.wait_for(engine.call(lambda _: "seen"), WAIT_S) == "seen"
    finally:
        over.set()
        await asyncio.gather(*waiting)
