"""What other commands on this machine may ask of the running daemon: a socket in its state folder, and a file.

Invariant: only who may open the folder's socket is answered, one line of JSON for each; nobody who asks can make the
daemon wait or end.
"""

import asyncio
import logging
import os
from pathlib import Path
from typing import Any, Final

import msgspec
from spawn_schemas.ids import RentalId

from spawn_hostagent.backend_client import LinkState
from spawn_hostagent.clock import Clock
from spawn_hostagent.commands.journal_file import JournalError
from spawn_hostagent.control.instance import CannotStart, write_atomically
from spawn_hostagent.docker.prepulls import Prepulls
from spawn_hostagent.keeping.keeper import Keeper
from spawn_hostagent.keeping.rules import Rules
from spawn_hostagent.machines import MachineError, Machines
from spawn_hostagent.tunnel import TunnelManager

SOCKET_FILE: Final = "control.sock"
STATUS_FILE: Final = "status.json"
STATUS_EVERY_S: Final = 5.0
LINE_MAX: Final = 64 * 1024
ANSWER_S: Final = 60.0

_log: Final = logging.getLogger(__name__)


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request. `rental_id` and `lines` belong to `logs`."""

    do: str
    rental_id: RentalId | None = None
    lines: int = 100


class Control:
    """Answers on `control.sock` and keeps `status.json`."""

    def __init__(
        self,
        folder: Path,
        keeper: Keeper,
        machines: Machines,
        rules: Rules,
        tunnels: TunnelManager,
        link: LinkState,
        prepulls: Prepulls,
        *,
        clock: Clock,
        about: dict[str, Any],
    ) -> None:
        self._folder = folder
        self._keeper = keeper
        self._machines = machines
        self._rules = rules
        self._tunnels = tunnels
        self._link = link
        self._prepulls = prepulls
        self._clock = clock
        self._about = about

    async def open(self) -> asyncio.Server:
        """Begin to answer. Raises CannotStart."""
        path = self._folder / SOCKET_FILE
        try:
            path.unlink(missing_ok=True)
            server = await asyncio.start_unix_server(self._answer, path, limit=LINE_MAX, start_serving=False)
            path.chmod(0o600)
            await server.start_serving()
        except OSError as error:
            raise CannotStart(
                f"{path} cannot be made: {error}. Use a state_dir that is ours, with a path of 90 characters at most."
            ) from error
        return server

    async def keep_status(self) -> None:
        """Write `status.json` every few seconds."""
        while True:
            self.write_status()
            await self._clock.sleep(STATUS_EVERY_S)

    def write_status(self) -> None:
        text = msgspec.json.encode(self.status())
        try:
            write_atomically(self._folder / STATUS_FILE, text)
        except OSError as error:
            _log.error("%s cannot be written: %s", STATUS_FILE, error)

    def status(self) -> dict[str, Any]:
        """How the daemon is: what `spawn-host status` shows."""
        inventory = self._keeper.inventory
        usage = self._tunnels.usage()
        return self._about | {
            "pid": os.getpid(),
            "updated_at": self._clock.now_ms() // 1000,
            "connected": self._link.connected,
            "since": self._link.since_s,
            "status": self._keeper.status(),
            "draining": bool(self._rules.drained_by()),
            "drained_by": self._rules.drained_by(),
            "tier": "none" if inventory is None else inventory.isolation.tier,
            "gpus": () if inventory is None else inventory.gpus,
            "metrics": self._keeper.metrics,
            "prepulls": self._prepulls.shown(),
            "rentals": [
                msgspec.to_builtins(report) | {"tunnel": usage.get(report.rental_id)}
                for report in self._keeper.reports
            ],
            "last_error": self._link.last_error or self._keeper.last_error,
        }

    # --- the socket -------------------------------------------------------------------------------------------

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await asyncio.wait_for(reader.readline(), ANSWER_S):
                answer = await asyncio.wait_for(self._reply(line), ANSWER_S)
                writer.write(msgspec.json.encode(answer) + b"\n")
                await asyncio.wait_for(writer.drain(), ANSWER_S)
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            _log.info("A request on %s broke off: %r", SOCKET_FILE, error)
        finally:
            writer.close()

    async def _reply(self, line: bytes) -> dict[str, Any]:
        try:
            asked = msgspec.json.decode(line, type=Asked)
            return {"ok": True} | await self._do(asked)
        except msgspec.DecodeError as error:
            return _no(f"This is no request: {error}.")
        except (MachineError, JournalError) as error:
            return _no(str(error))

    async def _do(self, asked: Asked) -> dict[str, Any]:
        match asked.do:
            case "status":
                return {"status": self.status()}
            case "drain":
                self._rules.drain("owner")
                return self._drained()
            case "undrain":
                self._rules.drain("owner", is_drained=False)
                return self._drained()
            case "logs" if asked.rental_id:
                text = await self._machines.logs(
                    *self._newest(asked.rental_id), max(1, min(asked.lines, 1000))
                )
                return {"text": text}
            case "isolation":
                return {"isolation": msgspec.to_builtins(await self._machines.isolation())}
            case "logs":
                return _no("Say which rental's logs: `spawn-host status` lists them.")
            case _:
                return _no(f"{asked.do!r} is not known: status, drain, undrain, isolation and logs are.")

    def _drained(self) -> dict[str, Any]:
        self._keeper.changed()
        self.write_status()
        return {"draining": bool(self._rules.drained_by()), "drained_by": self._rules.drained_by()}

    def _newest(self, rental_id: RentalId) -> tuple[RentalId, int]:
        numbers = [report.generation for report in self._keeper.reports if report.rental_id == rental_id]
        return rental_id, max(numbers, default=0)


def _no(message: str) -> dict[str, Any]:
    return {"ok": False, "message": message}
