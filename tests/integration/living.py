"""Years in the life of a service, lived through its real use cases, on a real database, in seconds.

What a transaction does in the service is done here as well, by the same code; left out are HTTP, the chain and the
cloud, whose answers are made up. All of a town's life is one transaction, each of its calls a savepoint.
Invariant: nothing here reckons what anything costs.
"""

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from msgspec.structs import replace
from spawn_ledger.accrual import DAY
from spawn_ledger.transfers import InsufficientFunds
from spawn_providers.base import Instance, InstanceStatus, Traffic, Verb
from spawn_providers.catalog import DEFAULT_CATALOG
from spawn_schemas import api
from spawn_schemas.errors import SpawnError
from spawn_schemas.ids import Address, ReservationId, ServerId
from spawn_schemas.money import Usdc, format_usdc

from spawn.domain.charges import Price
from spawn.domain.operations import Act, Create, Operation, OperationStatus, Phase
from spawn.domain.servers import Command, Server
from spawn.domain.warnings import Policy
from spawn.services import endings, funds, standing, traffic
from spawn.services.acting import Transactions
from spawn.services.billing import Billing
from spawn.services.boots import Boots
from spawn.services.calls import Identity, PaidCall, Proof, Request, UseCase
from spawn.services.create_server import CreateServer, Shop
from spawn.services.outcomes import Outcomes
from spawn.services.price_list import PriceList
from spawn.services.provider_calls import Accepted, Outcome, StepDone, Work
from spawn.services.server_actions import Power, Resize
from spawn.services.servers import DestroyServer, FundServer, ListServers, UpdateServer
from spawn.store import burning, operations, price_changes, servers
from spawn.store.reservations import Rail, Reservation, State
from spawn.store.secrets import Vault
from tests import databases
from tests.harness import SeededEntropy, VirtualClock, settings_in
from tests.integration.ledger_books import Books

EUR_USDC: Final = Usdc(1_080_000)
PLACE: Final = "nbg1"
FEES: Final = {"create": 10_000, "resize": 10_000, "destroy": 5_000, "read": 1_000}


@dataclass
class Told:
    """One event, as the owner of a server heard it."""

    at: int
    type: str
    resource: str
    cause: str | None


