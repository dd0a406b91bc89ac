"""`HostLink` on our own database: what the community provider orders is a row, and what hosts report answers it.

Invariant: an order is durable before it is answered, and is on its way only then; whoever carries orders to hosts is
told by `changed`, and misses nothing if it is not.
"""

from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Final, TypeVar

import msgspec
from msgspec.structs import replace
from spawn_ledger.tx import Row, Tx
from spawn_providers.base import (
    Endpoint,
    Instance,
    OpState,
    OpStatus,
    Refused,
    RefusedCode,
    Spec,
    Unavailable,
    Verb,
)
from spawn_providers.catalog import Catalog, Currency, Image, Location, Offer, Wholesale
from spawn_schemas import inventory, orders
from spawn_schemas.errors import SpawnError
from spawn_schemas.ids import Entropy, HostId, RentalId, ServerId, new_command_id
from spawn_schemas.money import Usdc

from spawn.clock import Clock
from spawn.domain.community import InnerPort, Relay, Size
from spawn.domain.hosts import LEASE_S, Host, HostState, share_usdc
from spawn.domain.rentals import FOREVER_S, CommandState, Desired, Issued, Rental, status_of
from spawn.services import host_reports
from spawn.store import hosts, rentals, secrets
from spawn.store.database import Database, StoreError
from spawn.store.secrets import Vault

T = TypeVar("T")

TYPE: Final = "lent"
"""What the one type is called that lent machines are sold as."""
START_S: Final = 840
"""Before this has passed a container must begin to be made: our own patience with an order is longer."""
ORDER_S: Final = 240
REST_S: Final = 3_600
"""How long a public port rests before it leads to another rental."""
_STOP_GRACE_S: Final = 10
_GONE: Final = "gone:"
_MIB_PER_GB: Final = 1024


class Goods(msgspec.Struct, frozen=True, kw_only=True):
    """What is sold of the host `host`: `images` are references by digest, by name."""

    host: str
    images: dict[str, str]
    size: Size
    ports: tuple[InnerPort, ...]
    relay: Relay
    daily_usdc: Usdc | None
    share_percent: int


