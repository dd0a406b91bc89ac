"""The daemon: puts its parts together, starts them in order, and ends them without ending a tenant.

Invariant: the journal is open and what runs is known before anybody is dialled. Whatever ends the daemon, tenants run
on; only a lease, the owner or the service stops one.
"""

import asyncio
import contextlib
import logging
import random
import signal
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from spawn_hostagent.backend_client import BackendClient, LinkRefused
from spawn_hostagent.ballast import Ballast
from spawn_hostagent.clock import Clock, ServiceClock, SystemClock
from spawn_hostagent.commands.executor import Executor
from spawn_hostagent.commands.journal import Journal, offset_saver
from spawn_hostagent.commands.journal_file import JournalError
from spawn_hostagent.config import Config
from spawn_hostagent.control.instance import CannotStart, alone, alone_with, notify
from spawn_hostagent.control.server import Control
from spawn_hostagent.docker.prepulls import Prepulls
from spawn_hostagent.keeping.keeper import Hardware, Keeper
from spawn_hostagent.keeping.rules import Rules
from spawn_hostagent.link.dialling import BadAddress, control_url
from spawn_hostagent.link.fallback import Fallback
from spawn_hostagent.link.signer import Signer
from spawn_hostagent.machines import MachineError, Machines
from spawn_hostagent.streams.relay import Relay
from spawn_hostagent.tunnel import TunnelManager

JOURNAL_FILE: Final = "journal.db"
FINISH_S: Final = 20.0
"""How long commands that are being carried out may take to end when the daemon is asked to."""

EXIT_STOPPED: Final = 0
EXIT_BROKEN: Final = 1
EXIT_REFUSED: Final = 78
"""The service does not want this host: starting again does not help (EX_CONFIG of sysexits(3))."""

_log: Final = logging.getLogger(__name__)


async def run(
    config: Config,
    identity: Signer,
    machines: Machines,
    hardware: Hardware,
    *,
    clock: Clock | None = None,
    dice: random.Random | None = None,
    stop: asyncio.Event | None = None,
) -> int:
    """Be the daemon until SIGTERM, SIGINT or `stop`; return the exit status. Raises CannotStart, ConfigError."""
    try:
        control_url(identity.link_url)
    except BadAddress as error:
        raise CannotStart(str(error)) from error
    stop = stop or asyncio.Event()
    docker = config.docker_socket
    with (
        alone(config.state),
        alone_with(docker),
        _signals(stop),
        contextlib.closing(await _open_journal(config, machines)) as journal,
    ):
        daemon = Daemon(
            config,
            identity,
            machines,
            hardware,
            journal,
            clock=clock or SystemClock(),
            dice=dice or random.Random(),  # noqa: S311 - it spreads the dialling of many hosts, and hides nothing
        )
        return await daemon.run(stop)


