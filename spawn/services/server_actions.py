"""Start, stop, power off, reboot, resize and rebuild: one operation each.

Invariant: one operation runs on a server at a time; a fee or an added deposit is held until the provider obeys.
"""

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec.structs import replace
from spawn_ledger.accrual import reserve_for_same_runway
from spawn_ledger.tx import Tx
from spawn_providers.catalog import Offer
from spawn_schemas import api
from spawn_schemas.errors import SpawnError
from spawn_schemas.ids import Address, ServerId, SshKeyId, new_action_id
from spawn_schemas.money import Usdc, format_usdc

from spawn.domain import operations as plans
from spawn.domain.operations import Operation, OperationStatus, Plan, new_operation
from spawn.domain.servers import (
    Command,
    Server,
    Status,
    check_allowed,
    check_funded,
    check_metered,
    check_resize,
)
from spawn.services import funds, standing, views
from spawn.services.calls import Acted, Completed, Context, UseCase
from spawn.services.changes import tell_ended
from spawn.services.create_server import Shop, find_image, find_offer
from spawn.services.ownership import get_idle
from spawn.services.purse import Purse
from spawn.store import operations, secrets, ssh_keys

_resized: Final = msgspec.json.Decoder(api.ServerResized)
PLANS: dict[Command, Callable[[], Plan]] = {
    Command.START: plans.start_plan,
    Command.STOP: plans.stop_plan,
    Command.POWEROFF: plans.poweroff_plan,
    Command.REBOOT: plans.reboot_plan,
}


class Power(UseCase):
    """`POST /v1/servers/{id}/start|stop|poweroff|reboot`. Starting what runs succeeds and does nothing."""

    def __init__(self, server_id: ServerId, command: Command, shop: Shop) -> None:
        self._server_id = server_id
        self._command = command
        self._shop = shop

    def check(self, tx: Tx, wallet: Address, purse: Purse, now: int) -> None:
        """Raises not_found, forbidden or conflict."""
        check_allowed(get_idle(tx, self._server_id, wallet, now), self._command)

    def act(self, tx: Tx, context: Context) -> Acted:
        server = get_idle(tx, self._server_id, context.wallet, context.now)
        check_allowed(server, self._command)
        operation = new_operation(
            new_action_id(self._shop.entropy), server, self._command, PLANS[self._command](), context.now
        )
        nothing_to_do = self._command is Command.START and server.status is Status.RUNNING
        if nothing_to_do:
            operation = replace(
                operation, status=OperationStatus.SUCCESS, answered=True, finished_at=context.now
            )
        operations.insert_operation(tx, operation)
        answer = views.encode(api.ActionStarted(action=views.action_summary(operation)))
        if nothing_to_do:
            tell_ended(tx, operation, context.now)
            funds.charge_fee(tx, context.wallet, context.fee_usdc, context.reference, context.now)
            return Acted(answer=answer)
        funds.hold_fee(tx, context.wallet, context.fee_usdc, operation.id, context.now)
        return Acted(answer=answer, operation=operation.id)

    def complete(self, tx: Tx, draft: bytes, operation: Operation) -> Completed:
        body = views.encode(api.ActionStarted(action=views.action_summary(operation)))
        return Completed(answer=body, stored=body)


