"""Who ended a container, asked of real engines: the tenant's program, the owner's hand, or Docker going down."""

import contextlib
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from spawn_hostagent.commands.journal import Journal
from spawn_hostagent.daemon import Daemon
from spawn_hostagent.docker_manager import DockerManager
from spawn_schemas.ids import RentalId
from spawn_schemas.orders import Desired, RentalReport

from tests.hostagent.clocks import VirtualClock
from tests.hostagent.docker_engine import engine
from tests.hostagent.fake_host import FakeHardware, FakeSigner
from tests.isolation.arena import FOR_EVER, Arena, ignore, lent

RENTAL = RentalId("srv_ending")
STUBBORN = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done")
"""It ends by itself and well when it is asked to, as sshd and most programs do."""


@pytest.fixture(scope="module")
def ground() -> Iterator[Arena]:
    """An engine as distributions ship it: its containers stop with it."""
    with engine(live_restore=False) as made, lent(made) as opened:
        yield opened


@pytest.fixture
def manager(ground: Arena) -> Iterator[DockerManager]:
    yield ground.manager()
    ground.run(ground.manager().destroy(RENTAL, 99))


def of(ground: Arena) -> RentalReport:
    """The rental as another manager sees it, which knows what files and Docker say and nothing else."""
    with contextlib.closing(DockerManager(ground.config(), ground.lent)) as fresh:
        (report,) = ground.run(fresh.list_rentals())
    return report


def ended(ground: Arena) -> RentalReport:
    for _ in range(300):
        (report,) = ground.run(ground.manager().list_rentals())
        if report.state == "stopped":
            return report
        time.sleep(0.1)
    raise AssertionError("it did not end")


async def looked_at(ground: Arena, manager: DockerManager) -> RentalReport:
    """The rental after a daemon that is told to let it run has looked at it once, and done what it decided."""
    journal = Journal.open(ground.engine.folder / "journal.db")
    parts = Daemon(
        ground.config(),
        FakeSigner("ws://127.0.0.1:1"),
        manager,
        FakeHardware(),
        journal,
        clock=VirtualClock(),
        dice=random.Random(7),
    )
    wanted = Desired(rental_id=RENTAL, generation=1, state="running", lease_expires_at=FOR_EVER)
    await parts.keeper.want((wanted,))
    await parts.keeper.look()
    await parts.keeper.executor.idle()
    parts.keeper.close()
    journal.close()
    (report,) = await manager.list_rentals()
    return report


def by_hand(ground: Arena, what: str) -> None:
    client: Any = ground.engine.client()
    with contextlib.closing(client):
        getattr(client, what)(f"spawn-{RENTAL}-1")


def test_a_restart_of_docker_that_stops_its_containers_is_the_hosts_doing(
    ground: Arena, manager: DockerManager
) -> None:
    ground.run(manager.start(ground.order(RENTAL, command=STUBBORN), ignore))
    ground.engine.stop()
    ground.engine.start()
    report = of(ground)
    assert (report.state, report.exit_code, report.ended_by) == ("stopped", 0, None)
    looked = ground.run(looked_at(ground, manager))
    assert (looked.state, looked.ended_by) == ("running", None)


def test_a_docker_that_is_killed_takes_its_containers_along_and_that_is_the_hosts_doing(
    ground: Arena, manager: DockerManager
) -> None:
    ground.run(manager.start(ground.order(RENTAL, command=STUBBORN), ignore))
    ground.engine.kill()
    ground.engine.start()
    report = ended(ground)
    assert report.ended_by is None
    assert ground.run(manager.resume(RENTAL, 1, FOR_EVER)).state == "running"


@pytest.mark.parametrize("code", [0, 255])
def test_no_exit_code_of_a_tenant_makes_it_the_hosts_doing(
    ground: Arena, manager: DockerManager, code: int
) -> None:
    ground.run(manager.start(ground.order(RENTAL, command=("sh", "-c", f"exit {code}")), ignore))
    report = ended(ground)
    assert (report.exit_code, report.ended_by) == (code, "exit")
    # Docker forgets what it saw when it starts anew; we do not.
    ground.engine.stop()
    ground.engine.start()
    assert of(ground) == report


def test_a_tenants_end_is_not_undone(ground: Arena, manager: DockerManager) -> None:
    ground.run(manager.start(ground.order(RENTAL, command=("sh", "-c", "exit 255")), ignore))
    before = ended(ground)
    assert ground.run(looked_at(ground, manager)) == before


def test_what_the_owner_stops_by_hand_is_not_the_tenants_end(ground: Arena, manager: DockerManager) -> None:
    ground.run(manager.start(ground.order(RENTAL, command=STUBBORN), ignore))
    for what in ("stop", "kill"):
        by_hand(ground, what)
        assert ended(ground).ended_by is None
        assert ground.run(manager.resume(RENTAL, 1, FOR_EVER)).state == "running"


def test_what_the_owner_pauses_is_stopped_by_him_and_goes_on_when_resumed(
    ground: Arena, manager: DockerManager
) -> None:
    ground.run(manager.start(ground.order(RENTAL), ignore))
    by_hand(ground, "pause")
    report = of(ground)
    assert (report.state, report.ended_by, report.exit_code) == ("stopped", "owner", None)
    again = ground.run(manager.resume(RENTAL, 1, FOR_EVER - 5))
    assert (again.state, again.lease_expires_at) == ("running", FOR_EVER - 5)
    by_hand(ground, "pause")
    assert ground.run(manager.stop(RENTAL, 1, 5, "command")).state == "stopped"
    assert of(ground).ended_by == "command"
