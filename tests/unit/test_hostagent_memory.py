"""The small files beside containers: what two threads change at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from msgspec.structs import replace
from spawn_hostagent.docker.images import Shelf
from spawn_hostagent.docker.rentals import Memory, Remembered

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


@pytest.mark.parametrize("damage", [b"", b'{"lease_expires_at": 12', b"\0" * 60, b'{"began": "yes"}'])
def test_a_damaged_file_is_said_and_harms_nobody(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    memory = Memory(tmp_path)
    memory.change("spawn-srv_b-1", lambda _: Remembered(lease_expires_at=7))
    (tmp_path / f"{NAME}.json").write_bytes(damage)
    assert memory.read(NAME) == Remembered(began=True), "what has run is not thrown away as half-made"
    assert f"{NAME}.json is damaged" in caplog.text
    assert memory.read("spawn-srv_b-1").lease_expires_at == 7
    memory.change(NAME, lambda known: known)
    caplog.clear()
    assert memory.read(NAME) == Remembered(began=True)
    assert caplog.text == "", "it is whole again"


@pytest.mark.parametrize("damage", [b"", b'{"at": {"debian', b"\0" * 60])
def test_a_torn_list_of_images_begins_anew(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "images.json"
    file.write_bytes(damage)
    shelf = Shelf(file)
    assert not shelf.has("debian")
    assert "images.json is damaged" in caplog.text
    shelf.touch("alpine", 5)
    assert Shelf(file).has("alpine")
