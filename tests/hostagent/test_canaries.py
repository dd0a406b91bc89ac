"""What the canaries say of a real engine, that they say it again, and that a check of the owner's disturbs nobody."""

import asyncio
import contextlib
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from docker import APIClient
from spawn_hostagent.cli import common as cli_common
from spawn_hostagent.docker_manager import MEASURE_AGAIN_S, DockerManager
from spawn_hostagent.hardware import HardwareDetector
from spawn_hostagent.machines import MachineError
from spawn_hostagent.preflight.programs import Run
from spawn_hostagent.preflight.versions import RUNC_FIX, TOOLKIT_FIX
from spawn_hostagent.walls import canary, firewall, looks, trial
from spawn_hostagent.walls.canary import Canary
from spawn_hostagent.walls.disks import Disks
from spawn_schemas.ids import RentalId
from spawn_schemas.inventory import Feature, Isolation

from tests.hostagent.namespaces import inside
from tests.isolation.arena import FOR_EVER, Arena, ignore, mended

RENTAL = RentalId("srv_rental")


@pytest.fixture
def rented(ground: Arena) -> Iterator[DockerManager]:
    """With one tenant here, who has limits of his own."""
    ground.run(ground.manager().start(ground.order(RENTAL, up_mbit=8), ignore))
    yield ground.manager()
    ground.run(ground.manager().destroy(RENTAL, 1))


@contextlib.contextmanager
def manager_of(ground: Arena, run: Run = mended, **config: Any) -> Iterator[DockerManager]:
    with contextlib.closing(DockerManager(ground.config(**config), ground.lent, run=run)) as made:
        yield made


def feature(isolation: Isolation, name: str) -> Feature:
    (found,) = [found for found in isolation.features if found.name == name]
    return found


def nft(ground: Arena, *words: str) -> str:
    with inside(ground.engine.network):
        return subprocess.run(["nft", *words], capture_output=True, text=True, check=True, timeout=30).stdout


def state_of(ground: Arena, manager: DockerManager) -> tuple[str, str | None]:
    (report,) = ground.run(manager.list_rentals())
    return report.state, report.ended_by


def test_this_engine_limits_disks_by_loop_and_has_no_other_kernel(ground: Arena) -> None:
    assert ground.isolation is not None
    assert (ground.isolation.tier, ground.isolation.disk_limit) == ("runc", "loop")
    works = {found.name for found in ground.isolation.features if found.works}
    assert works >= {*canary.FLOOR, "loop", "toolkit"}
    assert not works & {"quota", "userns", "gvisor"}


def tried(ground: Arena, attempt: Callable[[Canary], str], runtime: str | None = None) -> str:
    """What one canary says alone."""

    def work(client: APIClient) -> str:
        disks = Disks(ground.engine.folder / "canary", ground.engine.socket)
        return attempt(Canary(client, lambda: None, disks, runtime, mended, has_cards=False))

    return ground.run(ground.manager()._engine.call_slow(work))


def test_a_quota_that_docker_takes_and_forgets_is_none(
    ground: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "QUOTA", {})
    assert "the limit was taken and does nothing" in tried(ground, lambda canary: canary._quota())
    loop, quota = (Feature(name=name, works=name == "loop") for name in ("loop", "quota"))
    assert canary.disk_limit_of([loop, quota]) == "loop"


@pytest.mark.parametrize("runtime", ["runc", "stub-loose", "no-such-runtime"])
def test_a_runtime_is_not_gvisor_by_being_named(ground: Arena, runtime: str) -> None:
    known: dict[str, object] = {"runc": {}, "stub-loose": {}}
    assert runtime in tried(ground, lambda canary: canary._gvisor(known), runtime)


def test_features_are_looked_at_under_the_runtime_that_tenants_get(ground: Arena) -> None:
    with manager_of(ground, runtime="stub-loose") as manager:
        isolation = ground.run(manager.isolation())
        assert [found.name for found in canary.below_floor(isolation.features)] == ["seccomp"]
        with pytest.raises(MachineError, match="no filter is on"):
            ground.run(manager.start(ground.order(RENTAL), ignore))


