"""Nobody touches what is not theirs: every lookup of a caller's thing goes through here.

Invariant: a thing of another wallet is refused before anything is read from a provider, written or paid.
"""

from typing import Final

from spawn_ledger.tx import Tx
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address, ServerId, WebhookId

from spawn.domain.operations import Operation
from spawn.domain.servers import Server
from spawn.store import operations, servers, ssh_keys, webhooks
from spawn.store.database import Database

_YOURS: Final = "Call with the wallet that owns it."

TOMBSTONE_S: Final = 30 * 86_400
"""How long a destroyed server still answers."""


def owned_key(key: ssh_keys.SshKey | None, key_id: str, wallet: Address) -> ssh_keys.SshKey:
    """Raise `not_found` or `forbidden` unless the wallet owns the key."""
    if key is None:
        raise SpawnError(
            Code.NOT_FOUND, f"There is no SSH key {key_id}.", next="POST /v1/ssh-keys registers one."
        )
    if key.wallet != wallet:
        raise SpawnError(Code.FORBIDDEN, f"SSH key {key_id} belongs to another wallet.", next=_YOURS)
    return key


def owned_webhook(tx: Tx, webhook_id: WebhookId, wallet: Address) -> webhooks.Webhook:
    """The wallet's webhook, inside a transaction. Raises not_found or forbidden."""
    webhook = webhooks.find_webhook(tx, webhook_id)
    if webhook is None:
        raise SpawnError(
            Code.NOT_FOUND, f"There is no webhook {webhook_id}.", next="GET /v1/webhooks lists yours."
        )
    if webhook.wallet != wallet:
        raise SpawnError(Code.FORBIDDEN, f"Webhook {webhook_id} belongs to another wallet.", next=_YOURS)
    return webhook


def owned_server(server: Server, wallet: Address) -> Server:
    """Raise `forbidden` unless the wallet owns the server."""
    if server.wallet != wallet:
        raise SpawnError(Code.FORBIDDEN, f"Server {server.id} belongs to another wallet.", next=_YOURS)
    return server


def _present(server: Server, now: int) -> Server:
    if server.ended_at is not None and now - server.ended_at > TOMBSTONE_S:
        raise servers.unknown_server(server.id)
    return server


async def read_owned(db: Database, server_id: ServerId, wallet: Address, now: int) -> Server:
    """The wallet's server, from outside a transaction. Raises not_found or forbidden."""
    found = await db.read(servers.SELECT_SERVER, {"id": server_id})
    if not found:
        raise servers.unknown_server(server_id)
    return owned_server(_present(servers.server_from(found[0]), now), wallet)


def get_owned(tx: Tx, server_id: ServerId, wallet: Address, now: int) -> Server:
    """The wallet's server, inside a transaction. Raises not_found or forbidden."""
    return owned_server(_present(servers.get_server(tx, server_id), now), wallet)


def get_idle(tx: Tx, server_id: ServerId, wallet: Address, now: int) -> Server:
    """The wallet's server with nothing running on it. Raises not_found, forbidden or conflict."""
    server = get_owned(tx, server_id, wallet, now)
    running = operations.find_running(tx, server.id)
    if running is not None:
        raise busy(running)
    return server


def busy(running: Operation) -> SpawnError:
    return SpawnError(
        Code.CONFLICT,
        f"{running.command} is still running on {running.server_id}.",
        details={"action": running.id},
        next=f"GET /v1/actions/{running.id}?wait=30",
    )
