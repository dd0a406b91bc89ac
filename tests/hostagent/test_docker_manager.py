"""The real `Machines` on a real engine: a rental's life, adoption, Docker's death, and what a crash leaves."""

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from spawn_hostagent.docker import containers, images
from spawn_hostagent.docker.engine import take_away
from spawn_hostagent.docker.rentals import LABEL, Remembered, facts_of, labels_of
from spawn_hostagent.docker_manager import DockerManager
from spawn_hostagent.machines import MachineError
from spawn_hostagent.walls import networks
from spawn_hostagent.walls.admission import Lent
from spawn_hostagent.walls.canary import FLOOR
from spawn_hostagent.walls.isolation import LINES
from spawn_schemas.ids import RentalId
from spawn_schemas.inventory import Inventory

from tests.hostagent.docker_engine import engine
from tests.hostagent.fake_host import FakeHardware
from tests.hostagent.namespaces import inside
from tests.isolation.arena import CARDS, FOR_EVER, Arena, ignore, mended

RENTAL = RentalId("srv_rental")


@pytest.fixture
def manager(ground: Arena) -> Iterator[DockerManager]:
    yield ground.manager()
    ground.engine.wipe()
    for report in ground.run(ground.manager().list_rentals()):
        raise AssertionError(f"wiped, and still here: {report}")
    ground.run(ground.manager().destroy(RENTAL, 99))


def another(ground: Arena, lent: Lent | None = None, **more: Any) -> DockerManager:
    """A manager that knows nothing yet, as after a restart of the agent; whoever makes it closes it."""
    made = DockerManager(ground.config(), lent or ground.lent, **more)
    made._isolation = ground.isolation
    return made


def told(lent: Lent, **changes: Any) -> Inventory:
    """What the service is told of a machine that lends so much."""
    lends = {
        "cpus": lent.cpus,
        "memory_mib": lent.memory_mib,
        "disk_mib": lent.disk_mib,
        "lent_gpus": lent.gpus,
    }
    return msgspec.structs.replace(FakeHardware().inventory(), **(lends | changes))


@contextlib.contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(MachineError) as caught:
        yield
    assert caught.value.problem.code == code, caught.value.problem


def left_of(ground: Arena) -> tuple[object, ...]:
    """Everything on the machine that has a rental's name."""
    client = ground.engine.client()
    with contextlib.closing(client):
        made = [container["Names"] for container in client.containers(all=True)]
        wires = [network["Name"] for network in client.networks() if network["Name"].startswith("spawn-")]
        volumes = [volume["Name"] for volume in client.volumes()["Volumes"] or ()]
    state = ground.engine.folder / "state"
    files = [path.name for folder in ("disks", "rentals") for path in (state / folder).glob("*")]
    loops = subprocess.run(
        ["losetup", "--list", "--noheadings", "--output", "BACK-FILE"],
        capture_output=True,
        text=True,
        check=True,
    )
    return (*made, *wires, *volumes, *files, *(line for line in loops.stdout.split() if str(state) in line))


def test_a_rental_lives_stops_resumes_and_leaves_nothing(ground: Arena, manager: DockerManager) -> None:
    told: list[int] = []

    async def tell(percent: int, what: str) -> None:
        told.append(percent)

    order = ground.order(RENTAL)
    began = ground.run(manager.start(order, tell))
    assert (began.state, began.lease_expires_at) == ("running", FOR_EVER)
    assert began.image_digest == ground.engine.base_digest
    assert told == sorted(told)
    assert ground.run(manager.start(order, tell)) == began
    write = ("sh", "-c", "echo kept > /root/file")
    assert ground.run(manager.exec(RENTAL, 1, write, 30)).exit_code == 0

    stopped = ground.run(manager.stop(RENTAL, 1, 5, "lease"))
    assert (stopped.state, stopped.ended_by) == ("stopped", "lease")
    assert ground.run(manager.stop(RENTAL, 1, 5, "command")) == stopped
    with refused("not_running"):
        ground.run(manager.exec(RENTAL, 1, ("true",), 30))
    with refused("not_running"):
        ground.run(manager.address_of(RENTAL, 22))

    again = ground.run(manager.resume(RENTAL, 1, FOR_EVER - 7))
    assert (again.state, again.ended_by, again.lease_expires_at) == ("running", None, FOR_EVER - 7)
    assert ground.run(manager.resume(RENTAL, 1, FOR_EVER)).lease_expires_at == FOR_EVER
    assert ground.run(manager.exec(RENTAL, 1, ("cat", "/root/file"), 30)).stdout == "kept\n"

    ground.run(manager.destroy(RENTAL, 1))
    ground.run(manager.destroy(RENTAL, 1))
    assert left_of(ground) == ()
    with refused("unknown_rental"):
        ground.run(manager.resume(RENTAL, 1, FOR_EVER))


