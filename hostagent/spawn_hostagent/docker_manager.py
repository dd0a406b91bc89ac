"""Runs tenants' containers on this machine's Docker: the real `Machines`.

Invariant: nothing of a tenant starts unless the walls stand, the order is within the owner's limits and the host is not
below the floor (or its owner said that he is his own tenant); and nothing is deleted but by `destroy`, or if it never
ran. What is here is known from Docker's labels and small files alone: a new manager adopts all of it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Final, get_args

import msgspec
from docker import APIClient
from spawn_schemas.ids import RentalId
from spawn_schemas.inventory import Inventory, Isolation
from spawn_schemas.orders import EndedBy, RentalReport, StartInstance

from spawn_hostagent.config import Config
from spawn_hostagent.docker import containers, execs, images
from spawn_hostagent.docker.containers import Found
from spawn_hostagent.docker.engine import Engine
from spawn_hostagent.docker.events import Events
from spawn_hostagent.docker.housekeeping import Housekeeping
from spawn_hostagent.docker.pulls import Pulls, used_by
from spawn_hostagent.docker.rentals import (
    LABEL,
    Facts,
    Memory,
    Remembered,
    facts_of,
    labels_of,
    report,
)
from spawn_hostagent.docker.room import Room
from spawn_hostagent.docker.turns import Turns, each
from spawn_hostagent.machines import Capacity, ExecResult, Progress
from spawn_hostagent.preflight.programs import Run, run_program
from spawn_hostagent.walls import networks
from spawn_hostagent.walls.admission import (
    Lent,
    check_arguments,
    check_form,
    check_names,
    refuse,
)
from spawn_hostagent.walls.canary import Canary, why_below
from spawn_hostagent.walls.disks import Disks
from spawn_hostagent.walls.firewall import RULES, Firewall, Rule, WallsDown, resolvers_of_machine
from spawn_hostagent.walls.isolation import LINES, Line, Wanted

GRACE_S_MAX: Final = 300
LISTINGS_MAX: Final = 4
"""A start that ends while Docker is asked is neither in its answer nor being started: it is asked again, so often."""
MEASURE_AGAIN_S: Final = 60
"""What keeps strangers away may have been a hiccup, or is repaired by now: it is tried again when somebody asks."""


class DockerManager:
    """One machine. `lent` is what its owner lends, all tenants together, until an inventory says what it is by then.

    `lines` and `rules` are the profile; they are all of it but in tests that show what one is for. `used_percent` tells
    how full the disk of Docker's data is, `now` is a clock in unix seconds, `run` runs programs that tell versions.
    """

    def __init__(
        self,
        config: Config,
        lent: Lent,
        *,
        lines: tuple[Line, ...] = LINES,
        rules: tuple[Rule, ...] = RULES,
        used_percent: Callable[[], float] | None = None,
        now: Callable[[], float] = time.time,
        run: Run = run_program,
    ) -> None:
        self._config, self._lines, self._now, self._run = config, lines, now, run
        self._engine = Engine(config.docker_socket)
        self._disks = Disks(config.state / "disks", config.docker_socket)
        self._room = Room(self._engine, self._disks, lent, now)
        self._memory = Memory(config.state / "rentals")
        shelf = images.Shelf(config.state / "images.json")
        fullness = used_percent or used_by(self._engine)
        self._keeping = Housekeeping(
            self._disks, self._memory, shelf, config, fullness, self._room.wanted_images
        )
        self._pulls = Pulls(self._engine, shelf, self._keeping.evict, fullness, now)
        self._firewall = Firewall(
            lambda: config.tenant_dns or resolvers_of_machine(), lent.up_mbit, rules, rentals=lent.rentals
        )
        self._turns = Turns()
        self._measuring = asyncio.Lock()
        self._isolation: Isolation | None = None
        self._measured_at = 0.0

    def lend(self, lent: Lent) -> None:
        """From now on this much; what runs already goes on."""
        if lent.gpus and not self._room.lent.gpus:
            self._isolation = None  # what gives out cards was not looked at
        self._room.lent = lent
        self._firewall.up_mbit, self._firewall.rentals = lent.up_mbit, lent.rentals

    def lend_as(self, told: Inventory) -> None:
        sizes = {"cpus": told.cpus, "memory_mib": told.memory_mib, "disk_mib": told.disk_mib}
        self.lend(msgspec.structs.replace(self._room.lent, gpus=told.lent_gpus, **sizes))

    def close(self) -> None:
        """Let go of Docker; containers run on. Blocks until what is being done is done."""
        self._engine.close()

    # --- a rental's life ---------------------------------------------------------------------------------------

    async def start(self, order: StartInstance, tell: Progress) -> RentalReport:
        check_form(order)
        images.check_name(order.image, self._config.images)
        async with self._turns.of(order.rental_id):
            here = await self._already(order)
            if here is not None:
                return here
            isolation = await self._above_floor()
            async with self._room.reserved(order) as name:
                inspected = await self._pulls.bring(order.image, tell)
                settings = images.settings(
                    inspected, with_disk=isolation.disk_limit == "loop", with_gpus=bool(order.gpus)
                )
                self._room.now_is(name, order, "creating")
                facts = facts_of(order, isolation.disk_limit, settings.disk_path)
                return await self._engine.call_slow(lambda client: self._make(client, order, facts, settings))

    async def _already(self, order: StartInstance) -> RentalReport | None:
        """The report of a generation that is here; what of it never ran is removed first, and made again."""
        for found in await self._engine.call(lambda client: containers.find_all(client, order.rental_id)):
            if found.facts.generation > order.generation:
                raise refuse("stale_generation", f"generation {found.facts.generation} of it is here.")
            if found.facts.generation < order.generation:
                if not found.runs:
                    continue  # stopped, it keeps its disk until a command ends it
                raise refuse(
                    "exists", f"generation {found.facts.generation} of it runs here; stop that first."
                )
            if found.status != "created":
                return await self._engine.call(partial(self._report, found=found))
            await self._engine.call_slow(
                partial(containers.remove, name=found.facts.name, disks=self._disks, memory=self._memory)
            )
        return None

    async def _above_floor(self) -> Isolation:
        isolation = await self.isolation()
        if isolation.tier == "none" and self._config.known_only:
            why = why_below(isolation)[:1000]
            raise refuse("below_floor", f"this machine does not keep tenants apart well enough. {why}")
        return isolation

    def _make(
        self, client: APIClient, order: StartInstance, facts: Facts, settings: images.Settings
    ) -> RentalReport:
        name = facts.name
        try:
            self._memory.change(name, lambda _: Remembered(lease_expires_at=order.lease_expires_at))
            networks.make(client, facts)
            self._put_up_walls(client)
            if facts.disk_limit == "loop":
                self._disks.make(client, name, facts.disk_mib, labels_of(facts))
            containers.create(client, order, self._wanted(facts), facts, settings, self._lines)
            containers.begin(client, name, facts.gpus)
            self._remember(name, began=True)
        except BaseException:
            containers.remove(client, name, self._disks, self._memory)
            raise
        return self._found_report(client, facts.rental_id, facts.generation)

    def _wanted(self, facts: Facts) -> Wanted:
        return Wanted(
            cpus=facts.cpus,
            memory_mib=facts.memory_mib,
            disk_mib=facts.disk_mib,
            network=facts.name,
            resolvers=self._firewall.resolvers,
            disk_limit=facts.disk_limit,
            volume=(facts.name, facts.disk_path) if facts.disk_limit == "loop" else None,
            gpus=facts.gpus,
            ports=facts.ports,
            runtime=self._config.runtime,
        )

    def _put_up_walls(self, client: APIClient) -> None:
        """Make the walls stand around the bridges that are there. Raises WallError."""
        self._firewall.keep(partial(networks.bridges, client))

    async def resume(self, rental_id: RentalId, generation: int, lease_expires_at: int) -> RentalReport:
        async with self._turns.of(rental_id):
            found = await self._here(rental_id, generation)
            if found.status == "running":
                await self.remember_lease(rental_id, generation, lease_expires_at)
                return await self._engine.call(lambda client: self._report(client, found))
            await self._above_floor()

            def work(client: APIClient) -> RentalReport:
                self._put_up_walls(client)
                self._disks.attach(found.facts.name)
                resumed = Remembered(lease_expires_at=lease_expires_at, began=True)
                self._memory.change(found.facts.name, lambda _: resumed)
                containers.begin(client, found.facts.name, found.facts.gpus)
                return self._found_report(client, rental_id, generation)

            return await self._engine.call_change(work)

    async def stop(self, rental_id: RentalId, generation: int, grace_s: int, ended_by: str) -> RentalReport:
        if ended_by not in get_args(EndedBy):
            raise refuse("invalid", f"ended_by is one of {', '.join(get_args(EndedBy))}.")
        why = msgspec.convert(ended_by, EndedBy)
        async with self._turns.of(rental_id):
            found = await self._here(rental_id, generation)

            def work(client: APIClient) -> RentalReport:
                if found.runs:
                    self._keeping.end(client, found, max(0, min(grace_s, GRACE_S_MAX)), why)
                return self._found_report(client, rental_id, generation)

            return await self._engine.call_change(work)

    async def destroy(self, rental_id: RentalId, generation: int) -> None:
        check_names(rental_id, generation)

        def work(client: APIClient) -> None:
            for name, made in containers.names_of(client, rental_id, self._disks, self._memory):
                if made <= generation:
                    containers.remove(client, name, self._disks, self._memory)
                    self._keeping.used_mib.pop(name, None)

        async with self._turns.of(rental_id):
            await self._engine.call_change(work)

    async def remember_lease(self, rental_id: RentalId, generation: int, lease_expires_at: int) -> None:
        found = await self._here(rental_id, generation)
        await self._engine.call(lambda _: self._remember(found.facts.name, lease_expires_at=lease_expires_at))

    def _remember(self, name: str, **changes: int | str) -> None:
        self._memory.change(name, lambda known: msgspec.structs.replace(known, **changes))

    # --- what is here -------------------------------------------------------------------------------------------

    async def list_rentals(self) -> tuple[RentalReport, ...]:
        def work(client: APIClient) -> dict[str, RentalReport]:
            return {found.facts.name: self._report(client, found) for found in containers.find_all(client)}

        here: dict[str, RentalReport] = {}
        for _ in range(LISTINGS_MAX):
            ended = self._room.ended
            here = await self._engine.call(work)
            if self._room.ended == ended:
                break
        for name, starting in self._room.starting.items():
            if name not in here or here[name].state == "creating":
                here[name] = starting.report()
        return tuple(here.values())

    def _report(self, client: APIClient, found: Found) -> RentalReport:
        self._keeping.remember_kills(found)
        actions = self._keeping.remember_end(client, found)
        name = found.facts.name
        used_mib = self._keeping.used_mib.get(name)
        return report(found.facts, found.inspected, self._memory.read(name), used_mib, actions)

    def _found_report(self, client: APIClient, rental_id: RentalId, generation: int) -> RentalReport:
        found = containers.find(client, rental_id, generation)
        if found is None:
            raise refuse("docker_failed", "the container is gone: somebody else removed it.")
        return self._report(client, found)

    async def _here(self, rental_id: RentalId, generation: int) -> Found:
        """The container of this generation. Raises MachineError: `unknown_rental`, `stale_generation`."""
        check_names(rental_id, generation)
        here = await self._engine.call(lambda client: containers.find_all(client, rental_id))
        for found in here:
            if found.facts.generation == generation:
                return found
        if here and here[-1].facts.generation > generation:
            raise refuse("stale_generation", f"generation {here[-1].facts.generation} of it is here.")
        raise refuse("unknown_rental", "no such rental is on this machine.")

    async def _running(self, rental_id: RentalId, generation: int) -> Found:
        found = await self._here(rental_id, generation)
        if found.pid <= 0:
            raise refuse("not_running", "the rental is stopped; resume_instance starts it again.")
        return found

    async def logs(self, rental_id: RentalId, generation: int, lines: int) -> str:
        found = await self._here(rental_id, generation)
        return await self._engine.call_asked(lambda client: execs.last_lines(client, found.id, lines))

    async def exec(
        self, rental_id: RentalId, generation: int, argv: tuple[str, ...], timeout_s: int
    ) -> ExecResult:
        check_arguments(argv)
        if not argv:
            raise refuse("invalid", "argv has to name a program.")
        found = await self._running(rental_id, generation)
        result = await self._engine.call_asked(lambda client: execs.run(client, found.id, argv, timeout_s))
        if result is None:
            raise refuse("timed_out", f"it did not end within {timeout_s} s, and was ended.")
        return result

    async def prepull(self, image: str, tell: Progress) -> None:
        images.check_name(image, self._config.images)
        await self._pulls.bring(image, tell)

    async def address_of(self, rental_id: RentalId, port: int) -> tuple[str, int]:
        check_names(rental_id, 0)
        return await self._engine.call(lambda client: containers.address_of(client, rental_id, port))

    async def traffic(self) -> dict[RentalId, tuple[int, int]]:
        def work(client: APIClient) -> dict[RentalId, tuple[int, int]]:
            here = (found for found in containers.find_all(client) if found.pid > 0)
            return {found.facts.rental_id: containers.traffic(client, found) for found in here}

        return await self._engine.call(work)

    async def capacity(self) -> Capacity:
        return await self._room.capacity()

    async def isolation(self) -> Isolation:
        async with self._measuring:
            known, age_s = self._isolation, abs(self._now() - self._measured_at)
            if known is None or (known.tier == "none" and age_s >= MEASURE_AGAIN_S):
                known = self._isolation = await self._engine.call_slow(self._measure)
                self._measured_at = self._now()
            return known

    def _measure(self, client: APIClient) -> Isolation:
        disks = Disks(self._config.state / "canary", self._config.docker_socket)
        walls, has_cards = partial(self._put_up_walls, client), bool(self._room.lent.gpus)
        return Canary(
            client, walls, disks, self._config.runtime, self._run, has_cards=has_cards, lines=self._lines
        ).measure()

    def changes(self) -> AsyncIterator[None]:
        return aiter(Events(self._engine, self._docker_restarted))

    def _docker_restarted(self) -> None:
        self._isolation = None

    async def docker_version(self) -> str | None:
        return await self._engine.call(lambda client: str(client.version()["Version"]))

    # --- housekeeping -------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        await each(self._rebuild_walls, self._tidy, self._guard_disks)

    async def _rebuild_walls(self) -> None:
        """Nobody runs without walls: where they fell and cannot be put up again, what runs is stopped.

        Where Docker or nft cannot be asked, they stand as far as anybody knows: that is told, and asked again.
        """

        def work(client: APIClient) -> WallsDown | None:
            try:
                self._put_up_walls(client)
            except WallsDown as error:
                return error
            return None

        fallen = await self._engine.call_slow(work)
        if fallen is not None:
            await each(
                *(
                    partial(self.stop, one.rental_id, one.generation, containers.STOP_GRACE_S, "owner")
                    for one in await self.list_rentals()
                    if one.state == "running"
                )
            )
            raise refuse("docker_failed", f"tenants are stopped, unwalled: {fallen}") from fallen

    async def leftovers(self) -> tuple[tuple[RentalId, int], ...]:
        return await self._engine.call(lambda client: self._keeping.leftovers(client, self._room.starting))

    async def _tidy(self) -> None:
        await self._engine.call_slow(
            lambda client: self._keeping.remove_half_made(client, self._room.starting)
        )
        await self._engine.call_slow(lambda client: self._disks.remove_stale(client, LABEL))

    async def _guard_disks(self) -> None:
        too_large = await self._engine.call_slow(self._keeping.measure)
        await each(
            *(
                partial(self.stop, one.rental_id, one.generation, containers.STOP_GRACE_S, "disk_full")
                for one in (found.facts for found in too_large)
            )
        )
        await self._engine.call_slow(self._keeping.evict)
