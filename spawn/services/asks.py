"""What a tenant asks the host of a rental: the last lines it wrote, and to run something inside it.

Invariant: an ask is a command, written in the transaction that takes its fee, so that however often the call is
repeated its host carries it out once. What it says is sealed, kept for an hour, and never in a stored answer.
"""

from collections.abc import Callable
from typing import Final

import msgspec
from spawn_ledger.tx import Tx
from spawn_schemas import inside, orders
from spawn_schemas.api import ActionError
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address, CommandId, Entropy, HostId, ServerId, new_command_id

from spawn.clock import Clock
from spawn.domain.hosts import SILENT, HostState
from spawn.domain.rentals import ASKS, ENDED, CommandState, Desired, Issued, Rental
from spawn.domain.servers import FINAL, Server, Status
from spawn.services import funds, host_reports, views
from spawn.services.calls import Acted, Context, Read, UseCase
from spawn.services.ownership import get_owned
from spawn.services.purse import Purse
from spawn.services.signals import Signals
from spawn.store import hosts, rentals, secrets
from spawn.store.database import Database
from spawn.store.secrets import Vault

BEGIN_S: Final = 60
"""A host that hears of it later does not begin: nobody waits any more."""
OPEN_MAX: Final = 4
"""Asks of one rental that its host has not answered: more would be in the way of what others are told."""
_UNHEARD: Final = SILENT | {HostState.WARNED, HostState.REVOKED}
_THERE: Final = frozenset({"running", "stopped", "failed"})
_EXEC: Final = "exec"
_NOT_YET: Final = ActionError(
    code="in_progress",
    message="Its host has not answered yet. Ask again, or wait for it longer (`wait`, up to 60).",
)
_result: Final = msgspec.json.Decoder(dict[str, str | int | None])


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The answer as it is stored: where to look."""

    command: CommandId


_asked: Final = msgspec.json.Decoder(Asked)


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What its host said in the end: a `result`, or an `error`; neither while it says nothing."""

    command: CommandId
    server_id: str
    is_ended: bool
    result: dict[str, str | int | None]
    error: ActionError | None

    def text(self, name: str) -> str:
        """A text of the result, cut; a host may say anything."""
        found = self.result.get(name)
        return found[: inside.TEXT_MAX] if isinstance(found, str) else ""


class Asks:
    """Writes asks down, and waits for what comes of them. `signals` is told of commands that ended."""

    def __init__(
        self, db: Database, vault: Vault, clock: Clock, entropy: Entropy, changed: Callable[[HostId], None]
    ) -> None:
        self._db = db
        self._vault = vault
        self._clock = clock
        self._entropy = entropy
        self._changed = changed
        self.signals = Signals()

    def ask(self, tx: Tx, rental: Rental, order: orders.Logs | orders.Exec) -> Asked:
        """Its host is told once this is committed. What is to be run may be a secret."""
        now = self._clock.now_s()
        command = orders.Command(
            command_id=new_command_id(self._entropy), expires_at=now + BEGIN_S, order=order
        )
        issued = host_reports.issue(
            tx, command, rental.host_id, now, rental_id=rental.id, sealed_by=self._vault
        )
        return Asked(command=issued.id)

    async def outcome(self, command_id: CommandId, wait_s: int) -> Told:
        """What came of it by now, waiting for that at most so long. Raises not_found."""
        self._changed((await self._read(command_id)).host_id)
        issued = await self.signals.wait_until(
            command_id,
            lambda: self._read(command_id),
            lambda read: read.state in ENDED,
            timeout_s=wait_s,
        )
        error = _error(issued, self._clock.now_s())
        succeeded = issued.state is CommandState.SUCCEEDED
        return Told(
            command=issued.id,
            server_id=issued.rental_id or "",
            is_ended=succeeded or error is not None,
            result=await self._result(issued) if succeeded else {},
            error=error,
        )

    async def _read(self, command_id: CommandId) -> Issued:
        found = await self._db.read(rentals.SELECT_COMMAND, {"id": command_id})
        if not found:
            raise _forgotten()
        return rentals.command_from(found[0])

    async def _result(self, issued: Issued) -> dict[str, str | int | None]:
        text = await self._db.write(lambda tx: self._vault.find(tx, issued.id, secrets.RESULT))
        if text is None:
            raise _forgotten()
        return _result.decode(text)