def test_generations_do_not_live_beside_each_other(ground: Arena, manager: DockerManager) -> None:
    ground.run(manager.start(ground.order(RENTAL, generation=4), ignore))
    with refused("stale_generation"):
        ground.run(manager.start(ground.order(RENTAL, generation=3), ignore))
    with refused("exists"):
        ground.run(manager.start(ground.order(RENTAL, generation=5), ignore))
    with refused("stale_generation"):
        ground.run(manager.stop(RENTAL, 3, 1, "command"))
    ground.run(manager.destroy(RENTAL, 3))
    assert [report.generation for report in ground.run(manager.list_rentals())] == [4]
    # One that was stopped for it keeps its disk beside a newer one, until a command ends it.
    ground.run(manager.stop(RENTAL, 4, 1, "command"))
    assert ground.run(manager.start(ground.order(RENTAL, generation=5), ignore)).state == "running"
    assert {report.generation: report.state for report in ground.run(manager.list_rentals())} == {
        4: "stopped",
        5: "running",
    }
    ground.run(manager.destroy(RENTAL, 4))
    assert [report.generation for report in ground.run(manager.list_rentals())] == [5]
    ground.run(manager.destroy(RENTAL, 5))
    assert left_of(ground) == ()


def logged_in(ground: Arena, login: list[str]) -> "subprocess.CompletedProcess[str]":
    """What came of it. Docker's proxy takes a connection before sshd is up, and drops it: then it is tried again."""
    for _ in range(100):
        with inside(ground.engine.network):
            done = subprocess.run(login, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 255 or not ("closed" in done.stderr or "reset" in done.stderr):
            return done
        time.sleep(0.1)
    raise AssertionError("sshd did not come up")


def test_ssh_logs_in_with_strict_host_key_checking(
    ground: Arena, manager: DockerManager, tmp_path: Path
) -> None:
    for name in ("host", "mine"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True
        )
    order = ground.order(
        RENTAL,
        command=(),
        env={"GREETING": 'it\'s "me"'},
        host_key=(tmp_path / "host").read_text(),
        ssh_keys=((tmp_path / "mine.pub").read_text().strip(),),
    )
    ground.run(manager.start(order, ignore))
    address, port = ground.run(manager.address_of(RENTAL, 22))
    kind, key, _ = (tmp_path / "host.pub").read_text().split()
    (tmp_path / "known").write_text(f"[{address}]:{port} {kind} {key}\n")
    login = [
        *(
            "ssh",
            "-F",
            "none",
            "-i",
            str(tmp_path / "mine"),
            "-p",
            str(port),
            "-o",
            "StrictHostKeyChecking=yes",
        ),
        *("-o", f"UserKnownHostsFile={tmp_path / 'known'}", "-o", "BatchMode=yes"),
        *(f"root@{address}", "bash -lc 'id -u; pwd; echo \"$GREETING\"; env | grep -c SPAWN_'"),
    ]
    done = logged_in(ground, login)
    assert done.stdout == '0\n/root\nit\'s "me"\n0\n', done.stderr
    with refused("invalid"):
        ground.run(manager.address_of(RENTAL, 80))
    received, sent = ground.run(manager.traffic())[RENTAL]
    assert received > 1000
    assert sent > 1000


def test_a_new_manager_adopts_what_runs(ground: Arena, manager: DockerManager) -> None:
    order = ground.order(RENTAL, gpus=CARDS[:1], up_mbit=5)
    ground.run(manager.start(order, ignore))
    ground.run(manager.remember_lease(RENTAL, 1, 12345))
    before = ground.run(manager.list_rentals()), ground.run(manager.capacity())
    assert before[0][0].lease_expires_at == 12345
    assert before[1].gpus == CARDS[1:]
    assert before[1].memory_mib == ground.lent.memory_mib - order.memory_mib
    with contextlib.closing(another(ground)) as adopter:
        assert (ground.run(adopter.list_rentals()), ground.run(adopter.capacity())) == before
        assert ground.run(adopter.address_of(RENTAL, 22)) == ground.run(manager.address_of(RENTAL, 22))
        assert ground.run(adopter.start(order, ignore)) == before[0][0]
        ground.run(adopter.destroy(RENTAL, 1))
    assert left_of(ground) == ()


def test_docker_may_die_under_a_rental(ground: Arena, manager: DockerManager) -> None:
    ground.run(manager.start(ground.order(RENTAL), ignore))
    before = ground.run(manager.list_rentals())

    async def through_its_death() -> None:
        changes = manager.changes()
        await changes.__anext__()
        ground.engine.kill()
        with refused("docker_failed"):
            await manager.list_rentals()
        await asyncio.to_thread(ground.engine.start)
        await asyncio.wait_for(changes.__anext__(), 30)
        await changes.aclose()  # type: ignore[attr-defined]  # it is a generator

    ground.run(through_its_death())
    assert ground.run(manager.list_rentals()) == before
    assert ground.run(manager.exec(RENTAL, 1, ("echo", "alive"), 30)).stdout == "alive\n"
    assert ground.run(manager.isolation()).tier == "runc"
    assert ground.run(manager.stop(RENTAL, 1, 5, "command")).state == "stopped"
    assert ground.run(manager.resume(RENTAL, 1, FOR_EVER)).state == "running"
    ground.run(manager.destroy(RENTAL, 1))
    # This engine counts one mount too many after that, so that the volume's name stays; the disk does not.
    assert left_of(ground) in ((), (f"spawn-{RENTAL}-1",))
    ground.engine.kill()
    ground.engine.start()
    ground.run(manager.sweep())
    assert left_of(ground) == ()


def half_made(ground: Arena, name: RentalId) -> str:
    """Leave what an agent leaves that is killed between creating a container and starting it."""
    manager = ground.manager()
    order = ground.order(name)
    facts = facts_of(order, "loop", "/root")

    def work(client: Any) -> None:
        manager._memory.change(facts.name, lambda _: Remembered(lease_expires_at=1))
        networks.make(client, facts)
        manager._disks.make(client, facts.name, 16, labels_of(facts))
        settings = images.Settings(has_sshd=True, disk_path="/root")
        containers.create(client, order, manager._wanted(facts), facts, settings, manager._lines)

    ground.run(manager._engine.call(work))
    return facts.name


def test_a_sweep_removes_what_never_ran_and_nothing_else(ground: Arena, manager: DockerManager) -> None:
    ground.run(manager.start(ground.order(RENTAL), ignore))
    before = left_of(ground)
    half_made(ground, RentalId("srv_half"))
    assert len(left_of(ground)) > len(before)
    ground.run(manager.sweep())
    assert sorted(map(str, left_of(ground))) == sorted(map(str, before))
    # Its container is removed by hand; the tenant's disk is not for us to throw away.
    client = ground.engine.client()
    with contextlib.closing(client):
        client.remove_container(f"spawn-{RENTAL}-1", force=True)
    free_mib = ground.run(manager.capacity()).disk_mib
    ground.run(manager.sweep())
    assert f"spawn-{RENTAL}-1.img" in left_of(ground)
    assert free_mib == ground.lent.disk_mib - ground.order(RENTAL).disk_mib, "it is not lent twice"
    # Once nobody wants it, the daemon destroys what is left.
    assert ground.run(manager.leftovers()) == ((RENTAL, 1),)
    ground.run(manager.destroy(RENTAL, 1))
    assert left_of(ground) == ()
    assert ground.run(manager.leftovers()) == ()


def test_a_card_that_is_lost_is_given_to_nobody(ground: Arena, manager: DockerManager) -> None:
    with contextlib.closing(another(ground)) as poorer:
        poorer.lend_as(told(ground.lent, lent_gpus=CARDS[1:]))
        assert ground.run(poorer.capacity()).gpus == CARDS[1:]
        with refused("over_limits"):
            ground.run(poorer.start(ground.order(RENTAL, gpus=CARDS[:1]), ignore))
        poorer.lend_as(told(ground.lent))
        assert ground.run(poorer.start(ground.order(RENTAL, gpus=CARDS[:1]), ignore)).gpus == CARDS[:1]
        assert ground.run(poorer.capacity()).memory_mib < ground.lent.memory_mib
        assert ground.run(poorer.docker_version())


def test_what_the_inventory_says_is_what_may_be_taken(ground: Arena, manager: DockerManager) -> None:
    """The owner fills his disk, or makes room: neither is known when the agent begins."""
    order, less = ground.order(RENTAL), ground.order().disk_mib - 1
    with contextlib.closing(another(ground)) as other:
        other.lend_as(told(ground.lent, cpus=2.5, memory_mib=4000, disk_mib=less))
        left = ground.run(other.capacity())
        assert (left.cpus, left.memory_mib, left.disk_mib) == (2.5, 4000, less)
        assert left.rentals == ground.lent.rentals
        with refused("over_limits"):
            ground.run(other.start(order, ignore))
        other.lend_as(told(ground.lent, disk_mib=2 * ground.lent.disk_mib))
        assert ground.run(other.capacity()).disk_mib == 2 * ground.lent.disk_mib


def test_one_damaged_small_file_hides_no_rental(ground: Arena, manager: DockerManager) -> None:
    other = RentalId("srv_other")
    for name in (RENTAL, other):
        ground.run(manager.start(ground.order(name), ignore))
    (ground.engine.folder / "state" / "rentals" / f"spawn-{RENTAL}-1.json").write_bytes(b'{"lease')
    with contextlib.closing(another(ground)) as adopter:
        seen = {report.rental_id: report for report in ground.run(adopter.list_rentals())}
        assert {report.state for report in seen.values()} == {"running"}
        assert seen[RENTAL].lease_expires_at == FOR_EVER
        assert ground.run(adopter.stop(RENTAL, 1, 1, "lease")).ended_by == "lease"
    ground.run(manager.destroy(other, 1))


def test_a_disk_that_is_made_while_stale_volumes_are_looked_for_keeps_its_volume(
    ground: Arena, manager: DockerManager
) -> None:
    made: list[str] = []

    class Hasty:
        """A client at whose listing of volumes somebody makes another one."""

        def __init__(self, client: Any) -> None:
            self._client = client

        def __getattr__(self, name: str) -> Any:
            return getattr(self._client, name)

        def volumes(self, filters: Any) -> Any:
            listed = self._client.volumes(filters=filters)
            facts = facts_of(ground.order("srv_quick"), "loop", "/root")
            manager._disks.make(self._client, facts.name, 16, labels_of(facts))
            made.append(facts.name)
            after = self._client.volumes(filters=filters)
            return (
                after if listed["Volumes"] is None else {"Volumes": [*listed["Volumes"], *after["Volumes"]]}
            )

    ground.run(manager._engine.call(lambda client: manager._disks.remove_stale(Hasty(client), LABEL)))  # type: ignore[arg-type]
    assert made[0] in left_of(ground)
    client = ground.engine.client()
    with contextlib.closing(client):
        assert client.inspect_volume(made[0])["Options"], "a plain volume of that name has no limit"
    ground.run(manager._engine.call(lambda client: manager._disks.remove(client, made[0])))


def test_a_start_repeated_after_a_crash_ends_as_the_first(ground: Arena, manager: DockerManager) -> None:
    half_made(ground, RENTAL)
    assert ground.run(manager.start(ground.order(RENTAL), ignore)).state == "running"


def test_a_removal_that_an_earlier_agent_began_is_waited_for(ground: Arena, manager: DockerManager) -> None:
    """Whoever was killed in the middle of a destroy left Docker at it; Docker refuses to be told twice."""
    ground.run(manager.start(ground.order(RENTAL), ignore))

    def remove(_: int) -> list[Any]:
        client = ground.engine.client()
        with contextlib.closing(client):
            take_away(client, f"spawn-{RENTAL}-1")
            here: list[Any] = client.containers(all=True)
            return here

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(remove, range(8))) == [[]] * 8
    ground.run(manager.destroy(RENTAL, 1))
    assert left_of(ground) == ()


