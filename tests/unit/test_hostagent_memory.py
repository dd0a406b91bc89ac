"""The small files beside containers: what two threads change at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from msgspec.structs import replace
from spawn_hostagent.rentals import Memory, Remembered

NAME = "spawn-srv_a-1"
TIMES = 50


def test_a_lease_that_comes_while_a_container_begins_is_kept(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "rentals")
    start = Barrier(2)

    def begin() -> None:
        start.wait(10)
        for _ in range(TIMES):
            memory.change(
                NAME, lambda known: replace(known, out_of_memory_kills=known.out_of_memory_kills + 1)
            )

    def lease() -> None:
        start.wait(10)
        for lease in range(1, TIMES + 1):
            memory.change(NAME, lambda known, lease=lease: replace(known, lease_expires_at=lease))  # type: ignore[misc]  # a default binds the loop's variable

    with ThreadPoolExecutor(2) as threads:
        for done in (threads.submit(begin), threads.submit(lease)):
            done.result(30)
    assert memory.read(NAME) == Remembered(lease_expires_at=TIMES, out_of_memory_kills=TIMES)
    assert [path.name for path in (tmp_path / "rentals").iterdir()] == [f"{NAME}.json"]


def test_what_is_not_changed_is_not_written(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "rentals")
    memory.change(NAME, lambda known: known)
    assert memory.names() == ()