class Rentals:
    """See `spawn_providers.community.link.HostLink`."""

    def __init__(self, db: Database, vault: Vault, clock: Clock, entropy: Entropy, goods: Goods) -> None:
        self._db = db
        self._vault = vault
        self._clock = clock
        self._entropy = entropy
        self.goods = goods
        self.changed: Callable[[HostId], None] = lambda _: None

    async def catalog(self) -> Catalog:
        """Raises StoreError where there is no such host: nothing could be sold."""
        found = await self._read(hosts.SELECT_BY_NAME, {"name": self.goods.host})
        if not found:
            raise StoreError(
                f"SPAWN_COMMUNITY_HOST names {self.goods.host!r}, and there is no such host: add it with "
                f"`spawn hosts add {self.goods.host} --wallet 0x… --price 1.20`."
            )
        return _catalog(self.goods, hosts.host_from(found[0]))

    async def place(self, key: ServerId, spec: Spec, offer: Offer) -> str:
        """Raises Refused(out_of_capacity) where the host takes nothing, or has no room or port left."""
        command, rental = await self._write(lambda tx: self._place(tx, key, spec, offer))
        self.changed(rental.host_id)
        return command

    async def find(self, key: ServerId) -> Instance | None:
        """What there is of it, as its host last reported it."""
        return await self._write(lambda tx: self._find(tx, key))

    async def living(self) -> list[Instance]:
        """All that is not gone."""
        return await self._write(self._living)

    async def order(self, key: ServerId, verb: Verb) -> str:
        """Raises Refused."""
        handle, host_id = await self._write(lambda tx: self._order(tx, key, verb))
        self.changed(host_id)
        return handle

    async def destroy(self, key: ServerId) -> str:
        """Removed by its host, or at once where no host ever heard of it. A host that failed to is told again."""
        handle, host_id = await self._write(lambda tx: self._destroy(tx, key))
        if host_id is not None:
            self.changed(host_id)
        return handle

    async def outcomes(self, handles: Sequence[str]) -> list[OpState]:
        """How far these have come."""
        return await self._write(lambda tx: [_outcome(tx, handle) for handle in handles])

    # --- in transactions --------------------------------------------------------------------------------------------

    def _place(self, tx: Tx, key: ServerId, spec: Spec, offer: Offer) -> tuple[str, Rental]:
        known = rentals.find(tx, key)
        if known is not None:
            return known.start_command, known
        host = hosts.find_named(tx, spec.location)
        if host is None:
            raise Refused(RefusedCode.INVALID, f"There is no host {spec.location}.")
        _refuse_full(tx, host, offer)
        now, rental_id = self._clock.now_s(), RentalId(key)
        reached = tuple(filter(None, (self._endpoint(tx, rental_id, port, now) for port in self.goods.ports)))
        order = self._start(tx, key, spec, offer, now)
        issued = self._issue(tx, host.id, order, rental_id=key, within_s=START_S, sealed=True)
        rental = Rental(
            id=rental_id,
            host_id=host.id,
            owner=spec.owner,
            hostname=spec.hostname,
            type=offer.provider_type,
            image=spec.image,
            cores=offer.cores,
            memory_gb=offer.memory_gb,
            disk_gb=offer.disk_gb,
            endpoints=reached,
            lease_until=order.lease_expires_at,
            start_command=issued.id,
            created_at=now,
        )
        rentals.insert(tx, rental)
        hosts.raise_desired(tx, host.id)
        return issued.id, rental

    def _endpoint(self, tx: Tx, rental_id: RentalId, port: InnerPort, now: int) -> Endpoint | None:
        """Where the port is reached; None for one by host name where no names are set."""
        relay = self.goods.relay
        if port.kind == "http":
            return relay.named(rental_id, port.number)
        public = rentals.lease_port(tx, relay.ports, rental_id, port.number, now=now, rest_s=REST_S)
        if public is None:
            raise Refused(RefusedCode.OUT_OF_CAPACITY, "Every public port is taken: try again in an hour.")
        return Endpoint(port=port.number, host=relay.host, public_port=public)

    def _start(self, tx: Tx, key: ServerId, spec: Spec, offer: Offer, now: int) -> orders.StartInstance:
        return orders.StartInstance(
            rental_id=RentalId(key),
            generation=1,
            image=self.goods.images[spec.image],
            hostname=spec.hostname,
            cpus=float(offer.cores),
            memory_mib=offer.memory_gb * _MIB_PER_GB,
            disk_mib=offer.disk_gb * _MIB_PER_GB,
            lease_expires_at=now + LEASE_S,
            ports=tuple(port.number for port in self.goods.ports),
            ssh_keys=spec.public_keys,
            host_key=self._vault.find(tx, key, secrets.HOST_KEY),
        )

    def _issue(
        self,
        tx: Tx,
        host_id: HostId,
        order: orders.Order,
        *,
        rental_id: str | None,
        within_s: int,
        sealed: bool = False,
    ) -> Issued:
        now = self._clock.now_s()
        command = orders.Command(
            command_id=new_command_id(self._entropy), expires_at=now + within_s, order=order
        )
        vault = self._vault if sealed else None
        return host_reports.issue(tx, command, host_id, now, rental_id=rental_id, sealed_by=vault)

    def _order(self, tx: Tx, key: ServerId, verb: Verb) -> tuple[str, HostId]:
        rental = rentals.find(tx, key)
        if rental is None or rental.gone_at is not None:
            raise Refused(RefusedCode.NOT_FOUND, "There is no such container any more.")
        if rental.desired is Desired.GONE or rentals.under_way(tx, rental.id):
            raise Refused(RefusedCode.CONFLICT, "Another order runs on this container.")
        now = self._clock.now_s()
        wanted = _orders(rental, verb, now)
        issued = [self._issue(tx, rental.host_id, order, rental_id=key, within_s=ORDER_S) for order in wanted]
        stops = isinstance(wanted[-1], orders.StopInstance)
        ordered = replace(rental, desired=Desired.STOPPED if stops else Desired.RUNNING)
        if rental.desired is Desired.STOPPED and not stops:
            # Until now nobody wanted it to run: its host keeps it from its tenant from now on at the earliest.
            ordered = replace(ordered, reported_at=now)
        rentals.save(tx, rental, ordered)
        hosts.raise_desired(tx, rental.host_id)
        return "+".join(command.id for command in issued), rental.host_id

    def _destroy(self, tx: Tx, key: ServerId) -> tuple[str, HostId | None]:
        rental = rentals.find(tx, key)
        if rental is None or rental.gone_at is not None:
            return _GONE + key, None
        told = None if rental.destroy_command is None else rentals.find_command(tx, rental.destroy_command)
        if told is not None and told.state is not CommandState.FAILED:
            return told.id, rental.host_id
        start = rentals.find_command(tx, rental.start_command)
        host = hosts.find(tx, rental.host_id)
        never_sent = start is not None and start.sent_at is None
        if never_sent or host is None or host.state is HostState.REVOKED:
            # Nobody was ever told to make it; or nobody is there any more who could be told.
            host_reports.gone(tx, rental, self._clock.now_s())
            return _GONE + key, rental.host_id
        order = orders.DestroyInstance(rental_id=rental.id, generation=rental.generation)
        issued = self._issue(tx, rental.host_id, order, rental_id=key, within_s=FOREVER_S)
        rentals.save(tx, rental, replace(rental, desired=Desired.GONE, destroy_command=issued.id))
        hosts.raise_desired(tx, rental.host_id)
        return issued.id, rental.host_id

    def _find(self, tx: Tx, key: ServerId) -> Instance | None:
        rental = rentals.find(tx, key)
        return None if rental is None or rental.gone_at is not None else self._instance(tx, rental)

    def _living(self, tx: Tx) -> list[Instance]:
        found: list[Instance] = []
        after = ""
        while page := tx.all(rentals.SELECT_LIVING, {"after": after, "limit": 500}):
            found.extend(self._instance(tx, rentals.rental_from(row)) for row in page)
            after = page[-1]["id"]
        return found

    def _instance(self, tx: Tx, rental: Rental) -> Instance:
        host = hosts.find(tx, rental.host_id)
        if host is None:
            raise RuntimeError(f"{rental.id} is on a host that there is not")
        resuming = any(c.kind == "resume_instance" for c in rentals.under_way(tx, rental.id))
        ipv4, ipv6 = _addresses(self.goods.relay.host)
        return Instance(
            ref=rental.id,
            key=ServerId(rental.id),
            owner=rental.owner,
            hostname=rental.hostname,
            created_at=rental.created_at,
            status=status_of(rental, host.state, resuming=resuming),
            provider_type=rental.type,
            image=rental.image,
            location=host.name,
            ipv4=ipv4,
            ipv6=ipv6,
            cores=rental.cores,
            memory_gb=rental.memory_gb,
            disk_gb=rental.disk_gb,
            type=TYPE,
            endpoints=rental.endpoints,
        )

    async def _write(self, fn: Callable[[Tx], T]) -> T:
        try:
            return await self._db.write(fn)
        except SpawnError as error:
            raise Unavailable(error.message, retry_after_s=error.retry_after_s or 1) from error

    async def _read(self, sql: str, params: dict[str, str]) -> list[Row]:
        try:
            return list(await self._db.read(sql, params))
        except SpawnError as error:
            raise Unavailable(error.message, retry_after_s=error.retry_after_s or 1) from error


