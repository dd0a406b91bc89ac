"""Ordering a machine, so that one key makes one.

Invariant: a machine's name at Hetzner is made from its key, and Hetzner gives no name twice. So after an answer that
says nothing we look for the name, and an order that is made again finds it taken.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from weakref import WeakValueDictionary

import msgspec
from msgspec.structs import replace
from spawn_schemas.ids import ServerId

from spawn_providers.base import (
    InstanceStatus,
    Op,
    OutcomeUnknown,
    Refused,
    RefusedCode,
    Spec,
    Unavailable,
)
from spawn_providers.hetzner.budget import Priority
from spawn_providers.hetzner.calls import Calls
from spawn_providers.hetzner.errors import UNIQUENESS, Denied
from spawn_providers.hetzner.keys import Keys
from spawn_providers.hetzner.names import server_labels, server_name
from spawn_providers.hetzner.offers import Stock, sold
from spawn_providers.hetzner.poller import Poller
from spawn_providers.hetzner.shelf import Shelf
from spawn_providers.hetzner.states import States
from spawn_providers.hetzner.wire import (
    Action,
    Created,
    Server,
    Started,
    instance_of,
    promised,
    status_of,
)

USER_DATA_BYTES_MAX: Final = 32 * 1024
_FINISHING: Final = Priority.DESTROY
"""What an order has begun is looked up at once: it would be made again, and again, with the last calls there are."""
_ROOM: Final = frozenset({RefusedCode.OUT_OF_CAPACITY, RefusedCode.QUOTA})
_TOLD_MAX: Final = 10_000
"""How many root passwords are kept in memory, for a caller who was told and could not write it down."""


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator wants every machine to be in. `locations` are the only ones sold; none named: all.

    The extra keys go to machines that are ordered with keys: Hetzner draws no password for a machine that has any.
    """

    locations: tuple[str, ...] = ()
    network_id: int | None = None
    firewall_id: int | None = None
    ssh_key_names: tuple[str, ...] = ()