class Daemon:
    """All parts, made in one place."""

    def __init__(
        self,
        config: Config,
        identity: Signer,
        machines: Machines,
        hardware: Hardware,
        journal: Journal,
        *,
        clock: Clock,
        dice: random.Random,
    ) -> None:
        self._clock = clock
        self._journal = journal
        service_clock = ServiceClock(clock, journal.fact("clock_offset_ms") or 0, offset_saver(journal))
        rules = Rules(config, journal, clock)
        self.tunnels = TunnelManager(
            machines,
            Relay(identity.link_url, clock),
            clock,
            up_mbit=config.limits.up_mbit,
            limit_of=journal.up_mbit,
        )
        self.keeper = Keeper(
            journal,
            machines,
            hardware,
            rules,
            self.tunnels,
            clock=clock,
            service_clock=service_clock,
            build_executor=lambda tell: Executor(
                journal,
                machines,
                rules,
                clock=clock,
                service_clock=service_clock,
                tell=tell,
                rotate=identity.rotate,
                known_only=config.known_only,
            ),
        )
        times: dict[str, Any] = {"clock": clock, "service_clock": service_clock}
        self.link = BackendClient(identity, self.keeper, dice=dice, agent_version=agent_version(), **times)
        self.fallback = Fallback(identity, self.keeper, down_since=lambda: self.link.down_since_s, **times)
        self.keeper.attach(self.link)
        self.prepulls = Prepulls(config.images.prepull, machines, clock)
        about = {"host_id": identity.host_id, "service": identity.service, "version": agent_version()}
        self.control = Control(
            config.state,
            self.keeper,
            machines,
            rules,
            self.tunnels,
            self.link.state,
            self.prepulls,
            clock=clock,
            about=about,
        )

    async def run(self, stop: asyncio.Event) -> int:
        """Take up what was begun, adopt what runs, then keep at it until `stop`. Return the exit status."""
        self.keeper.executor.recover()
        await self.keeper.look()
        server = await self.control.open()
        notify("READY=1")
        _log.info("Running: %d rentals are here.", len(self.keeper.reports))
        try:
            return await self._work(stop)
        finally:
            notify("STOPPING=1")
            server.close()
            await self.keeper.executor.close(FINISH_S)
            await self.tunnels.close()
            self.keeper.close()
            self.control.write_status()

    async def _work(self, stop: asyncio.Event) -> int:
        stopped = asyncio.ensure_future(stop.wait())
        linked = asyncio.ensure_future(self._keep_link())
        parts: set[asyncio.Future[Any]] = {
            asyncio.ensure_future(part)
            for part in (
                self.keeper.run(),
                self.keeper.keep_house(),
                self.prepulls.run(),
                self.keeper.watch(),
                self.fallback.run(),
                self.control.keep_status(),
            )
        }
        everything: set[asyncio.Future[Any]] = {stopped, linked, self.keeper.executor.broken, *parts}
        try:
            done, _ = await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
            return _exit_status(done, stopped, linked)
        finally:
            for part in everything:
                part.cancel()
            await asyncio.gather(*everything, return_exceptions=True)

    async def _keep_link(self) -> int:
        """Hold the link. Where the service refuses this host, guard the leases of what runs, then end."""
        try:
            await self.link.run()
        except LinkRefused as error:
            _log.critical("%s What runs here runs on until its leases end.", error)
        while not self.keeper.is_empty():
            self.keeper.looked.clear()
            await self.keeper.looked.wait()
        return EXIT_REFUSED


def agent_version() -> str:
    """The version that is installed; `0` where the daemon runs from its source alone."""
    try:
        return version("spawn-host")
    except PackageNotFoundError:
        return "0"


def _exit_status(
    done: set[asyncio.Future[Any]], stopped: asyncio.Future[Any], linked: asyncio.Future[int]
) -> int:
    if stopped in done:
        return EXIT_STOPPED
    for part in done:
        error = part.exception() or (part.result() if part is not linked else None)
        if error is not None:
            _log.critical(
                "The daemon ends: %s", error, exc_info=error if isinstance(error, Exception) else None
            )
            return EXIT_BROKEN
    return linked.result()


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _open_journal(config: Config, machines: Machines) -> Journal:
    """The journal; where the disk is full, once those who fill it are stopped and our ballast is gone.

    Raises CannotStart.
    """
    path, ballast = config.state / JOURNAL_FILE, Ballast(config.state)
    try:
        return Journal.open(path)
    except JournalError as error:
        if not ballast.is_wanted():
            raise CannotStart(str(error)) from error
        _log.critical(
            "%s Who takes more of the disk than he rented is stopped, then it is tried again.", error
        )
    try:
        # First: who writes on would have the ballast before we do.
        await machines.sweep()
    except MachineError as error:
        _log.error("Docker: %s", error)
    ballast.give_up()
    try:
        return Journal.open(path)
    except JournalError as error:
        raise CannotStart(str(error)) from error
