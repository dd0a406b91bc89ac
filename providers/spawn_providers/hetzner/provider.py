"""Hetzner Cloud as a source of machines; see `spawn_providers.base` for what each call promises.

Invariant: nothing that decides is kept in the process. What it remembers only spares calls, so that another process, or
the same one after a crash, comes to the same machines.
"""

import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from msgspec.structs import replace
from spawn_schemas.ids import ServerId

from spawn_providers import cloud_init
from spawn_providers.base import (
    Capabilities,
    Change,
    Instance,
    InstanceStatus,
    Op,
    OpState,
    OpStatus,
    OutcomeUnknown,
    ProviderError,
    Refused,
    RefusedCode,
    Spec,
    Verb,
)
from spawn_providers.catalog import Catalog
from spawn_providers.hetzner import rebuilding
from spawn_providers.hetzner.addresses import Addresses
from spawn_providers.hetzner.budget import Priority
from spawn_providers.hetzner.calls import Calls
from spawn_providers.hetzner.errors import PROTECTED, Denied
from spawn_providers.hetzner.keys import Keys
from spawn_providers.hetzner.names import ID_LABEL, key_names, server_name, used_keys
from spawn_providers.hetzner.offers import sold
from spawn_providers.hetzner.orders import USER_DATA_BYTES_MAX, Orders, Surroundings
from spawn_providers.hetzner.poller import Poller
from spawn_providers.hetzner.shelf import Shelf
from spawn_providers.hetzner.states import States
from spawn_providers.hetzner.wire import (
    Action,
    Started,
    handle_from,
    instance_of,
    op_state,
    promised,
    status_of,
)

log = logging.getLogger(__name__)

_PATHS: Final[Mapping[Verb, str]] = {
    Verb.START: "poweron",
    Verb.SHUTDOWN: "shutdown",
    Verb.POWEROFF: "poweroff",
    Verb.REBOOT: "reboot",
    Verb.RESIZE: "change_type",
    Verb.REBUILD: "rebuild",
    Verb.RESET_PASSWORD: "reset_password",
}
_COMMANDS: Final[Mapping[Verb, str]] = {
    Verb.START: "start_server",
    Verb.SHUTDOWN: "shutdown_server",
    Verb.POWEROFF: "stop_server",
    Verb.REBOOT: "reboot_server",
    Verb.RESIZE: "change_server_type",
    Verb.REBUILD: "rebuild_server",
}
"""What Hetzner calls the actions that the verbs begin."""
_UP: Final = frozenset({InstanceStatus.STARTING, InstanceStatus.RUNNING})
_DOWN: Final = frozenset({InstanceStatus.OFF})
_ALREADY: Final[Mapping[Verb, frozenset[InstanceStatus]]] = {
    Verb.START: _UP,
    Verb.SHUTDOWN: _DOWN,
    Verb.POWEROFF: _DOWN,
}
"""The states in which a verb that is refused has nothing left to do."""


