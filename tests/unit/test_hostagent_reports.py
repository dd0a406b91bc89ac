"""What is said of a container that stopped: whether anybody wanted that decides whether it is started again."""

from datetime import UTC, datetime
from typing import Any

import psutil
import pytest
from spawn_hostagent.rentals import Facts, Remembered, report
from spawn_schemas.ids import RentalId

FACTS = Facts(
    rental_id=RentalId("srv_a"),
    generation=1,
    cpus=1.0,
    memory_mib=256,
    disk_mib=1024,
    gpus=(),
    ports=(22,),
    up_mbit=None,
    image="registry.example/base@sha256:" + "ab" * 32,
    disk_limit="loop",
    disk_path="/data",
    lease_expires_at=0,
)


def stopped(exit_code: int, finished_at: float) -> dict[str, Any]:
    moment = datetime.fromtimestamp(finished_at, UTC).strftime("%Y-%m-%dT%H:%M:%S.123456789Z")
    state = {"Status": "exited", "ExitCode": exit_code, "OOMKilled": False, "FinishedAt": moment}
    return {"State": state | {"StartedAt": moment}, "Created": moment}


@pytest.mark.parametrize(
    ("exit_code", "after_boot_s", "ended_by"),
    [(0, 60, "exit"), (1, 60, "exit"), (255, 60, None), (0, -60, None), (137, -60, None)],
    ids=["done", "failed", "found dead by Docker", "before the machine's boot", "killed as it went down"],
)
def test_what_nobody_stopped_is_told_from_what_ended_by_itself(
    exit_code: int, after_boot_s: int, ended_by: str | None
) -> None:
    described = stopped(exit_code, psutil.boot_time() + after_boot_s)
    assert report(FACTS, described, Remembered(began=True), None).ended_by == ended_by


def test_what_was_stopped_for_a_reason_keeps_it_over_a_reboot() -> None:
    described = stopped(255, psutil.boot_time() - 60)
    assert report(FACTS, described, Remembered(began=True, ended_by="command"), None).ended_by == "command"
