"""Renting a server: checks, holds the money, writes the row, orders the machine.

Invariant: the deposit and the fee are only held here; they are taken when the provider accepts, and given back
when it refuses.
"""

from typing import Final

import msgspec
from msgspec.structs import asdict, replace
from spawn_ledger.tx import Tx
from spawn_providers.base import Spec
from spawn_providers.catalog import Catalog, Offer
from spawn_schemas import api
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.events import EventType
from spawn_schemas.ids import Address, Entropy, HostId, SshKeyId, new_action_id, new_server_id
from spawn_schemas.money import Usdc, format_usdc

from spawn.domain import charges
from spawn.domain.operations import Instead, Operation, create_plan, new_operation
from spawn.domain.pins import Pin, pin_of
from spawn.domain.servers import Command, Server, Status
from spawn.services import funds, standing, views
from spawn.services.billing import Billing
from spawn.services.boots import Boots
from spawn.services.calls import Acted, Completed, Context, UseCase
from spawn.services.changes import tell
from spawn.services.ownership import owned_key
from spawn.services.price_list import PriceList
from spawn.services.purse import Purse
from spawn.services.rentals import Goods
from spawn.store import hosts, operations, secrets, servers, ssh_keys
from spawn.store.secrets import Vault

SERVERS_MAX = 100
"""Servers one wallet may have at once; bounds what a single settlement touches."""


_created: Final = msgspec.json.Decoder(api.ServerCreated)
_CATALOG: Final = "GET /v1/catalog lists every type, image and location."
_FUND = (
    "Put what is missing into the body as fund and pay by x402, choose a smaller deposit, "
    "or POST /v1/balance/deposit."
)


class Shop(msgspec.Struct, frozen=True, kw_only=True):
    """What selling needs to know: the goods, who delivers them, and where ids come from.

    `root_password`: who names no key gets one. `goods` are those of lent machines, where that is what is sold.
    """

    prices: PriceList
    provider: str
    entropy: Entropy
    vault: Vault
    billing: Billing
    boots: Boots
    root_password: bool = True
    goods: Goods | None = None

    @property
    def catalog(self) -> Catalog:
        """What is for sale at this moment."""
        return self.prices.catalog

    def pin(self, offer: Offer) -> Pin:
        """What the offer costs from now on, its owner and us."""
        return pin_of(offer, eur_usdc=self.prices.eur_usdc)


