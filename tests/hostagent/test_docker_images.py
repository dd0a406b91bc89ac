"""Images on a real engine: pulled by digest with their progress told, given up, refused for room, and evicted."""

import asyncio
import contextlib

import msgspec
import pytest
from spawn_hostagent.config import Images
from spawn_hostagent.docker_manager import DockerManager
from spawn_hostagent.machines import MachineError
from spawn_schemas.ids import RentalId

from tests.hostagent.test_docker_manager import refused
from tests.isolation.arena import Arena, ignore

RENTAL = RentalId("srv_pulled")


def variant(ground: Arena, name: str) -> str:
    """An image of its own that shares no layer with another, so that it has to be fetched."""
    return ground.engine.image(extra={f"opt/{name}": name.encode() * 100_000})


def here(ground: Arena, image: str) -> bool:
    client = ground.engine.client()
    with contextlib.closing(client):
        return any(image in (listed["RepoDigests"] or ()) for listed in client.images())


def test_a_pull_tells_how_far_it_is(ground: Arena) -> None:
    told: list[int] = []

    async def tell(percent: int, what: str) -> None:
        told.append(percent)

    image = variant(ground, "told")
    ground.run(ground.manager().prepull(image, tell))
    assert here(ground, image)
    assert told
    assert told == sorted(told)
    assert told[-1] < 100
    told.clear()
    ground.run(ground.manager().prepull(image, tell))
    assert told == []


def test_an_image_that_is_not_there_is_unavailable(ground: Arena) -> None:
    image = ground.engine.registry.reference("sha256:" + "0" * 64)
    with refused("image_unavailable"):
        ground.run(ground.manager().start(ground.order(RENTAL, image=image), ignore))
    assert ground.run(ground.manager().list_rentals()) == ()


def test_a_start_that_is_given_up_in_its_pull_leaves_nothing(ground: Arena) -> None:
    manager = ground.manager()
    image = variant(ground, "slow")
    order = ground.order(RENTAL, image=image)

    async def give_up() -> None:
        pulling = asyncio.Event()

        async def tell(percent: int, what: str) -> None:
            pulling.set()

        start = asyncio.create_task(manager.start(order, tell))
        await asyncio.wait_for(pulling.wait(), 30)
        (report,) = await manager.list_rentals()
        assert report.state == "pulling"
        assert (await manager.capacity()).memory_mib == ground.lent.memory_mib - order.memory_mib
        start.cancel()
        # Its thread sees that at Docker's next word.
        ground.engine.registry.held.set()
        with pytest.raises(asyncio.CancelledError):
            await start

    ground.engine.registry.held.clear()
    try:
        ground.run(give_up())
    finally:
        ground.engine.registry.held.set()
    assert ground.run(manager.list_rentals()) == ()
    assert ground.run(manager.capacity()).memory_mib == ground.lent.memory_mib
    assert ground.run(manager.start(order, ignore)).state == "running"
    ground.run(manager.destroy(RENTAL, 1))


def test_of_two_starts_for_one_place_one_is_refused(ground: Arena) -> None:
    manager = ground.manager()
    half = ground.lent.memory_mib // 2 + 1

    async def race() -> list[object]:
        orders = (ground.order(f"srv_racer{at}", memory_mib=half, cpus=0.1) for at in range(2))
        return await asyncio.gather(
            *(manager.start(order, ignore) for order in orders), return_exceptions=True
        )

    refusals = [result for result in ground.run(race()) if isinstance(result, MachineError)]
    assert [error.problem.code for error in refusals] == ["no_room"]
    for report in ground.run(manager.list_rentals()):
        ground.run(manager.destroy(report.rental_id, 1))


def test_a_disk_that_gets_full_ends_the_pull(ground: Arena) -> None:
    full = DockerManager(ground.config(), ground.lent, used_percent=lambda: 96)
    with contextlib.closing(full):
        image = variant(ground, "large")
        with refused("no_room"):
            ground.run(full.prepull(image, ignore))
    assert not here(ground, image)


def test_what_the_owner_fetched_runs_only_if_its_registry_gives_it_to_everybody(ground: Arena) -> None:
    manager, private = ground.manager(), ground.engine.registry.private
    owners, ours = variant(ground, "of-the-owner"), variant(ground, "of-ours")
    client = ground.engine.client()
    with contextlib.closing(client):
        client.pull(owners)
    ground.run(manager.prepull(ours, ignore))
    private |= {image.partition("@")[2] for image in (owners, ours)}
    try:
        with refused("image_unavailable"):
            ground.run(manager.start(ground.order(RENTAL, image=owners), ignore))
        assert ground.run(manager.list_rentals()) == ()
        assert here(ground, owners)
        ground.run(
            manager.prepull(ours, ignore)
        )  # nobody is asked for what we pulled: a registry may be down
    finally:
        private.clear()
    ground.run(manager.prepull(owners, ignore))
    assert not manager._pulls._shelf.has(owners), "it stays the owner's"


def test_what_was_unused_for_longest_is_evicted_and_nothing_of_the_owners(ground: Arena) -> None:
    fullness, clock = [50.0], [1000.0]
    config = ground.config()
    owners = variant(ground, "owners")
    client = ground.engine.client()
    with contextlib.closing(client):
        client.pull(owners)
    old, used, new = (variant(ground, name) for name in ("old", "used", "new"))
    rules = Images(allow=config.images.allow, prepull=(new,), evict_at_percent=85)
    state = str(ground.engine.folder / "other-state")

    def used_percent() -> float:
        # Each image that goes makes some room.
        return fullness[0] - 10 * (not here(ground, old))

    agent = DockerManager(
        msgspec.structs.replace(config, images=rules, state_dir=state), ground.lent, used_percent=used_percent,
        now=lambda: clock[0],
    )  # fmt: skip
    agent._isolation = ground.isolation
    with contextlib.closing(agent):
        for image in (owners, new, old, used):
            ground.run(agent.prepull(image, ignore))
            clock[0] += 1
        fullness[0] = 90.0
        ground.run(agent.sweep())
        assert [here(ground, image) for image in (owners, new, old, used)] == [True, True, False, True]
        fullness[0] = 99.0
        # Somebody is being started from it, and its container is not there yet.
        agent._room.now_is("spawn-srv_next-1", ground.order("srv_next", image=used), "creating")
        ground.run(agent.sweep())
        assert here(ground, used)
        del agent._room.starting["spawn-srv_next-1"]
        ground.run(agent.sweep())
        assert [here(ground, image) for image in (owners, new, old, used)] == [True, True, False, False]
