"""An executor with its journal, on containers that outlive it; and a disk that fails when the test says."""

import asyncio
import sqlite3
from pathlib import Path
from typing import Any, ClassVar

from spawn_hostagent.clock import ServiceClock
from spawn_hostagent.commands.executor import Executor
from spawn_hostagent.commands.journal import Journal, offset_saver
from spawn_hostagent.config import Config, Limits
from spawn_hostagent.keeping.rules import Rules
from spawn_schemas.ids import CommandId
from spawn_schemas.orders import Ack, Command

from tests.hostagent.clocks import VirtualClock
from tests.hostagent.fake_machines import FakeMachines

ENDED = ("succeeded", "failed")


class FailingDisk(sqlite3.Connection):
    """Counts commits; the one numbered `fails_at` is lost (`before`), or kept without an answer (`after`)."""

    commits: ClassVar[int] = 0
    fails_at: ClassVar[int | None] = None
    when: ClassVar[str] = "before"

    @classmethod
    def plan(cls, fails_at: int | None, when: str = "before") -> None:
        cls.commits, cls.fails_at, cls.when = 0, fails_at, when

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if sql != "COMMIT":
            return super().execute(sql, parameters)
        FailingDisk.commits += 1
        if FailingDisk.commits != FailingDisk.fails_at:
            return super().execute(sql)
        if FailingDisk.when == "after":
            super().execute(sql)
        raise sqlite3.OperationalError("disk I/O error")


class Desk:
    """One life of the daemon's executor. `told` outlives it, as the service does."""

    def __init__(
        self,
        folder: Path,
        machines: FakeMachines,
        clock: VirtualClock,
        told: list[Ack] | None = None,
        *,
        limits: Limits | None = None,
        known_only: bool = True,
    ) -> None:
        self.machines = machines
        self.clock = clock
        self.told: list[Ack] = [] if told is None else told
        self.rotations = 0
        self.journal = Journal.open(folder / "journal.db", FailingDisk)
        config = Config(service="https://spawn.test", limits=limits or Limits())
        self.rules = Rules(config, self.journal, clock)
        self.service_clock = ServiceClock(
            clock, self.journal.fact("clock_offset_ms") or 0, offset_saver(self.journal)
        )
        self.executor = Executor(
            self.journal,
            machines,
            self.rules,
            clock=clock,
            service_clock=self.service_clock,
            tell=self.told.append,
            rotate=self._rotate,
            known_only=known_only,
        )

    async def _rotate(self) -> None:
        self.rotations += 1

    async def do(self, *commands: Command) -> list[Ack]:
        """Submit these and wait for their ends; return the results in their order."""
        for command in commands:
            self.executor.submit(command)
        await self.executor.idle()
        return [self.result(command.command_id) for command in commands]

    def result(self, command_id: CommandId) -> Ack:
        return next(ack for ack in reversed(self.told) if ack.command_id == command_id and ack.state in ENDED)

    def states(self, command: Command) -> list[str]:
        return [ack.state for ack in self.told if ack.command_id == command.command_id]

    async def die(self) -> None:
        """The process ends in the middle of everything."""
        await self.executor.close(0)
        self.journal.close()
        self.machines.forget_callers()
        await asyncio.sleep(0)
