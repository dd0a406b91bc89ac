"""Registering, listing and deleting SSH public keys. Servers made with a key keep it when it is deleted here."""

from spawn_ledger.tx import Tx
from spawn_schemas import api
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.events import EventType, SshKeyData
from spawn_schemas.ids import Address, Entropy, SshKeyId, new_ssh_key_id

from spawn.domain.ssh_keys import SshPublicKey, parse_public_key
from spawn.services import funds, views
from spawn.services.calls import Acted, Context, Read, UseCase
from spawn.services.events import emit
from spawn.services.ownership import owned_key
from spawn.services.purse import Purse
from spawn.store import ssh_keys

KEYS_MAX = 500
"""Keys one wallet may register; the list is never cut short."""


class RegisterSshKey(UseCase):
    """`POST /v1/ssh-keys`."""

    def __init__(self, wanted: api.RegisterSshKey, entropy: Entropy) -> None:
        self._wanted = wanted
        self._entropy = entropy
        self._key = _parse(wanted.public_key)

    def check(self, tx: Tx, wallet: Address, purse: Purse, now: int) -> None:
        """Raises conflict when the wallet has this key already."""
        params = {"wallet": wallet, "fingerprint": self._key.fingerprint}
        known = tx.one(ssh_keys.SELECT_BY_FINGERPRINT, params)
        if known is not None:
            raise _registered(known["id"])
        counted = tx.one(ssh_keys.COUNT_KEYS, {"wallet": wallet})
        _check_count(0 if counted is None else counted["n"])

    def act(self, tx: Tx, context: Context) -> Acted:
        counted = tx.one(ssh_keys.COUNT_KEYS, {"wallet": context.wallet})
        _check_count(0 if counted is None else counted["n"])
        key = ssh_keys.SshKey(
            id=new_ssh_key_id(self._entropy),
            wallet=context.wallet,
            name=self._wanted.name,
            public_key=self._key.normalized,
            fingerprint=self._key.fingerprint,
            created_at=context.now,
        )
        if not ssh_keys.insert_key(tx, key):
            params = {"wallet": context.wallet, "fingerprint": key.fingerprint}
            known = tx.one(ssh_keys.SELECT_BY_FINGERPRINT, params)
            raise _registered("" if known is None else known["id"])
        _tell(tx, EventType.SSH_KEY_ADDED, key, context.now)
        funds.charge_fee(tx, context.wallet, context.fee_usdc, context.reference, context.now)
        return Acted(answer=views.encode(api.SshKeyShown(ssh_key=views.ssh_key_view(key))))


class ListSshKeys(Read):
    """`GET /v1/ssh-keys`."""

    def act(self, tx: Tx, context: Context) -> Acted:
        rows = tx.all(ssh_keys.SELECT_KEYS, {"wallet": context.wallet, "limit": KEYS_MAX})
        keys = tuple(views.ssh_key_view(ssh_keys.key_from(row)) for row in rows)
        return Acted(answer=views.encode(api.SshKeyList(ssh_keys=keys)))


class DeleteSshKey(UseCase):
    """`DELETE /v1/ssh-keys/{id}`."""

    def __init__(self, key_id: SshKeyId) -> None:
        self._key_id = key_id

    def check(self, tx: Tx, wallet: Address, purse: Purse, now: int) -> None:
        """Raises not_found or forbidden."""
        owned_key(ssh_keys.find_key(tx, self._key_id), self._key_id, wallet)

    def act(self, tx: Tx, context: Context) -> Acted:
        key = owned_key(ssh_keys.find_key(tx, self._key_id), self._key_id, context.wallet)
        tx.execute(ssh_keys.DELETE_KEY, {"id": self._key_id, "wallet": context.wallet})
        _tell(tx, EventType.SSH_KEY_REMOVED, key, context.now)
        funds.charge_fee(tx, context.wallet, context.fee_usdc, context.reference, context.now)
        return Acted(answer=views.encode(api.Deleted(status="deleted")))


def _tell(tx: Tx, type: EventType, key: ssh_keys.SshKey, now: int) -> None:
    data = SshKeyData(ssh_key=key.id, name=key.name, fingerprint=key.fingerprint)
    emit(tx, key.wallet, type, data, resource=key.id, at=now)


def _parse(text: str) -> SshPublicKey:
    try:
        return parse_public_key(text)
    except ValueError as error:
        raise SpawnError(
            Code.INVALID_REQUEST, f"{error}", next="Send the one line of your .pub file."
        ) from error


def _registered(key_id: str) -> SpawnError:
    return SpawnError(
        Code.CONFLICT,
        f"This key is registered already, as {key_id}.",
        details={"ssh_key": key_id},
        next="Use that id in ssh_keys.",
    )


def _check_count(count: int) -> None:
    if count >= KEYS_MAX:
        raise SpawnError(
            Code.CONFLICT, f"A wallet has at most {KEYS_MAX} SSH keys.", next="Delete one you do not need."
        )