def _addresses(host: str) -> tuple[str | None, str | None]:
    """The relay's address, where it is told by address and not by name."""
    try:
        address = ip_address(host)
    except ValueError:
        return None, None
    return (str(address), None) if address.version == 4 else (None, str(address))


def _catalog(goods: Goods, host: Host) -> Catalog:
    daily, lent = host.daily_usdc if goods.daily_usdc is None else goods.daily_usdc, _lent(host)
    offer = Offer(
        type=TYPE,
        location=host.name,
        provider_type=TYPE,
        # What has not said what it is takes no rentals.
        architecture="x86" if lent is None else lent.architecture,
        cores=goods.size.cores,
        memory_gb=goods.size.memory_gb,
        disk_gb=goods.size.disk_gb,
        daily_usdc=daily,
        deposit_usdc=daily,
        wholesale=Wholesale(currency=Currency.USD, daily_micro=share_usdc(daily, goods.share_percent)),
    )
    return Catalog(
        offers=(offer,),
        images=tuple(Image(name=name, description=reference) for name, reference in goods.images.items()),
        locations=(Location(name=host.name, city="a lent machine", country="XX"),),
    )


def _lent(host: Host) -> inventory.Inventory | None:
    """What it says that it lends; None before it has said so."""
    return None if host.inventory is None else msgspec.json.decode(host.inventory, type=inventory.Inventory)