class CreateServer(UseCase):
    """`POST /v1/servers`."""

    def __init__(self, shop: Shop, wanted: api.CreateServer) -> None:
        self._shop = shop
        self._wanted = wanted
        try:
            self._offer = find_offer(shop.catalog, wanted.type, wanted.location)
            self._instead = offers_instead(shop.catalog, wanted, self._offer)
            find_image(shop.catalog, wanted.image)
            shop.boots.refuse(wanted)
            _refuse_keyless(shop, wanted)
            self._deposit = self._deposit_usdc()
        except SpawnError as refusal:
            self.refusal = refusal

    def _deposit_usdc(self) -> Usdc:
        dearest = max((self._offer, *self._instead), key=lambda offer: offer.daily_usdc)
        if self._wanted.deposit is None:
            return max(self._offer.deposit_usdc, dearest.daily_usdc)
        deposit = charges.amount(self._wanted.deposit)
        if deposit < dearest.daily_usdc:
            raise SpawnError(
                Code.INVALID_REQUEST,
                f"A deposit covers at least one day: {format_usdc(dearest.daily_usdc)} USDC for a "
                f"{dearest.type} in {dearest.location}.",
                details={"minimum_deposit": format_usdc(dearest.daily_usdc)},
                next="Choose a larger deposit, or leave it out for the usual one.",
            )
        return deposit

    def check(self, tx: Tx, wallet: Address, purse: Purse, now: int) -> None:
        """Raises conflict, not_found, forbidden or insufficient_deposit."""
        self._check_name_and_count(tx, wallet)
        self._owned_keys(tx, wallet)
        purse.require(self._deposit, next=_FUND)
        purse.refuse_to_starve(self._shop.billing, self._deposit)

    def act(self, tx: Tx, context: Context) -> Acted:
        if self.refusal is not None:
            raise self.refusal
        wallet, now = context.wallet, context.now
        self._check_name_and_count(tx, wallet)
        keys = self._owned_keys(tx, wallet)
        standing.refuse_to_starve(tx, context.standing, self._shop.billing, self._deposit)
        server = self._new_server(tx, wallet, now)
        servers.insert_server(tx, server)
        tell(tx, EventType.SERVER_CREATED, server, now)
        operation = new_operation(
            new_action_id(self._shop.entropy),
            server,
            Command.CREATE,
            create_plan(
                self._spec(server, tuple(k.public_key for k in keys)),
                tuple(self._place(tx, offer) for offer in self._instead),
                sold_too(self._shop.catalog, self._offer, self._instead),
            ),
            now,
        )
        operations.insert_operation(tx, operation)
        funds.hold_fee(tx, wallet, context.fee_usdc, operation.id, now)
        funds.hold_deposit(tx, server, self._deposit, operation.id, now)
        self._shop.boots.plant(tx, server, self._wanted)
        return Acted(answer=self._answer(tx, server, operation, now), operation=operation.id)

    def _check_name_and_count(self, tx: Tx, wallet: Address) -> None:
        if tx.one(servers.SELECT_NAME_TAKEN, {"wallet": wallet, "name": self._wanted.name}) is not None:
            raise name_taken(self._wanted.name)
        count = tx.one(servers.COUNT_LIVE, {"wallet": wallet})
        _check_count(0 if count is None else count["n"])

    def _owned_keys(self, tx: Tx, wallet: Address) -> list[ssh_keys.SshKey]:
        return [owned_key(ssh_keys.find_key(tx, SshKeyId(k)), k, wallet) for k in self._wanted.ssh_keys]

    def complete(self, tx: Tx, draft: bytes, operation: Operation) -> Completed:
        """The answer with what the provider said since, and the root password for this one time."""
        created = _created.decode(draft)
        server = servers.get_server(tx, operation.server_id)
        stored = replace(
            created,
            server=views.server_summary(server),
            action=views.action_summary(operation),
        )
        password = self._shop.vault.take(tx, server.id, secrets.ROOT_PASSWORD)
        return Completed(
            answer=views.encode(replace(stored, root_password=password)), stored=views.encode(stored)
        )

    def _answer(self, tx: Tx, server: Server, operation: Operation, now: int) -> bytes:
        return views.encode(
            api.ServerCreated(
                server=views.server_summary(server),
                action=views.action_summary(operation),
                deposit_charged=format_usdc(self._deposit),
                deposit_remaining=format_usdc(standing.of(tx, server.wallet, now).available_usdc),
                root_password=None,
            )
        )

    def _spec(self, server: Server, public_keys: tuple[str, ...]) -> Spec:
        return Spec(
            hostname=server.name,
            provider_type=server.provider_type,
            image=server.image,
            location=server.location,
            owner=server.wallet,
            public_keys=public_keys,
            ipv6_only=server.network == "ipv6",
        )

    def _cheapest(self, tx: Tx, quoted: Offer) -> Offer:
        """As it was quoted, or cheaper: paying may take a while, and who has an old price is told of no fall."""
        current = self._shop.prices.current(tx, quoted)
        return min(quoted, current, key=lambda offer: offer.daily_usdc)

    def _place(self, tx: Tx, quoted: Offer) -> Instead:
        offer = self._cheapest(tx, quoted)
        return Instead(
            type=offer.type,
            location=offer.location,
            provider_type=offer.provider_type,
            architecture=offer.architecture,
            cores=offer.cores,
            memory_gb=offer.memory_gb,
            disk_gb=offer.disk_gb,
            pin=self._shop.pin(offer),
        )

    def _new_server(self, tx: Tx, wallet: Address, now: int) -> Server:
        wanted, offer = self._wanted, self._cheapest(tx, self._offer)
        pin = self._shop.pin(offer)
        return Server(
            id=new_server_id(self._shop.entropy),
            wallet=wallet,
            name=wanted.name,
            type=offer.type,
            image=wanted.image,
            location=offer.location,
            network=wanted.network,
            ssh_keys=wanted.ssh_keys,
            provider=self._shop.provider,
            provider_type=offer.provider_type,
            provider_ref=None,
            architecture=offer.architecture,
            cores=offer.cores,
            memory_gb=offer.memory_gb,
            disk_gb=offer.disk_gb,
            status=Status.INITIALIZING,
            auto_renew=wanted.auto_renew,
            created_at=now,
            priced_at=now,
            host_id=self._host_id(tx, offer),
            **asdict(pin),
        )

    def _host_id(self, tx: Tx, offer: Offer) -> HostId | None:
        """Whose lent machine it will be on; raises out_of_capacity where that is not there any more."""
        if self._shop.goods is None:
            return None
        host = hosts.find_named(tx, offer.location)
        if host is None:
            raise SpawnError(
                Code.OUT_OF_CAPACITY, f"{offer.location} is not there.", next=_CATALOG, retry_after_s=600
            )
        return host.id