def test_no_label_of_an_image_makes_a_container_a_canary(ground: Arena) -> None:
    def clear(left: Canary) -> str:
        left.remove_left()
        return ""

    labels = {canary.LABEL: canary.NAME, "traefik.enable": "true", "sh.spawn.sshd": "1"}
    image = ground.engine.image({"Labels": labels})
    ground.run(ground.manager().start(ground.order(RENTAL, image=image), ignore))
    with contextlib.closing(ground.engine.client()) as client:
        made = client.create_container(image, ["sleep", "60"], name="owner")
        client.start(made["Id"])
        try:
            tried(ground, clear)
            assert client.inspect_container("owner")["State"]["Running"]
            assert state_of(ground, ground.manager()) == ("running", None)
            given = client.inspect_container(f"spawn-{RENTAL}-1")["Config"]["Labels"]
        finally:
            client.remove_container("owner", force=True)
            ground.run(ground.manager().destroy(RENTAL, 1))
    assert {given[name] for name in labels} == {""}, "the owner's own programs would obey it"


def test_a_kernel_that_says_so_is_gvisors(ground: Arena) -> None:
    with manager_of(ground, runtime="stub-gvisor") as manager:
        isolation = ground.run(manager.isolation())
        ground.run(manager.start(ground.order(RENTAL), ignore))
        with contextlib.closing(ground.engine.client()) as client:
            made = client.inspect_container(f"spawn-{RENTAL}-1")["HostConfig"]["Runtime"]
        ground.run(manager.destroy(RENTAL, 1))
    assert made == "stub-gvisor", "tenants get what was tried"
    assert feature(isolation, "gvisor").works
    assert isolation.tier == "gvisor"


def test_a_runc_without_the_fix_keeps_strangers_away(ground: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "runc_is_fixed", lambda _: False)
    with manager_of(ground, lambda _: None) as manager:
        assert ground.run(manager.isolation()).tier == "none"
        with pytest.raises(MachineError, match=RUNC_FIX) as refused:
            ground.run(manager.start(ground.order(RENTAL), ignore))
        assert refused.value.problem.code == "below_floor"
    with manager_of(ground, mended) as manager:
        assert ground.run(manager.isolation()).tier == "runc"


def test_a_toolkit_without_the_fix_keeps_strangers_away_where_cards_are_lent(ground: Arena) -> None:
    def told(command: list[str]) -> tuple[int, str] | None:
        return (0, "version 1.17.7") if command[0] == "nvidia-ctk" else mended(command)

    with manager_of(ground, told) as manager:
        isolation = ground.run(manager.isolation())
    assert [found.name for found in canary.below_floor(isolation.features)] == ["toolkit"]
    assert isolation.tier == "none"
    assert TOOLKIT_FIX in canary.why_below(isolation)
    isolation = ground.run(trial.measured(ground.config(), has_cards=False, run=told))
    assert isolation.tier == "runc"


# --- one hiccup