def _refuse_full(tx: Tx, host: Host, offer: Offer) -> None:
    if not host.takes_rentals:
        raise Refused(
            RefusedCode.OUT_OF_CAPACITY, f"{host.name} takes no rentals at present: it is silent or draining."
        )
    lent = _lent(host)
    if lent is None:
        raise Refused(RefusedCode.OUT_OF_CAPACITY, f"{host.name} has not said what it lends.")
    there = rentals.of_host(tx, host.id)
    room = (
        sum(r.cores for r in there) + offer.cores <= lent.cpus
        and (sum(r.memory_gb for r in there) + offer.memory_gb) * _MIB_PER_GB <= lent.memory_mib
        and (sum(r.disk_gb for r in there) + offer.disk_gb) * _MIB_PER_GB <= lent.disk_mib
    )
    if not room:
        raise Refused(RefusedCode.OUT_OF_CAPACITY, f"{host.name} has no room for another {offer.type}.")


def _orders(rental: Rental, verb: Verb, now: int) -> tuple[orders.Order, ...]:
    stop = orders.StopInstance(
        rental_id=rental.id,
        generation=rental.generation,
        grace_s=0 if verb is Verb.POWEROFF else _STOP_GRACE_S,
    )
    if verb in {Verb.SHUTDOWN, Verb.POWEROFF}:
        return (stop,)
    resume = orders.ResumeInstance(
        rental_id=rental.id, generation=rental.generation, lease_expires_at=now + LEASE_S
    )
    return (stop, resume) if verb is Verb.REBOOT else (resume,)


def _outcome(tx: Tx, handle: str) -> OpState:
    if handle.startswith(_GONE):
        return OpState(handle=handle, status=OpStatus.SUCCESS)
    commands = [rentals.find_command(tx, part) for part in handle.split("+")]
    if any(command is None for command in commands):
        return _error(handle, RefusedCode.NOT_FOUND, "There is no such order.")
    known = [command for command in commands if command is not None]
    for command in known:
        if command.state is CommandState.FAILED:
            return _error(handle, _code_of(command), command.problem or "The host did not say why.")
    rest = [c for c in known if c.state not in {CommandState.SUCCEEDED, CommandState.WITHDRAWN}]
    return OpState(handle=handle, status=OpStatus.RUNNING if rest else OpStatus.SUCCESS)


def _code_of(command: Issued) -> RefusedCode:
    if command.problem_code in {"no_room", "draining", "outside_hours", "gpu_unavailable", "over_limits"}:
        return RefusedCode.OUT_OF_CAPACITY
    return RefusedCode.CONFLICT


def _error(handle: str, code: RefusedCode, message: str) -> OpState:
    return OpState(
        handle=handle, status=OpStatus.ERROR, error_code=code.value, error_message=message.rstrip(".")
    )
