"""Keeps what runs here in step with what may run: looks, decides, acts, and says so.

Invariant: it holds nothing that a restart would miss but since when something has been unknown or missing, and then a
grace begins again. Docker, NVML and the disk never hold up the event loop: they are asked through `Machines` and a
worker thread.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

from spawn_schemas.ids import CommandId
from spawn_schemas.inventory import Inventory, Isolation, Metrics
from spawn_schemas.link import Dial
from spawn_schemas.orders import Ack, AckState, Command, Desired, RentalReport

from spawn_hostagent.clock import Clock, ServiceClock
from spawn_hostagent.commands.executor import Executor
from spawn_hostagent.commands.journal import Journal, Stage
from spawn_hostagent.config import MIB_PER_GB
from spawn_hostagent.docker.turns import each
from spawn_hostagent.keeping.leases import Key, Woken, World, decide, lease_of
from spawn_hostagent.keeping.rules import Rules
from spawn_hostagent.link.duties import Picture, Pulse, Status
from spawn_hostagent.machines import MachineError, Machines
from spawn_hostagent.tunnel import TunnelManager

TICK_S: Final = 60.0
TICK_MIN_S: Final = 0.5
"""Docker may tell of many changes a second; they are looked at together."""
GONE_AFTER_S: Final = 45.0
"""How long the service's word and the container itself may miss each other before we say that it is not there."""
CHANGES_AGAIN_S: Final = 5.0

T = TypeVar("T")

_log: Final = logging.getLogger(__name__)


class Hardware(Protocol):
    """Whoever reads the machine's sensors. The calls block, for a second at most."""

    def inventory(
        self, isolation: Isolation | None = None, docker_version: str | None = None, used_disk_mib: int = 0
    ) -> Inventory:
        """The machine, and what of it is lent."""
        ...

    def metrics(self) -> Metrics:
        """The figures of now."""
        ...


class Voice(Protocol):
    """The link, as far as the keeper speaks to it."""

    def say(self, ack: Ack) -> None:
        """Tell the service soon how far a command is."""
        ...

    def sync(self) -> None:
        """Tell the service soon what is here."""
        ...


