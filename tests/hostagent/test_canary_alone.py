"""Two processes that look at one Docker: each waits for the other's canaries, and neither takes them for a crash's."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from spawn_hostagent.config import Config
from spawn_hostagent.docker_manager import DockerManager
from spawn_hostagent.failures import Failure
from spawn_hostagent.files import held
from spawn_hostagent.walls.admission import Lent

from tests.hostagent.docker_engine import Engine, engine, inside_of
from tests.isolation.arena import mended

MANY: Final = 3
LENT: Final = Lent(cpus=1, memory_mib=512, disk_mib=1024, gpus=(), rentals=1, up_mbit=None)


@pytest.fixture(scope="module")
def docker() -> Iterator[Engine]:
    with engine(with_gpus=False) as running:
        yield running


async def test_checks_beside_the_daemon_say_what_it_says(docker: Engine, tmp_path: Path) -> None:
    config = Config(service="https://spawn.test", state_dir=str(tmp_path), docker_socket=docker.socket)
    with inside_of(docker):
        managers = [DockerManager(config, LENT, run=mended) for _ in range(MANY)]
        try:
            found = await asyncio.gather(*(manager.isolation() for manager in managers))
        finally:
            for manager in managers:
                manager.close()
    assert [one.tier for one in found] == ["runc"] * MANY, found
    assert found[1:] == found[:-1]


def test_a_lock_is_waited_for_and_given_up_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with held(path, 1), pytest.raises(Failure, match=f"{path} for 0 s"), held(path, 0):
        raise AssertionError("two are in")
    entered = threading.Event()

    def enter() -> None:
        with held(path, 60):
            entered.set()

    with held(path, 1):
        waiting = threading.Thread(target=enter)
        waiting.start()
    waiting.join(60)
    assert entered.is_set()