@dataclass(eq=False)
class Town:
    """Every wallet of a service, and the hours that pass. `now` only grows, unless a test sets it back."""

    path: Path
    policy: Policy
    now: int
    paid_in: int = 0
    refused: int = 0
    _names: int = 0
    connection: sqlite3.Connection = field(init=False)
    tx: Books = field(init=False)
    billing: Billing = field(init=False)

    def __post_init__(self) -> None:
        databases.make_file(self.path)
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("BEGIN IMMEDIATE")
        self.connection = connection
        self.tx = Books(connection)
        self.entropy = SeededEntropy("town")
        self.billing = Billing(self.entropy, self.policy)
        self._clock = VirtualClock(self.now)
        vault = Vault(bytes(32), self.entropy)
        self.shop = Shop(
            prices=PriceList(DEFAULT_CATALOG, settings_in(self.path.parent)),
            provider="simulated",
            entropy=self.entropy,
            vault=vault,
            billing=self.billing,
            boots=Boots(vault, self.entropy, url="http://spawn.test", room_bytes=32_768),
        )
        self._outcomes = Outcomes(self.entropy, vault, self.billing)
        self._calls = Transactions(self._clock, self.billing, daily_cap_usdc=Usdc(10**12))

    def close(self) -> None:
        self.connection.execute("COMMIT")
        self.connection.close()

    # --- what owners do: each answers whether it was done --------------------------------------------------------

    def pay_in(self, wallet: Address, usdc: int) -> None:
        """A payment that the chain has settled."""
        self.paid_in += usdc
        name = self._new_name()
        funds.credit_payment(self.tx, wallet, Usdc(usdc), nonce_key=name, reference=name, at=self.now)
        if standing.of(self.tx, wallet, self.now).pressing:
            self.billing.settle(self.tx, wallet, self.now)
            self.billing.reschedule(self.tx, wallet, self.now)

    def rent(self, wallet: Address, type: str, deposit_usdc: int, *, auto_renew: bool) -> ServerId | None:
        """A server that its provider has accepted and booted at once, or None when it was refused."""
        name = self._new_name()
        wanted = api.CreateServer(
            name=name,
            type=type,
            image="debian-12",
            location=PLACE,
            auto_renew=auto_renew,
            deposit=format_usdc(Usdc(deposit_usdc)),
        )
        if not self._call(wallet, CreateServer(self.shop, wanted), FEES["create"]):
            return None
        row = self.tx.one(servers.SELECT_NAME_TAKEN, {"wallet": wallet, "name": name})
        assert row is not None
        server_id = ServerId(row["id"])
        self.obey(server_id)
        return server_id

    def fund(self, server: Server, usdc: int) -> bool:
        wanted = api.FundServer(amount=format_usdc(Usdc(usdc)))
        return self._call(server.wallet, FundServer(server.id, wanted, self.billing), FEES["read"])

    def renew(self, server: Server, *, auto_renew: bool) -> bool:
        wanted = api.UpdateServer(auto_renew=auto_renew)
        return self._call(server.wallet, UpdateServer(server.id, wanted, self.billing), FEES["read"])

    def resize(self, server: Server, type: str) -> bool:
        """Order it; `obey` carries it out."""
        return self._call(
            server.wallet, Resize(server.id, api.ResizeServer(type=type), self.shop), FEES["resize"]
        )

    def power(self, server: Server, command: Command) -> bool:
        return self._call(server.wallet, Power(server.id, command, self.shop), FEES["read"])

    def destroy(self, server: Server) -> bool:
        return self._call(
            server.wallet, DestroyServer(server.id, self.billing, self.entropy), FEES["destroy"]
        )

    def read(self, wallet: Address) -> bool:
        return self._call(wallet, ListServers(status=None, limit=10, page=1), FEES["read"])

    def _call(self, wallet: Address, use_case: UseCase, fee_usdc: int) -> bool:
        """A signed call, in the transaction that it is in the service; refused, it leaves nothing behind."""
        self._clock.step(self.now - self._clock.now_s())
        name = ReservationId(self._new_name())
        identity = Identity(
            proof=Proof.SIGNATURE, wallet=wallet, nonce_key=name, valid_before=self.now + 60, payment=None
        )
        request = Request(method="POST", path="/", query="", body=b"", idempotency_key=None)
        price = Price(fee_usdc=Usdc(fee_usdc), fund_usdc=Usdc(0))
        call = PaidCall(request=request, price=price, identity=identity, rate_limited=False)
        self.tx.execute("SAVEPOINT call")
        try:
            self._calls.begin(self.tx, call, _reservation(identity, fee_usdc, self.now), use_case)
        except (SpawnError, InsufficientFunds):
            self.tx.execute("ROLLBACK TO call")
            self.refused += 1
            return False
        finally:
            self.tx.execute("RELEASE call")
        return True

    # --- what happens to them ------------------------------------------------------------------------------------

    def burn(self) -> None:
        """A tick of the burn job."""
        horizon_s = DAY + self.policy.thresholds_s[0]
        place = burning.START
        while (chunk := burning.settle_chunk(self.tx, now=self.now, horizon_s=horizon_s, after=place)).next:
            place = chunk.next
        due = self.tx.all("SELECT DISTINCT wallet FROM server WHERE due_at <= :now", {"now": self.now})
        for row in due:
            self.billing.settle(self.tx, Address(row["wallet"]), self.now)

    def due_at(self) -> int | None:
        """When somebody is due next."""
        row = self.tx.one("SELECT MIN(due_at) AS at FROM server")
        assert row is not None
        due_at: int | None = row["at"]
        return due_at

    def obey(self, server_id: ServerId) -> None:
        """The provider carries out what is ordered for the server, in this second and to its end."""
        while (operation := operations.find_running(self.tx, server_id)) is not None:
            self._step(operation)

    def _step(self, operation: Operation) -> None:
        claimed = replace(operation, claim="town", claim_until=self.now + 60)
        assert operations.update_operation(self.tx, operation, claimed)
        server = servers.get_server(self.tx, operation.server_id)
        outcome: Outcome
        if operation.phase is not Phase.ACCEPTED:
            ref = str(self._new_number()) if isinstance(operation.current, Create) else None
            outcome = Accepted(ref=ref)
        else:
            outcome = StepDone(instance=_machine(server, operation))
        work = Work(operation=operation, server=server, user_data=None)
        after = self._outcomes.record(self.tx, work, "town", outcome, self.now)
        assert after is None or after.status is not OperationStatus.ERROR

    def announce(self, server_id: ServerId, *, at: int, daily_usdc: int) -> None:
        """From `at` on the server has another price."""
        price_changes.set_reprice(self.tx, server_id, at=at, daily_usdc=Usdc(daily_usdc))

    def lose(self, server: Server, since: int) -> None:
        """Its provider has no such machine any more; that was first seen at `since`."""
        self.billing.settle(self.tx, server.wallet, self.now, sparing=server.id)
        endings.vanish(self.tx, self.server(server.id), since, self.now)
        self.billing.reschedule(self.tx, server.wallet, self.now)

    # --- what is so ----------------------------------------------------------------------------------------------

    def server(self, server_id: ServerId) -> Server:
        return servers.get_server(self.tx, server_id)

    def sends(self, server: Server, outgoing_bytes: int) -> None:
        """A look at the machine shows how much it has sent in its life."""
        machine = Instance(
            ref=server.provider_ref or "",
            key=server.id,
            owner=server.wallet,
            hostname=server.name,
            created_at=server.created_at,
            status=InstanceStatus.RUNNING,
            provider_type=server.provider_type,
            image=server.image,
            location=server.location,
            ipv4=None,
            ipv6=None,
            cores=server.cores,
            memory_gb=server.memory_gb,
            disk_gb=server.disk_gb,
            traffic=Traffic(ingoing_bytes=0, outgoing_bytes=outgoing_bytes, included_bytes=0),
        )
        traffic.seen(self.tx, self.billing, server.id, machine, self.now)

    def metered(self) -> list[Server]:
        """Every server that costs money, in a fixed order."""
        rows = self.tx.all("SELECT * FROM server WHERE charged_until IS NOT NULL ORDER BY id")
        return [servers.server_from(row) for row in rows]

    def dying(self) -> list[ServerId]:
        """Servers whose machine is still to be destroyed."""
        rows = self.tx.all("SELECT id FROM server WHERE status = 'destroying' ORDER BY id")
        return [ServerId(row["id"]) for row in rows]

    def told(self) -> list[Told]:
        rows = self.tx.all("SELECT at, type, resource, cause FROM event ORDER BY seq")
        return [Told(row["at"], row["type"], row["resource"], row["cause"]) for row in rows]

    def _new_number(self) -> int:
        self._names += 1
        return self._names

    def _new_name(self) -> str:
        return f"n{self._new_number()}"