class Keeper:
    """The daemon behind the link: implements `Duties`. `attach` the link before `run`."""

    def __init__(
        self,
        journal: Journal,
        machines: Machines,
        hardware: Hardware,
        rules: Rules,
        tunnels: TunnelManager,
        *,
        clock: Clock,
        service_clock: ServiceClock,
        build_executor: Callable[[Callable[[Ack], None]], Executor],
    ) -> None:
        self._journal = journal
        self._machines = machines
        self._hardware = hardware
        self._rules = rules
        self._tunnels = tunnels
        self._clock = clock
        self._service_clock = service_clock
        self.executor = build_executor(self._tell)
        self._worker = ThreadPoolExecutor(1, "hardware")
        self._voice: Voice | None = None
        self._wake = asyncio.Event()
        self._strangers: dict[Key, float] = {}
        self._woken: dict[Key, Woken] = {}
        self._leftovers: tuple[Key, ...] = ()
        self._told: Inventory | None = None
        self._heard_at: float | None = None
        self._missing: dict[Key, float] = {}
        self._shown: frozenset[Key] = frozenset()
        self._unseen: frozenset[Key] = frozenset()
        self.reports: tuple[RentalReport, ...] = ()
        """What was here at the last look."""
        self.metrics = Metrics()
        self.inventory: Inventory | None = None
        self._look_error: str | None = None
        self._sweep_error: str | None = None
        self.looked = asyncio.Event()
        """Set after each look."""

    def attach(self, voice: Voice) -> None:
        self._voice = voice

    def close(self) -> None:
        self._worker.shutdown(wait=False)

    # --- the loop ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look each minute, when something changed, and when the next lease ends."""
        while True:
            self._wake.clear()
            await self.look()
            await self._pause()

    async def keep_house(self) -> None:
        """Each minute, what may take long: a lease ends meanwhile as at any time."""
        while True:
            await self._sweep()
            self._journal.prune(self._service_clock.now_s())
            await self._clock.sleep(TICK_S)

    @property
    def last_error(self) -> str | None:
        """What Docker last said against us, until it is well again."""
        return self._look_error or self._sweep_error

    async def look(self) -> None:
        """See what is here, and set right what must not be so."""
        self._service_clock.keep()
        try:
            self.reports = await self._machines.list_rentals()
        except MachineError as error:
            self._fail(error)
            return
        self._look_error = None
        decision = decide(self._world())
        self._strangers, self._woken = decision.strangers, decision.woken
        self.executor.apply(decision.actions)
        await self._tunnels.follow(frozenset(report.rental_id for report in self.reports if _runs(report)))
        self._miss()
        await self._remember_leases()
        self.looked.set()

    async def watch(self) -> None:
        """Look again whenever Docker says that something changed."""
        while True:
            try:
                async for _ in self._machines.changes():
                    self.changed()
            except MachineError as error:
                self._fail(error)
            await self._clock.sleep(CHANGES_AGAIN_S)
            self.changed()

    def changed(self) -> None:
        """What is here, or may be, is not what it was: look soon, and tell."""
        self._wake.set()
        if self._voice is not None:
            self._voice.sync()

    def is_empty(self) -> bool:
        """Whether no tenant's container runs, as of the last look."""
        return not any(map(_runs, self.reports))

    async def _sweep(self) -> None:
        try:
            await each(self._machines.sweep, self._find_leftovers)
            self._sweep_error = None
        except MachineError as error:
            self._sweep_error = str(error)
            _log.error("Docker: %s", error)
        before = self.inventory
        self.inventory = await self._take_inventory()
        if before and self.inventory and before.lent_gpus != self.inventory.lent_gpus:
            _log.warning(
                "Of the GPUs, these are lent now: %s.", ", ".join(self.inventory.lent_gpus) or "none"
            )
        if self._has_news():
            self.changed()

    def _has_news(self) -> bool:
        """Whether the service may sell what is lent no more, or does not know of a card; the rest can wait."""
        told, now = self._told, self.inventory
        if told is None or now is None:
            return False
        return told.lent_gpus != now.lent_gpus or now.disk_mib <= told.disk_mib - MIB_PER_GB

    async def _find_leftovers(self) -> None:
        self._leftovers = await self._machines.leftovers()

    async def _pause(self) -> None:
        await self._clock.sleep(TICK_MIN_S)
        woken = asyncio.ensure_future(self._wake.wait())
        slept = asyncio.ensure_future(self._clock.sleep(self._until_next_s()))
        try:
            await asyncio.wait({woken, slept}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
            slept.cancel()
            await asyncio.gather(woken, slept, return_exceptions=True)

    def _until_next_s(self) -> float:
        """Until a lease ends, or what stopped may be started once more."""
        leases = {key: lease.expires_at for key, lease in self._journal.leases().items()}
        ends = [lease_of(report, leases) for report in self.reports if _runs(report)]
        now_s = self._service_clock.now_ms() / 1000
        left = [end - now_s for end in ends if end is not None]
        # Of one whose moment is past there is nothing to wait for: it may not run for another reason.
        elapsed_s = self._clock.elapsed_s()
        again = [woken.again_s - elapsed_s for woken in self._woken.values() if woken.again_s > elapsed_s]
        return max(0.0, min([TICK_S, *left, *again]))

    def _world(self) -> World:
        return World(
            now_s=self._service_clock.now_s(),
            elapsed_s=self._clock.elapsed_s(),
            reports=self.reports,
            desired=self._journal.desired(),
            heard_at=self._heard_at,
            leases={key: lease.expires_at for key, lease in self._journal.leases().items()},
            strangers=self._strangers,
            woken=self._woken,
            leftovers=self._leftovers,
            busy=self.executor.busy(),
            is_closed=self._rules.is_closed(),
        )

    async def _remember_leases(self) -> None:
        leases = self._journal.leases()
        for report in self.reports:
            lease = leases.get((report.rental_id, report.generation))
            if lease is not None and lease.expires_at != report.lease_expires_at:
                await self._remember(report, lease.expires_at)

    async def _remember(self, report: RentalReport, expires_at: int) -> None:
        try:
            await self._machines.remember_lease(report.rental_id, report.generation, expires_at)
        except MachineError as error:
            # One that is being made, or went since the look, has no lease to keep.
            if error.problem.code != "unknown_rental":
                self._fail(error)

    def _fail(self, error: MachineError) -> None:
        self._look_error = str(error)
        _log.error("Docker: %s", error)

    # --- what the link asks -----------------------------------------------------------------------------------

    async def pulse(self) -> Pulse:
        """The figures of now, and what the last look saw."""
        self.metrics = await self._read(self._hardware.metrics, self.metrics)
        return Pulse(
            status=self.status(),
            metrics=self.metrics,
            rentals=sum(map(_runs, self.reports)),
            traffic=await self._ask(self._machines.traffic, {}),
        )

    def status(self) -> Status:
        if not self._rules.drained_by():
            return "online"
        return "drained" if self.is_empty() and not self.executor.busy() else "draining"

    async def picture(self, *, whole: bool) -> Picture:
        """All that is here now."""
        try:
            self.reports = await self._machines.list_rentals()
        except MachineError as error:
            # What we cannot see is not gone: the service hears what was here last.
            self._fail(error)
            return Picture(rentals=self.reports, draining=bool(self._rules.drained_by()))
        whole = whole or self._has_news()
        if whole:
            self._told = self.inventory = await self._take_inventory()
        return Picture(
            rentals=(*self.reports, *self._gone()),
            inventory=self.inventory if whole else None,
            draining=bool(self._rules.drained_by()),
        )

    def obey(self, command: Command) -> None:
        self.executor.submit(command)

    async def want(self, desired: tuple[Desired, ...]) -> None:
        """Keep it, and look soon."""
        self._journal.want(desired)
        self._heard_at = self._clock.elapsed_s()
        self._wake.set()

    async def dial(self, dial: Dial) -> None:
        await self._tunnels.dial(dial)

    def untold(self) -> tuple[Ack, ...]:
        return self._journal.untold()

    def underway(self) -> tuple[Ack, ...]:
        return tuple(_ack_of(command, stage) for command, stage in self._journal.unfinished())

    def told(self, command_ids: tuple[CommandId, ...]) -> None:
        self._journal.told(command_ids)

    # --- inside -----------------------------------------------------------------------------------------------

    def _tell(self, ack: Ack) -> None:
        if self._voice is not None:
            self._voice.say(ack)
        if ack.state in ("succeeded", "failed"):
            self.changed()

    def _gone(self) -> Iterable[RentalReport]:
        """What two pictures miss that the one before had, and what the service has long wanted that is not here.

        One picture would not do: what is gone is destroyed by the service, and a single look may be wrong.
        """
        here = frozenset((report.rental_id, report.generation) for report in self.reports)
        self._miss()
        now = self._clock.elapsed_s()
        gone = {key for key, since in self._missing.items() if now - since >= GONE_AFTER_S}
        gone |= self._unseen - here
        self._unseen, self._shown = self._shown - here - gone, here
        if self._unseen and self._voice is not None:
            self._voice.sync()
        return [
            RentalReport(rental_id=name, generation=number, state="gone", since=self._service_clock.now_s())
            for name, number in sorted(gone)
        ]

    def _miss(self) -> None:
        """Note since when something is wanted that is not here, nor about to be."""
        here = {(report.rental_id, report.generation) for report in self.reports}
        wanted = {(entry.rental_id, entry.generation) for entry in self._journal.desired().values()}
        busy, now = self.executor.busy(), self._clock.elapsed_s()
        self._missing = {key: self._missing.get(key, now) for key in wanted - here if key[0] not in busy}

    async def _take_inventory(self) -> Inventory | None:
        """What the machine is now. From here on so much is lent as it says: what is told and what is taken agree.

        A card may be lost, or its driver come late; the owner may fill the disk, or make room.
        """
        isolation = await self._ask(self._machines.isolation, Isolation())
        version = await self._ask(self._machines.docker_version, None)
        used = sum(report.disk_used_mib or 0 for report in self.reports)
        found = await self._read(
            lambda: self._hardware.inventory(isolation, version, used_disk_mib=used), self.inventory
        )
        if found is not None:
            self._machines.lend_as(found)
        return found

    async def _ask(self, question: Callable[[], Awaitable[T]], otherwise: T) -> T:
        try:
            return await question()
        except MachineError as error:
            self._fail(error)
            return otherwise

    async def _read(self, sensors: Callable[[], T], before: T) -> T:
        """What the sensors say now; what they said before, where they fail: no tenant is worth less for it."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, sensors)
        except Exception:  # noqa: BLE001 - a driver of sensors may raise whatever it likes
            _log.exception("The machine's sensors could not be read.")
            return before


def _runs(report: RentalReport) -> bool:
    return report.state == "running"


def _ack_of(command: Command, stage: Stage) -> Ack:
    state: AckState = "received" if stage is Stage.RECEIVED else "accepted"
    return Ack(command_id=command.command_id, state=state)
