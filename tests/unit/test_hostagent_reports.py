"""What is said of a container that stopped: whether anybody wanted that decides whether it is started again."""

from datetime import UTC, datetime
from typing import Any

import pytest
from spawn_hostagent.docker.rentals import Facts, Remembered, is_undecided, rental_in, report
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


FINISHED = 1_790_000_000.0


@pytest.mark.parametrize("exit_code", [0, 1, 137, 143, 255])
@pytest.mark.parametrize(
    ("actions", "ended_by"),
    [(("die",), "exit"), (("kill", "die"), None), ((), None), (("kill",), None), (("die", "kill"), "exit")],
    ids=["by itself", "stopped by hand or with Docker", "Docker did not live", "still ending", "too late"],
)
def test_who_ended_it_is_told_by_what_docker_saw_and_not_by_its_exit_code(
    exit_code: int, actions: tuple[str, ...], ended_by: str | None
) -> None:
    described = stopped(exit_code, FINISHED)
    assert report(FACTS, described, Remembered(began=True), None, actions).ended_by == ended_by


def test_what_ended_by_itself_is_remembered_of_that_run_alone() -> None:
    described = stopped(255, FINISHED)
    known = Remembered(began=True, ended_alone=described["State"]["FinishedAt"])
    assert not is_undecided(described, known)
    assert report(FACTS, described, known, None).ended_by == "exit"
    later = stopped(255, FINISHED + 60)
    assert is_undecided(later, known)
    assert report(FACTS, later, known, None).ended_by is None


def test_what_was_stopped_for_a_reason_keeps_it_whatever_docker_saw() -> None:
    for actions in ((), ("die",), ("kill", "die")):
        known = Remembered(began=True, ended_by="command")
        assert report(FACTS, stopped(255, FINISHED), known, None, actions).ended_by == "command"


def test_what_is_paused_is_stopped_by_the_owner_whoever_stopped_it_before() -> None:
    described = stopped(0, FINISHED)
    described["State"]["Status"] = "paused"
    assert not is_undecided(described, Remembered(began=True))
    told = report(FACTS, described, Remembered(began=True), None)
    assert (told.state, told.ended_by, told.exit_code) == ("stopped", "owner", None)


def test_a_name_says_whose_it_is() -> None:
    assert rental_in(FACTS.name) == (FACTS.rental_id, FACTS.generation)
    for name in ("spawn-canary", "spawn--1", "other-srv_a-1", "spawn-srv_a-x", ""):
        assert rental_in(name) is None, name