class ShowLogs(Read):
    """`GET /v1/servers/{id}/logs`. Who reads is asked for a fee whatever the host says, as its host is asked."""

    def __init__(self, server_id: ServerId, lines: int, asks: Asks | None, *, wait_s: int) -> None:
        self._server_id = server_id
        self._lines = lines
        self._asks = asks
        self._wait_s = wait_s

    def check(self, tx: Tx, wallet: Address, purse: Purse, now: int) -> None:
        """Raises not_found, forbidden, conflict, rate_limited or provider_failed."""
        _rental(tx, self._asks, get_owned(tx, self._server_id, wallet, now))

    def act(self, tx: Tx, context: Context) -> Acted:
        server = get_owned(tx, self._server_id, context.wallet, context.now)
        asks, rental = _rental(tx, self._asks, server)
        order = orders.Logs(rental_id=rental.id, generation=rental.generation, lines=self._lines)
        return Acted(answer=views.encode(asks.ask(tx, rental, order)))

    async def tell(self, answer: bytes) -> bytes:
        """Raises not_found."""
        told = await _there(self._asks).outcome(_asked.decode(answer).command, self._wait_s)
        error = told.error if told.is_ended else _NOT_YET
        view = inside.LogsView(server_id=told.server_id, text=told.text("text"), error=error)
        return views.encode(inside.LogsShown(logs=view))


class Run(UseCase):
    """`POST /v1/servers/{id}/exec`: the fee is for having its host run it, whatever comes of that."""

    def __init__(
        self, server_id: ServerId, wanted: inside.RunCommand, asks: Asks | None, *, wait_s: int
    ) -> None:
        self._server_id = server_id
        self._wanted = wanted
        self._asks = asks
        self._wait_s = wait_s

    def check(self, tx: Tx, wallet: Address, purse: Purse, now: int) -> None:
        """Raises not_found, forbidden, conflict, rate_limited or provider_failed."""
        self._running(tx, wallet, now)

    def _running(self, tx: Tx, wallet: Address, now: int) -> tuple[Asks, Rental]:
        server = get_owned(tx, self._server_id, wallet, now)
        asks, rental = _rental(tx, self._asks, server)
        if server.status is not Status.RUNNING:
            raise SpawnError(
                Code.CONFLICT,
                f"Server {server.id} is {server.status}: nothing can run in it.",
                next=f"POST /v1/servers/{server.id}/start, then try again.",
            )
        return asks, rental

    def act(self, tx: Tx, context: Context) -> Acted:
        asks, rental = self._running(tx, context.wallet, context.now)
        order = orders.Exec(
            rental_id=rental.id,
            generation=rental.generation,
            argv=self._wanted.argv,
            timeout_s=self._wanted.timeout_s,
        )
        asked = asks.ask(tx, rental, order)
        funds.charge_fee(tx, context.wallet, context.fee_usdc, context.reference, context.now)
        return Acted(answer=views.encode(asked))

    async def tell(self, answer: bytes) -> bytes:
        """Raises not_found."""
        return await _ran(_there(self._asks), answer, self._wait_s)