def test_who_ends_for_memory_is_said_so(ground: Arena, manager: DockerManager) -> None:
    eat = "perl -e '$x = \"a\" x (400 << 20); sleep 60'"
    ground.run(
        manager.start(ground.order(RENTAL, command=("sh", "-c", f"{eat}; echo lived; sleep 600")), ignore)
    )

    async def until(found: Callable[[Any], bool]) -> Any:
        for _ in range(300):
            (report,) = await manager.list_rentals()
            if found(report):
                return report
            await asyncio.sleep(0.1)
        raise AssertionError("it did not happen")

    alive = ground.run(until(lambda report: report.out_of_memory_kills > 0))
    assert (alive.state, alive.ended_by) == ("running", None)
    ground.run(manager.destroy(RENTAL, 1))
    ground.run(manager.start(ground.order(RENTAL, command=("sh", "-c", f"exec {eat}")), ignore))
    dead = ground.run(until(lambda report: report.state == "stopped"))
    assert (dead.ended_by, dead.exit_code) == ("out_of_memory", 137)
    assert dead.out_of_memory_kills > 0
    ground.run(manager.destroy(RENTAL, 1))
    ground.run(manager.start(ground.order(RENTAL, command=("sh", "-c", "exit 3")), ignore))
    ended = ground.run(until(lambda report: report.state == "stopped"))
    assert (ended.ended_by, ended.exit_code, ended.out_of_memory_kills) == ("exit", 3, 0)


