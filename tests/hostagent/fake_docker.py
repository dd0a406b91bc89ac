"""A Docker that a manager asks and that answers from memory: for what a real one cannot be made to do.

Invariant: it knows only what is in its table, and tells it in Docker's form; nothing is run.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker.errors
import requests
from spawn_hostagent.config import Config, Images
from spawn_hostagent.docker.rentals import Facts, labels_of
from spawn_hostagent.docker_manager import DockerManager
from spawn_hostagent.walls.admission import Lent
from spawn_schemas.ids import RentalId
from spawn_schemas.inventory import DiskLimit

from tests.hostagent.orders import IMAGE

MOMENT = "2026-01-01T00:00:00.0Z"


def facts(name: str, disk_limit: DiskLimit = "poll") -> Facts:
    return Facts(
        rental_id=RentalId(name),
        generation=1,
        cpus=1,
        memory_mib=64,
        disk_mib=64,
        gpus=(),
        ports=(),
        up_mbit=None,
        image=IMAGE,
        disk_limit=disk_limit,
        disk_path="/root",
        lease_expires_at=2**31,
    )


def broken(status: int = 500) -> docker.errors.APIError:
    """What Docker says of a container whose layer it lost."""
    answer = requests.Response()
    answer.status_code = status
    said = "RWLayer of container is unexpectedly nil"
    return docker.errors.APIError(said, response=answer, explanation=said)


class FakeDocker:
    def __init__(self) -> None:
        self.here: dict[str, tuple[Facts, str]] = {}
        self.errors: dict[str, Exception] = {}
        self.paths: dict[str, str] = {}
        self.size_bytes = 0
        self.on_inspect: Callable[[str], None] = lambda _: None
        self.on_stop: Callable[[], None] = lambda: None
        self.stopped: list[str] = []
        self.timeout = 0

    def put(self, name: str, status: str = "running", disk_limit: DiskLimit = "poll") -> None:
        made = facts(name, disk_limit)
        self.here[made.name] = made, status

    def containers(
        self,
        *,
        all: bool,
        filters: dict[str, str],
        size: bool = False,
    ) -> list[dict[str, Any]]:
        wanted = filters.get("label", "").partition("=")[2]
        return [
            {
                "Id": name,
                "Names": [f"/{name}"],
                "Labels": labels_of(known),
                "State": status,
                "Created": 1,
                "SizeRw": self.size_bytes,
            }
            for name, (known, status) in self.here.items()
            if wanted in ("", known.rental_id) and filters.get("id", name) == name
        ]

    def inspect_container(self, name: str) -> dict[str, Any]:
        self.on_inspect(name)
        if name in self.errors:
            raise self.errors[name]
        known, status = self.here[name]
        pid = os.getpid() if status == "running" else 0
        state = {"Status": status, "Pid": pid, "ExitCode": 0, "StartedAt": MOMENT, "FinishedAt": MOMENT}
        return {
            "Id": name,
            "Name": f"/{name}",
            "Config": {"Labels": labels_of(known)},
            "Created": MOMENT,
            "State": state,
            **self.paths,
        }

    def stop(self, name: str, timeout: int) -> None:
        self.stopped.append(name)
        self.here[name] = self.here[name][0], "exited"
        self.on_stop()

    def networks(self, **_: Any) -> list[Any]:
        return []


@contextmanager
def manager_of(docker: FakeDocker, folder: Path, monkeypatch: Any) -> Iterator[DockerManager]:
    """A manager of this Docker, without walls."""
    config = Config(
        service="https://spawn.example", state_dir=str(folder), images=Images(allow=("images.test",))
    )
    manager = DockerManager(config, Lent(cpus=8, memory_mib=4096, disk_mib=10_000), used_percent=lambda: 0.0)
    monkeypatch.setattr(manager._engine, "_knock", lambda: None)
    monkeypatch.setattr(manager._engine, "client", lambda: docker)
    try:
        yield manager
    finally:
        manager.close()