class ShowRan(Read):
    """`GET /v1/commands/{id}`: for whoever was answered before its host had said what came of it."""

    def __init__(self, command_id: CommandId, asks: Asks | None, *, wait_s: int) -> None:
        self._command_id = command_id
        self._asks = asks
        self._wait_s = wait_s

    def check(self, tx: Tx, wallet: Address, purse: Purse, now: int) -> None:
        """Raises not_found or forbidden."""
        self._asked(tx, wallet, now)

    def _asked(self, tx: Tx, wallet: Address, now: int) -> Asked:
        issued = rentals.find_command(tx, self._command_id)
        if issued is None or issued.rental_id is None or issued.kind != _EXEC:
            raise _forgotten()
        get_owned(tx, ServerId(issued.rental_id), wallet, now)
        return Asked(command=issued.id)

    def act(self, tx: Tx, context: Context) -> Acted:
        return Acted(answer=views.encode(self._asked(tx, context.wallet, context.now)))

    async def tell(self, answer: bytes) -> bytes:
        """Raises not_found."""
        return await _ran(_there(self._asks), answer, self._wait_s)


async def _ran(asks: Asks, answer: bytes, wait_s: int) -> bytes:
    told = await asks.outcome(_asked.decode(answer).command, wait_s)
    code = told.result.get("exit_code")
    view = inside.RanView(
        id=told.command,
        server_id=told.server_id,
        status="ended" if told.is_ended else "running",
        exit_code=code if isinstance(code, int) else None,
        stdout=told.text("stdout"),
        stderr=told.text("stderr"),
        error=told.error,
    )
    return views.encode(inside.CommandRan(ran=view))


def _there(asks: Asks | None) -> Asks:
    if asks is None:
        raise _forgotten()
    return asks


def _rental(tx: Tx, asks: Asks | None, server: Server) -> tuple[Asks, Rental]:
    """What its host can be asked about now. Raises conflict, rate_limited or provider_failed."""
    if asks is None or server.host_id is None:
        raise SpawnError(
            Code.CONFLICT,
            f"Server {server.id} is not on a lent machine: nobody but its owner can look inside.",
            next="Log in with SSH; GET /v1/servers/{id} shows the address and the host key.",
        )
    rental = rentals.find(tx, server.id)
    ends = server.status in FINAL or server.status is Status.DESTROYING
    if ends or rental is None or rental.gone_at is not None or rental.desired is Desired.GONE:
        raise SpawnError(
            Code.CONFLICT, f"Server {server.id} is {server.status}.", next="POST /v1/servers rents another."
        )
    if rental.reported not in _THERE:
        raise SpawnError(
            Code.CONFLICT, f"Server {server.id} is still being made.", next="Try again once it is running."
        )
    _refuse_unheard(tx, rental)
    return asks, rental


def _refuse_unheard(tx: Tx, rental: Rental) -> None:
    host = hosts.find(tx, rental.host_id)
    if host is None or host.state in _UNHEARD:
        raise SpawnError(
            Code.PROVIDER_FAILED,
            "The machine that it is on has not been heard for minutes.",
            retry_after_s=60,
            next="Nothing was charged: try again later. GET /v1/servers/{id} shows when it is back.",
        )
    waiting = [issued for issued in rentals.open_of_rental(tx, rental.id) if issued.kind in ASKS]
    if len(waiting) >= OPEN_MAX:
        raise SpawnError(
            Code.RATE_LIMITED,
            f"{OPEN_MAX} asks about this server are not answered yet.",
            retry_after_s=5,
            next="Wait for their answers: send those requests again.",
        )


def _error(issued: Issued, now: int) -> ActionError | None:
    """Why there is no result, and never will be."""
    if issued.state is CommandState.FAILED:
        return ActionError(
            code=issued.problem_code or "internal", message=issued.problem or "Its host did not say why."
        )
    if issued.state is CommandState.WITHDRAWN:
        return ActionError(code="withdrawn", message="The server ended before its host answered.")
    if issued.state is CommandState.QUEUED and issued.expires_at <= now:
        return ActionError(code="expired", message="Its host was not there before the order expired.")
    return None


def _forgotten() -> SpawnError:
    return SpawnError(
        Code.NOT_FOUND,
        "What came of this is kept for an hour, and is forgotten.",
        next="Ask again, by a new request with a new Idempotency-Key.",
    )