def test_without_quota_and_loop_a_full_disk_stops_the_rental(ground: Arena, manager: DockerManager) -> None:
    assert ground.isolation is not None
    with contextlib.closing(another(ground)) as poor:
        poor._isolation = msgspec.structs.replace(ground.isolation, disk_limit="poll")
        ground.run(poor.start(ground.order(RENTAL), ignore))
        ground.run(poor.sweep())
        assert [report.state for report in ground.run(poor.list_rentals())] == ["running"]
        ground.run(
            poor.exec(RENTAL, 1, ("sh", "-c", "head -c 30M /dev/zero | tee /opt/big > /opt/bigger"), 60)
        )
        ground.run(poor.sweep())
        (report,) = ground.run(poor.list_rentals())
        assert (report.state, report.ended_by) == ("stopped", "disk_full")
        assert report.disk_used_mib is not None
        assert report.disk_used_mib >= 57


def test_exec_and_logs_are_bounded(ground: Arena, manager: DockerManager) -> None:
    talk = ("sh", "-c", "seq 100000; echo last; sleep 600")
    ground.run(manager.start(ground.order(RENTAL, command=talk), ignore))
    with refused("timed_out"):
        ground.run(manager.exec(RENTAL, 1, ("sh", "-c", "sleep 300 & sleep 300"), 1))
    assert ground.run(manager.exec(RENTAL, 1, ("pgrep", "-c", "-f", "sleep 300"), 30)).stdout == "0\n"
    loud = ground.run(manager.exec(RENTAL, 1, ("sh", "-c", "yes | head -c 1M; seq 50000 >&2; exit 4"), 60))
    assert (loud.exit_code, len(loud.stdout), len(loud.stderr)) == (4, 65536, 65536)
    assert ground.run(manager.exec(RENTAL, 1, ("no-such-program",), 30)).exit_code in (126, 127)
    assert ground.run(manager.logs(RENTAL, 1, 1)) == "last\n"
    assert len(ground.run(manager.logs(RENTAL, 1, 1000))) < 65536
    with refused("unknown_rental"):
        ground.run(manager.logs(RentalId("srv_nobody"), 1, 10))