class Orders:
    """Used on the event loop only."""

    def __init__(
        self,
        calls: Calls,
        states: States,
        poller: Poller,
        shelf: Shelf,
        keys: Keys,
        *,
        surroundings: Surroundings,
        now_s: Callable[[], int],
    ) -> None:
        self._calls = calls
        self._states = states
        self._poller = poller
        self._shelf = shelf
        self._keys = keys
        self._surroundings = surroundings
        self._now_s = now_s
        self._creating: WeakValueDictionary[ServerId, asyncio.Lock] = WeakValueDictionary()
        self._told: dict[ServerId, str] = {}

    async def create(self, key: ServerId, spec: Spec) -> Op:
        """Order the machine, or give the op of the one that is there. Raises `ProviderError`."""
        name, labels = server_name(key), server_labels(key, spec)
        async with self._creating.setdefault(key, asyncio.Lock()):
            try:
                made = await self._order(name, labels, spec)
            except Denied as refusal:
                if refusal.reason == UNIQUENESS:
                    return await self._adopt(key, name, spec)
                if refusal.code is RefusedCode.CONFLICT:  # with whom, if it does not exist yet?
                    raise Unavailable(refusal.message, retry_after_s=2) from refusal
                if refusal.code in _ROOM and await self._is_there(key, name):
                    return await self._adopt(key, name, spec)
                raise
            except OutcomeUnknown:
                return await self._adopt(key, name, spec)
            self._states.saw(made.server)
            return self._first_told(key, spec, made)

    async def _is_there(self, key: ServerId, name: str) -> bool:
        """Whether there is no room because this very machine has it: nobody says which refusal comes first."""
        try:
            return await self._states.find(key, name, _FINISHING) is not None
        except Unavailable as error:
            raise OutcomeUnknown(f"{name} may be there, and cannot be looked for: {error.message}") from error

    async def _adopt(self, key: ServerId, name: str, spec: Spec) -> Op:
        """The op of a machine that may be there. From here on nothing may be called unchanged that was not seen."""
        try:
            server = await self._states.find(key, name, _FINISHING)
            if server is None:
                raise OutcomeUnknown(f"{name} was ordered, and Hetzner does not show it yet")
            op = await self._adopted(key, spec, server)
            return replace(op, last_seen=instance_of(server))
        except Unavailable as error:
            raise OutcomeUnknown(f"{name} was ordered, and cannot be looked for: {error.message}") from error

    async def _order(self, name: str, labels: dict[str, str], spec: Spec) -> Created:
        """Order it; once more with keys looked up afresh, if those we remembered are gone."""
        body = await self._body(name, labels, spec)
        ids = await self._keys.ids_of(spec.public_keys)
        try:
            return await self._post(body, ids)
        except Denied as refusal:
            if not ids or refusal.code not in {RefusedCode.INVALID, RefusedCode.NOT_FOUND}:
                raise
            fresh = await self._keys.ids_of(spec.public_keys, remembered=False)
            if fresh == ids:
                raise
        return await self._post(body, fresh)

    async def _body(self, name: str, labels: dict[str, str], spec: Spec) -> dict[str, object]:
        if spec.user_data is not None and len(spec.user_data.encode()) > USER_DATA_BYTES_MAX:
            raise Refused(RefusedCode.INVALID, "user_data is larger than 32 KiB")
        stock, around = await self._shelf.stock(), self._surroundings
        self._require_sold(stock, spec)
        body: dict[str, object] = {
            "name": name,
            "labels": labels,
            "server_type": spec.provider_type,
            "image": stock.image_id(spec.image, stock.architecture_of(spec.provider_type)),
            "location": spec.location,
            "public_net": {"enable_ipv4": not spec.ipv6_only, "enable_ipv6": True},
        }
        if spec.user_data is not None:
            body["user_data"] = spec.user_data
        if around.network_id is not None:
            body["networks"] = [around.network_id]
        if around.firewall_id is not None:
            body["firewalls"] = [{"firewall": around.firewall_id}]
        return body

    def _require_sold(self, stock: Stock, spec: Spec) -> None:
        """Raises `Refused`: for want of room where it was sold once, or will be, and otherwise as invalid."""
        offers = sold(stock, self._now_s(), self._surroundings.locations).offers
        if any((o.provider_type, o.location) == (spec.provider_type, spec.location) for o in offers):
            return
        exists = spec.location in {place.name for place in stock.locations}
        known = exists and spec.provider_type in {type_.name for type_ in stock.types}
        raise Refused(
            RefusedCode.OUT_OF_CAPACITY if known else RefusedCode.INVALID,
            f"{spec.provider_type} is not sold in {spec.location}",
        )

    async def _post(self, body: Mapping[str, object], key_ids: Sequence[int]) -> Created:
        keys = [*key_ids, *self._surroundings.ssh_key_names] if key_ids else []
        return await self._calls.change(
            "POST", "/servers", Created, Priority.CREATE, {**body, "ssh_keys": keys}
        )

    def _first_told(self, key: ServerId, spec: Spec, made: Created) -> Op:
        password = None if spec.public_keys else made.root_password
        if password is not None:
            self._remember_told(key, password)
        begun = _beginning((made.action, *made.next_actions))
        self._poller.started(begun)
        return promised(str(made.server.id), *begun, root_password=password)

    async def _adopted(self, key: ServerId, spec: Spec, server: Server) -> Op:
        """The op of a machine that is there. A root password that this process does not know must be a new one.

        Who asks again has none that counts: whoever was told has written it down, or died.
        """
        ref = str(server.id)
        begun = _beginning(await self._poller.of_machine(ref, _FINISHING))
        if spec.public_keys or key in self._told:
            return promised(ref, *begun, root_password=None if spec.public_keys else self._told[key])
        if status_of(server.status) is not InstanceStatus.RUNNING:
            raise OutcomeUnknown(
                "The machine is there; its root password was lost and is reset once it runs."
            )
        try:
            reset = await self._calls.change(
                "POST", f"/servers/{ref}/actions/reset_password", Started, _FINISHING
            )
        except (Refused, Unavailable) as error:
            raise OutcomeUnknown(f"The lost root password is not reset yet: {error}") from error
        if reset.root_password is not None:
            self._remember_told(key, reset.root_password)
        self._poller.started((reset.action,))
        return promised(ref, *begun, reset.action, root_password=reset.root_password)

    def _remember_told(self, key: ServerId, password: str) -> None:
        self._told[key] = password
        if len(self._told) > _TOLD_MAX:
            del self._told[next(iter(self._told))]


def _beginning(actions: Sequence[Action]) -> tuple[Action, ...]:
    """Of a machine's actions in their order, those that it begins with: it is locked until it was started too."""
    firsts = (
        next((a for a in actions if a.command == command), None)
        for command in ("create_server", "start_server")
    )
    return tuple(action for action in firsts if action is not None)