class HetznerProvider:
    """`Provider` over one project, which is whose token it is."""

    name: str = "hetzner"
    capabilities: Capabilities = Capabilities(
        verbs=frozenset(Verb), ipv6_only=True, user_data_bytes=USER_DATA_BYTES_MAX, root_password=True
    )

    def __init__(
        self,
        token: str,
        *,
        now_s: Callable[[], int],
        endpoint: str,
        surroundings: Surroundings | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        draw_password: Callable[[], str] = lambda: secrets.token_urlsafe(18),
    ) -> None:
        self._now_s = now_s
        self._surroundings = surroundings or Surroundings()
        self._draw_password = draw_password
        self._calls = Calls(token, endpoint, now=monotonic)
        self._states = States(self._calls, now=monotonic)
        self._poller = Poller(self._calls, now=monotonic)
        self._keys = Keys(self._calls, now=monotonic)
        self._addresses = Addresses(self._calls)
        self._shelf = Shelf(self._calls, now=monotonic)
        self._orders = Orders(
            self._calls,
            self._states,
            self._poller,
            self._shelf,
            self._keys,
            surroundings=self._surroundings,
            now_s=now_s,
        )

    async def aclose(self) -> None:
        """Wait for the calls under way and hang up. The machines live on."""
        await self._poller.aclose()
        await self._states.aclose()
        await self._calls.aclose()

    async def catalog(self) -> Catalog:
        return sold(await self._shelf.stock(), self._now_s(), self._surroundings.locations)

    async def create(self, key: ServerId, spec: Spec) -> Op:
        return await self._orders.create(key, spec)

    async def find(self, key: ServerId, *, to_destroy: bool = False) -> Instance | None:
        priority = Priority.DESTROY if to_destroy else Priority.CREATE
        found = await self._states.find(key, server_name(key), priority)
        return None if found is None else instance_of(found)

    async def get(self, ref: str) -> Instance | None:
        found = await self._states.get(ref)
        return None if found is None else instance_of(found)

    async def list_owned(self) -> AsyncIterator[Instance]:
        servers = await self._states.sweep()
        for server in servers:
            yield instance_of(server)
        try:
            await self._keys.tidy({name for server in servers for name in used_keys(server.labels)})
            await self._addresses.bind({server.id for server in servers})
        except ProviderError as error:
            log.warning("SSH keys and primary IPs at Hetzner are left as they are for now: %s", error)

    async def act(self, ref: str, verb: Verb, change: Change) -> Op:
        body, password = await self._arguments(ref, verb, change)
        path = f"/servers/{_number(ref)}/actions/{_PATHS[verb]}"
        with self._changing(ref):
            try:
                started = await self._calls.change("POST", path, Started, Priority.POWER, body)
            except Denied as refusal:
                return await self._already(ref, verb, refusal)
            except OutcomeUnknown:
                if verb is Verb.RESET_PASSWORD:  # what was lost is the password itself
                    raise
                action = await self._under_way(ref, _COMMANDS[verb])
                if action is None:
                    raise
                started = Started(action=action)
        self._poller.started((started.action,))
        if verb is Verb.RESET_PASSWORD or (verb is Verb.REBUILD and not change.public_keys):
            password = password or started.root_password
        return promised(ref, started.action, root_password=password)

    async def delete(self, ref: str) -> Op:
        if not _is_number(ref):
            return promised(ref)
        seen = self._states.last_seen(ref)
        op = await self._destroyed(ref)
        return op if seen is None else replace(op, last_seen=instance_of(seen))

    async def _destroyed(self, ref: str) -> Op:
        with self._changing(ref):
            try:
                return await self._delete(ref)
            except Denied as refusal:
                if refusal.code is RefusedCode.NOT_FOUND:
                    self._states.forget(ref)
                    return promised(ref)
                if refusal.reason == PROTECTED:
                    return await self._delete_protected(ref, refusal)
                server = await self._states.look(_number(ref), Priority.DESTROY)
                if server is None:
                    return promised(ref)
                under_way: Sequence[Action] = ()
                if status_of(server.status) is InstanceStatus.DELETING:
                    under_way = await self._poller.of_machine(ref, Priority.DESTROY, status="running")
                if not under_way:
                    raise
                return promised(ref, *under_way)

    async def poll(self, handles: Sequence[str]) -> list[OpState]:
        parsed = [handle for handle in map(handle_from, handles) if handle is not None]
        known = await self._poller.states(id_ for handle in parsed for id_ in handle.actions)
        states = [op_state(handle, known) for handle in handles]
        for handle, state in zip(handles, states, strict=True):
            op = handle_from(handle)
            if op is not None and state.status is not OpStatus.RUNNING:
                self._states.ended(op.server, op.actions)
        return states

    async def _arguments(
        self, ref: str, verb: Verb, change: Change
    ) -> tuple[dict[str, object] | None, str | None]:
        """The body of a verb's call, and the password that it sets."""
        if verb is Verb.RESIZE:
            if change.provider_type is None:
                raise Refused(RefusedCode.INVALID, "a resize names the new provider_type")
            return {"server_type": change.provider_type, "upgrade_disk": change.upgrade_disk}, None
        if verb is not Verb.REBUILD:
            return None, None
        if change.image is None:
            raise Refused(RefusedCode.INVALID, "a rebuild names the new image")
        server = await self._states.get(ref)
        if server is None:
            raise Refused(RefusedCode.NOT_FOUND, f"there is no server {ref}")
        stock = await self._shelf.stock()
        body: dict[str, object] = {"image": stock.image_id(change.image, server.server_type.architecture)}
        has = used_keys(server.labels)
        parts, password = [], None
        if key_names(change.public_keys) != has:
            parts.append(rebuilding.only_keys(change.public_keys))
        if has and not change.public_keys:
            password = self._draw_password()
            parts.append(rebuilding.with_password(password))
        told = cloud_init.joined(change.user_data, *parts)
        if told is not None:
            body["user_data"] = told
        return body, password

    async def _already(self, ref: str, verb: Verb, refusal: Denied) -> Op:
        """A refused verb whose aim is reached has succeeded; any other refusal stands."""
        if refusal.code is RefusedCode.NOT_FOUND:
            if await self._states.look(_number(ref), Priority.POWER) is None:
                raise refusal
            raise Refused(RefusedCode.INVALID, refusal.message) from refusal
        if verb is Verb.RESIZE and refusal.reason == "invalid_server_type":
            raise Refused(RefusedCode.CONFLICT, refusal.message) from refusal
        if verb in _ALREADY:
            server = await self._states.look(_number(ref), Priority.POWER)
            if server is not None and status_of(server.status) in _ALREADY[verb]:
                return promised(ref)
        raise refusal

    async def _under_way(self, ref: str, command: str) -> Action | None:
        """The action that a lost answer told of, if it still runs: its machine is locked, so it can be no other."""
        try:
            actions = await self._poller.of_machine(ref, Priority.POWER, status="running")
        except ProviderError as error:
            log.info(
                "what became of a lost %s of server %s is left to the next look: %s", command, ref, error
            )
            return None
        return next((action for action in actions if action.command == command), None)

    async def _delete(self, ref: str) -> Op:
        gone = await self._calls.change("DELETE", f"/servers/{_number(ref)}", Started, Priority.DESTROY)
        self._poller.started((gone.action,))
        return promised(ref, gone.action)

    async def _delete_protected(self, ref: str, refusal: Denied) -> Op:
        """Protection that somebody set on a machine of ours is ours to take away; a machine of others is not."""
        server = await self._states.look(_number(ref), Priority.DESTROY)
        if server is None:
            return promised(ref)
        if ID_LABEL not in server.labels:
            raise refusal
        path = f"/servers/{_number(ref)}/actions/change_protection"
        await self._calls.change("POST", path, Started, Priority.DESTROY, {"delete": False, "rebuild": False})
        return await self._delete(ref)

    @contextmanager
    def _changing(self, ref: str) -> Iterator[None]:
        """What was seen before or during a change is history, also if its answer was lost."""
        self._states.changing(ref)
        try:
            yield
        finally:
            self._states.changing(ref)


def _is_number(ref: str) -> bool:
    return ref.isascii() and ref.isdecimal()


def _number(ref: str) -> str:
    """A reference as it may stand in a path. Raises `Refused(not_found)` for one that Hetzner never gave."""
    if not _is_number(ref):
        raise Refused(RefusedCode.NOT_FOUND, f"there is no server {ref}")
    return ref