def test_what_was_flushed_is_put_up_again(ground: Arena, manager: DockerManager) -> None:
    ground.run(manager.start(ground.order(RENTAL, up_mbit=8), ignore))

    def nft(*words: str) -> str:
        with inside(ground.engine.network):
            return subprocess.run(["nft", *words], capture_output=True, text=True, check=False).stdout

    standing = nft("--stateless", "list", "table", "inet", "spawn")
    assert "limit rate over 1000000 bytes/second" in standing
    nft("delete", "table", "inet", "spawn")
    ground.run(manager.sweep())
    assert nft("--stateless", "list", "table", "inet", "spawn") == standing
    nft("flush", "chain", "inet", "spawn", "from_tenants")
    ground.run(manager.sweep())
    assert nft("--stateless", "list", "table", "inet", "spawn") == standing


def test_cards_are_given_by_uuid(ground: Arena, manager: DockerManager) -> None:
    ground.engine.gpu_requests.unlink(missing_ok=True)
    ground.run(manager.start(ground.order(RENTAL, gpus=CARDS[1:]), ignore))
    asked = msgspec.json.decode(ground.engine.gpu_requests.read_text().splitlines()[0])
    assert f"NVIDIA_VISIBLE_DEVICES={CARDS[1]}" in asked["process"]["env"]
    assert not any(CARDS[0] in variable for variable in asked["process"]["env"])
    with refused("gpu_unavailable"):
        ground.run(manager.start(ground.order("srv_other", gpus=CARDS[1:]), ignore))