class Resize(UseCase):
    """`POST /v1/servers/{id}/resize`: the deposit grows or shrinks so that the runway stays the same."""

    def __init__(self, server_id: ServerId, wanted: api.ResizeServer, shop: Shop) -> None:
        self._server_id = server_id
        self._wanted = wanted
        self._shop = shop

    def check(self, tx: Tx, wallet: Address, purse: Purse, now: int) -> None:
        """Raises not_found, forbidden, conflict or insufficient_deposit."""
        server = get_idle(tx, self._server_id, wallet, now)
        reserve = standing.of(tx, wallet, now).reserves_usdc.get(server.id, Usdc(0))
        offer = self._offer(tx, server)
        delta = self._delta(server, offer, reserve)
        purse.require(Usdc(max(0, delta)))
        purse.refuse_to_starve(self._shop.billing, delta, server.id, offer.daily_usdc)

    def _offer(self, tx: Tx, server: Server) -> Offer:
        return self._shop.prices.current(
            tx, find_offer(self._shop.catalog, self._wanted.type, server.location)
        )

    def _delta(self, server: Server, offer: Offer, reserve: Usdc) -> Usdc:
        check_allowed(server, Command.RESIZE)
        check_funded(server)
        check_metered(server)
        check_resize(server, offer)
        return Usdc(reserve_for_same_runway(reserve, server.daily_usdc, offer.daily_usdc) - reserve)

    def act(self, tx: Tx, context: Context) -> Acted:
        self._shop.billing.settle(tx, context.wallet, context.now)
        server = get_idle(tx, self._server_id, context.wallet, context.now)
        offer = self._offer(tx, server)
        delta = self._delta(server, offer, funds.reserve_usdc(tx, server.id))
        standing.refuse_to_starve(
            tx, context.standing, self._shop.billing, delta, server.id, offer.daily_usdc
        )
        plan = plans.resize_plan(
            server,
            offer,
            self._shop.pin(offer),
            upgrade_disk=self._wanted.upgrade_disk,
            reserve_delta_usdc=delta,
        )
        operation = new_operation(
            new_action_id(self._shop.entropy), server, Command.RESIZE, plan, context.now
        )
        operations.insert_operation(tx, operation)
        funds.hold_fee(tx, context.wallet, context.fee_usdc, operation.id, context.now)
        if delta > 0:
            funds.hold_deposit(tx, server, delta, operation.id, context.now)
        self._shop.billing.reschedule(tx, context.wallet, context.now)
        answer = api.ServerResized(
            action=views.action_summary(operation),
            new_type=offer.type,
            deposit_delta=format_usdc(Usdc(-delta)),
        )
        return Acted(answer=views.encode(answer), operation=operation.id)

    def complete(self, tx: Tx, draft: bytes, operation: Operation) -> Completed:
        resized = _resized.decode(draft)
        body = views.encode(replace(resized, action=views.action_summary(operation)))
        return Completed(answer=body, stored=body)


class Rebuild(UseCase):
    """`POST /v1/servers/{id}/rebuild`: a new system, with the server's keys that are left, or a root password."""

    def __init__(self, server_id: ServerId, wanted: api.RebuildServer, shop: Shop) -> None:
        try:
            find_image(shop.catalog, wanted.image)
        except SpawnError as refusal:
            self.refusal = refusal
        self._server_id = server_id
        self._wanted = wanted
        self._shop = shop

    def check(self, tx: Tx, wallet: Address, purse: Purse, now: int) -> None:
        """Raises not_found, forbidden or conflict."""
        self._allowed(tx, wallet, now)

    def _allowed(self, tx: Tx, wallet: Address, now: int) -> tuple[Server, tuple[str, ...]]:
        """The server, and those of its keys that its owner has not deleted since it was ordered."""
        server = get_idle(tx, self._server_id, wallet, now)
        check_allowed(server, Command.REBUILD)
        found = (ssh_keys.find_key(tx, SshKeyId(key_id)) for key_id in server.ssh_keys)
        keys = tuple(key.public_key for key in found if key is not None)
        self._shop.boots.refuse_rebuild(tx, server, keys)
        return server, keys

    def act(self, tx: Tx, context: Context) -> Acted:
        if self.refusal is not None:
            raise self.refusal
        server, keys = self._allowed(tx, context.wallet, context.now)
        plan = plans.rebuild_plan(self._wanted.image, keys)
        operation = new_operation(
            new_action_id(self._shop.entropy), server, Command.REBUILD, plan, context.now
        )
        operations.insert_operation(tx, operation)
        # A password nobody fetched is that of the system that goes.
        self._shop.vault.erase_one(tx, server.id, secrets.ROOT_PASSWORD)
        self._shop.boots.replant(tx, server.id, context.now)
        funds.hold_fee(tx, context.wallet, context.fee_usdc, operation.id, context.now)
        answer = api.ServerRebuilt(action=views.action_summary(operation), root_password=None)
        return Acted(answer=views.encode(answer), operation=operation.id)

    def complete(self, tx: Tx, draft: bytes, operation: Operation) -> Completed:
        answered = operation.accepted_at is not None
        password = self._shop.vault.take(tx, operation.server_id, secrets.ROOT_PASSWORD) if answered else None
        stored = api.ServerRebuilt(action=views.action_summary(operation), root_password=None)
        return Completed(
            answer=views.encode(replace(stored, root_password=password)), stored=views.encode(stored)
        )