def test_what_fails_once_is_tried_again(ground: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def once_blind(pid: int) -> str:
        looked.append(pid)
        return "the machine is busy" if len(looked) == 1 else ""

    monkeypatch.setitem(looks.LIMITS, "memory", once_blind)
    with manager_of(ground) as manager:
        assert ground.run(manager.isolation()).tier == "runc"
    assert len(looked) == 2


def test_a_host_below_the_floor_is_measured_again(ground: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ground.isolation is not None
    found, now = [Isolation(), ground.isolation], [1_000_000.0]
    monkeypatch.setattr(Canary, "measure", lambda _: found.pop(0))
    with contextlib.closing(DockerManager(ground.config(), ground.lent, now=lambda: now[0])) as manager:
        assert ground.run(manager.isolation()).tier == "none"
        now[0] += MEASURE_AGAIN_S - 1
        assert ground.run(manager.isolation()).tier == "none"
        now[0] += 1
        assert ground.run(manager.isolation()).tier == "runc"
        now[0] += 10 * MEASURE_AGAIN_S
        assert ground.run(manager.isolation()).tier == "runc", "what works is not measured again"


# --- walls under tenants


def broken_nft(monkeypatch: pytest.MonkeyPatch, *, lists: bool) -> None:
    """From now on no table is put up; with `lists`, it is still told what stands."""
    asked = firewall._nft

    def fail(*words: str, told: str | None = None) -> str:
        if lists and told is None:
            return asked(*words)
        raise firewall.WallError("fork: try again")

    monkeypatch.setattr(firewall, "_nft", fail)


def test_nobody_is_stopped_because_docker_or_nft_could_not_be_asked(
    ground: Arena, rented: DockerManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_answer(_: object) -> dict[str, int | None]:
        raise OSError("500 Internal Server Error")

    with monkeypatch.context() as patch:
        patch.setattr("spawn_hostagent.walls.networks.bridges", no_answer)
        with pytest.raises(MachineError, match="500 Internal"):
            ground.run(rented.sweep())
    with monkeypatch.context() as patch:
        broken_nft(patch, lists=False)
        with pytest.raises(MachineError, match="try again"):
            ground.run(rented.sweep())
    assert state_of(ground, rented) == ("running", None)


def test_walls_that_fell_and_cannot_be_put_up_end_what_runs(
    ground: Arena, rented: DockerManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        broken_nft(patch, lists=True)
        ground.run(rented.sweep())
        assert state_of(ground, rented) == ("running", None), "they stand"
        nft(ground, "delete", "table", "inet", "spawn")
        with pytest.raises(MachineError, match="unwalled"):
            ground.run(rented.sweep())
        assert state_of(ground, rented) == ("stopped", "owner")
        with pytest.raises(MachineError):
            ground.run(rented.resume(RENTAL, 1, FOR_EVER))
    assert ground.run(rented.resume(RENTAL, 1, FOR_EVER)).state == "running"


# --- a check beside a daemon


def test_a_check_leaves_the_walls_and_the_daemons_own_canaries_alone(
    ground: Arena, rented: DockerManager
) -> None:
    # A table that is written anew has other handles.
    standing = nft(ground, "--handle", "--stateless", "list", "table", "inet", "spawn")
    assert "limit rate over 1000000 bytes/second" in standing

    async def both(manager: DockerManager) -> tuple[Isolation, Isolation]:
        checked = trial.measured(ground.config(), has_cards=False, run=mended)
        return await asyncio.gather(manager.isolation(), checked)

    with manager_of(ground) as manager:
        # As after a restart: this one has not put up anything yet, and finds the same tenants.
        daemon, checked = ground.run(both(manager))
    assert (daemon.tier, checked.tier) == ("runc", "runc")
    alone = nft(ground, "--handle", "--stateless", "list", "table", "inet", "spawn")
    ground.run(trial.measured(ground.config(), has_cards=False, run=mended))
    assert nft(ground, "--handle", "--stateless", "list", "table", "inet", "spawn") == alone
    assert "limit rate over 1000000 bytes/second" in alone
    assert nft(ground, "list", "tables").split().count("spawn_check") == 0
    client = ground.engine.client()
    with contextlib.closing(client):
        assert not {network["Name"] for network in client.networks()} & {canary.NAME, trial.NAME}


def test_a_check_finds_walls_that_do_not_hold(ground: Arena) -> None:
    isolation = ground.run(trial.measured(ground.config(), has_cards=False, run=mended, rules=()))
    assert [found.name for found in canary.below_floor(isolation.features)] == ["walls"]


def test_a_check_asks_the_daemon_that_runs(ground: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def answer(_: object, request: dict[str, str], __: float) -> dict[str, Any]:
        asked.append(request)
        return {"ok": True, "isolation": {"tier": "runc", "disk_limit": "loop", "features": []}}

    monkeypatch.setattr("spawn_hostagent.control.client.find_daemon", lambda _: object())
    monkeypatch.setattr("spawn_hostagent.control.client.ask", answer)
    config = ground.config()
    detector = HardwareDetector(config.limits, config.state, load_nvml=lambda: None)
    found = ground.run(cli_common.isolation_of(config, detector))
    assert (found.tier, found.disk_limit) == ("runc", "loop")
    assert asked == [{"do": "isolation"}]