def test_without_the_toolkit_a_card_is_refused_and_nothing_is_left() -> None:
    with engine(with_gpus=False) as made:
        ground = Arena(made, made.folder / "state")
        try:
            with refused("gpu_unavailable"):
                ground.run(ground.manager().start(ground.order(RENTAL, gpus=CARDS[:1]), ignore))
            assert left_of(ground) == ()
            assert ground.run(ground.manager().capacity()).gpus == CARDS
        finally:
            ground.close()


def test_what_docker_does_not_do_is_found_out_and_no_stranger_comes(
    ground: Arena, manager: DockerManager
) -> None:
    without_walls = DockerManager(ground.config(), ground.lent, rules=(), run=mended)
    lines = tuple(line for line in LINES if line.name != "processes")
    without_limit = DockerManager(ground.config(), ground.lent, lines=lines, run=mended)
    for broken, feature in ((without_walls, "walls"), (without_limit, "processes")):
        with contextlib.closing(broken):
            isolation = ground.run(broken.isolation())
            assert isolation.tier == "none"
            assert [
                found.name for found in isolation.features if found.name in FLOOR and not found.works
            ] == [feature]
            with refused("below_floor"):
                ground.run(broken.start(ground.order(RENTAL), ignore))
    assert left_of(ground) == ()
    # An owner who is his own tenant says so.
    own = DockerManager(ground.config(known_only=False), ground.lent, lines=lines)
    with contextlib.closing(own):
        assert ground.run(own.start(ground.order(RENTAL), ignore)).state == "running"