def _refuse_keyless(shop: Shop, wanted: api.CreateServer) -> None:
    """Raise `invalid_request` for a machine that nobody could log into."""
    if not shop.root_password and not wanted.ssh_keys:
        raise SpawnError(
            Code.INVALID_REQUEST,
            "The machines that are sold here have no root password: nobody could log in without a key.",
            next="POST /v1/ssh-keys, and name the key's id in ssh_keys.",
        )


def find_offer(catalog: Catalog, type_: str, location: str) -> Offer:
    """Raise `invalid_request` naming what is sold when this is not."""
    offer = catalog.find(type_, location)
    if offer is not None:
        return offer
    sold = catalog.sold_in(location)
    if not sold:
        names = [known.name for known in catalog.locations]
        raise SpawnError(
            Code.INVALID_REQUEST,
            f"There is no location {location}.",
            details={"locations": names},
            next=_CATALOG,
        )
    raise SpawnError(
        Code.INVALID_REQUEST,
        f"{type_} is not sold in {location}.",
        details={"sold_there": list(sold)},
        next=_CATALOG,
    )


def offers_instead(catalog: Catalog, wanted: api.CreateServer, first: Offer) -> tuple[Offer, ...]:
    """What the buyer takes where there is no room, in his order; raise `invalid_request` for what is not sold."""
    found = [first]
    for place in wanted.fallback:
        offer = find_offer(catalog, place.type or wanted.type, place.location or wanted.location)
        if offer not in found:
            found.append(offer)
    return tuple(found[1:])


def sold_too(catalog: Catalog, wanted: Offer, instead: tuple[Offer, ...]) -> str:
    """What else there is, as far as its provider says that there is room, for whoever is told that there is none."""
    asked = (wanted, *instead)
    others = [offer for offer in catalog.offers if offer.available and offer not in asked]
    places = [offer.location for offer in others if offer.type == wanted.type]
    types = [offer.type for offer in others if offer.location == wanted.location]
    parts = (
        f"{wanted.type} in {', '.join(places)}" if places else "",
        f"{', '.join(types)} in {wanted.location}" if types else "",
    )
    other = "; ".join(filter(None, parts))
    return f"Sold too: {other}." if other else ""


def find_image(catalog: Catalog, name: str) -> None:
    """Raise `invalid_request` for an image that is not offered."""
    names = [image.name for image in catalog.images]
    if name not in names:
        raise SpawnError(
            Code.INVALID_REQUEST, f"There is no image {name}.", details={"images": names}, next=_CATALOG
        )


def name_taken(name: str) -> SpawnError:
    return SpawnError(
        Code.CONFLICT,
        f"You already have a server named {name}.",
        next="Choose another name, or destroy that server first.",
    )


def _check_count(count: int) -> None:
    if count >= SERVERS_MAX:
        raise SpawnError(
            Code.CONFLICT,
            f"A wallet has at most {SERVERS_MAX} servers at once.",
            next="Destroy one you do not need.",
        )