def _reservation(identity: Identity, fee_usdc: int, now: int) -> Reservation:
    return Reservation(
        id=identity.nonce_key,
        wallet=identity.wallet,
        rail=Rail.SIGNED,
        idempotency_key=None,
        fingerprint="",
        state=State.RESERVED,
        fee=Usdc(fee_usdc),
        amount=Usdc(0),
        payment=None,
        seal=None,
        valid_before=identity.valid_before,
        settlement=None,
        operation_id=None,
        answer=None,
        claim=None,
        claim_until=0,
        created_ms=now * 1000,
        keep_until=now,
    )


_AFTER: Final = {
    Verb.SHUTDOWN: InstanceStatus.OFF,
    Verb.POWEROFF: InstanceStatus.OFF,
    Verb.RESIZE: InstanceStatus.OFF,
}


def _machine(server: Server, operation: Operation) -> Instance | None:
    """The machine as the step leaves it; None once it is destroyed."""
    step = operation.current
    if not isinstance(step, Create | Act):
        return None
    status = (
        _AFTER.get(step.verb, InstanceStatus.RUNNING) if isinstance(step, Act) else InstanceStatus.RUNNING
    )
    resized = operation.plan.resized
    return Instance(
        ref=server.provider_ref or "",
        key=server.id,
        owner=server.wallet,
        hostname=server.name,
        created_at=server.created_at,
        status=status,
        provider_type=server.provider_type if resized is None else resized.provider_type,
        image=server.image,
        location=server.location,
        ipv4=None,
        ipv6=None,
        cores=server.cores,
        memory_gb=server.memory_gb,
        disk_gb=server.disk_gb,
    )
