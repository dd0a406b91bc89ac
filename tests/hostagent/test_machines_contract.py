"""What every `Machines` promises, asked of the one on a real engine and of the one that tests use instead."""

import importlib
import importlib.util
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import pytest
from spawn_hostagent.machines import MachineError, Machines
from spawn_schemas.ids import RentalId
from spawn_schemas.orders import StartInstance

from tests.isolation.arena import FOR_EVER, Arena, ignore

T = TypeVar("T")

RENTAL: Final = RentalId("srv_contract")
FAKE: Final = "tests.hostagent.fake_machines"
KINDS: Final = ("docker", "fake") if importlib.util.find_spec(FAKE) else ("docker",)


@dataclass
class Subject:
    arena: Arena
    machines: Machines

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.arena.run(work)

    def order(self, generation: int = 1) -> StartInstance:
        return self.arena.order(RENTAL, generation=generation)

    def refusal(self, work: Coroutine[Any, Any, object]) -> str:
        with pytest.raises(MachineError) as caught:
            self.run(work)
        return caught.value.problem.code


@pytest.fixture(params=KINDS)
def subject(request: pytest.FixtureRequest, ground: Arena) -> Iterator[Subject]:
    machines = ground.manager() if request.param == "docker" else importlib.import_module(FAKE).FakeMachines()
    yield Subject(ground, machines)
    ground.run(machines.destroy(RENTAL, 99))


def test_each_call_may_be_repeated(subject: Subject) -> None:
    machines = subject.machines
    began = subject.run(machines.start(subject.order(), ignore))
    assert (began.state, began.generation) == ("running", 1)
    assert subject.run(machines.start(subject.order(), ignore)) == began
    for _ in range(2):
        ended = subject.run(machines.stop(RENTAL, 1, 1, "lease"))
        assert (ended.state, ended.ended_by) == ("stopped", "lease")
    for _ in range(2):
        again = subject.run(machines.resume(RENTAL, 1, FOR_EVER - 1))
        assert (again.state, again.ended_by, again.lease_expires_at) == ("running", None, FOR_EVER - 1)
    for _ in range(2):
        subject.run(machines.destroy(RENTAL, 1))
        assert subject.run(machines.list_rentals()) == ()


def test_who_stopped_it_first_is_remembered(subject: Subject) -> None:
    subject.run(subject.machines.start(subject.order(), ignore))
    subject.run(subject.machines.stop(RENTAL, 1, 1, "lease"))
    assert subject.run(subject.machines.stop(RENTAL, 1, 1, "command")).ended_by == "lease"


def test_destroy_spares_a_later_generation(subject: Subject) -> None:
    subject.run(subject.machines.start(subject.order(3), ignore))
    subject.run(subject.machines.destroy(RENTAL, 2))
    assert [report.generation for report in subject.run(subject.machines.list_rentals())] == [3]


def test_what_is_not_here_is_unknown(subject: Subject) -> None:
    machines = subject.machines
    assert subject.refusal(machines.stop(RENTAL, 1, 1, "command")) == "unknown_rental"
    assert subject.refusal(machines.resume(RENTAL, 1, FOR_EVER)) == "unknown_rental"
    assert subject.refusal(machines.logs(RENTAL, 1, 10)) == "unknown_rental"
    assert subject.refusal(machines.exec(RENTAL, 1, ("true",), 5)) == "unknown_rental"
    assert subject.refusal(machines.address_of(RENTAL, 22)) == "unknown_rental"


def test_what_is_stopped_does_not_run(subject: Subject) -> None:
    machines = subject.machines
    subject.run(machines.start(subject.order(), ignore))
    subject.run(machines.stop(RENTAL, 1, 1, "command"))
    assert subject.refusal(machines.exec(RENTAL, 1, ("true",), 5)) == "not_running"
    assert subject.refusal(machines.address_of(RENTAL, 22)) == "not_running"
    assert RENTAL not in subject.run(machines.traffic())


def test_a_lease_is_remembered(subject: Subject) -> None:
    subject.run(subject.machines.start(subject.order(), ignore))
    subject.run(subject.machines.remember_lease(RENTAL, 1, 4321))
    assert [report.lease_expires_at for report in subject.run(subject.machines.list_rentals())] == [4321]
