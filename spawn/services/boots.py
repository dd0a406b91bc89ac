"""What is planted into a machine so that it can be trusted and tells when it is ready, and what it tells.

Invariant: the order of a machine, made again after a crash, plants the same host key and the same callback; each is
sealed until the server ends. A report changes a server that lives, and no other, and is told its owner once.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import msgspec
from spawn_ledger.tx import Tx
from spawn_providers.base import Verb
from spawn_schemas import api
from spawn_schemas.boots import BootReport
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.events import EventType, ReadyData
from spawn_schemas.ids import Entropy, ServerId

from spawn.clock import Clock
from spawn.domain import user_data as given_data
from spawn.domain.boot import Boot, merged, size
from spawn.domain.host_keys import SEED_BYTES, HostKey, host_key
from spawn.domain.operations import Act, Create, Operation, Step
from spawn.domain.readiness import CloudInit, Readiness, began_anew, told_cloud_init, told_ssh
from spawn.domain.servers import FINAL, Server, Status
from spawn.services.events import emit
from spawn.store import boots, operations, secrets, servers
from spawn.store.database import Database
from spawn.store.secrets import Vault

PATH: Final = "/v1/boots/"
_TOKEN_BYTES: Final = 32
_KEPT_BYTES: Final = 1024
"""Room that stays free at an order for who may log in: a provider may have to add that at a rebuild."""
LOGIN_BYTES: Final = 576
"""What it adds beside the keys themselves: that they alone count, or a password."""
_QUOTES: Final = len('"", ')


class Boots:
    """Plants; `url` is where machines reach us, `room_bytes` how much user data the provider takes (0: none).

    `host_key`: the provider plants a host key without user data, and its machines report nothing.
    """

    def __init__(
        self, vault: Vault, entropy: Entropy, *, url: str, room_bytes: int, host_key: bool = False
    ) -> None:
        self._vault = vault
        self._entropy = entropy
        self._url = url.rstrip("/")
        self._room_bytes = room_bytes
        self._host_key = host_key

    def refuse(self, wanted: api.CreateServer) -> None:
        """Raise `invalid_request` for user data that the machine would not get, or not obey."""
        if self._room_bytes == 0:
            if wanted.user_data is None:
                return
            raise SpawnError(
                Code.INVALID_REQUEST,
                "The machines that are sold here take no user_data.",
                next="Leave it out.",
            )
        given_data.check(wanted.user_data, host_key=wanted.host_key)
        if wanted.user_data is None or self._left(wanted.user_data, wanted) >= 0:
            return
        own = len(wanted.user_data.encode())
        left = self._left("#", wanted) + 1
        raise SpawnError(
            Code.INVALID_REQUEST,
            f"user_data of {own} bytes does not fit: beside what we plant there is room for {left} bytes of ASCII with "
            "plain line ends, and for about three quarters of that of any other text.",
            details={"bytes": own, "bytes_left": left},
            next="Make it shorter, or let it fetch the rest.",
        )

    def refuse_rebuild(self, tx: Tx, server: Server, public_keys: Sequence[str]) -> None:
        """Raise `conflict` where its machine could not be told who may log in, `public_keys`, beside all the rest.

        The room was measured at the order, for what was planted then: keys that are fewer by now must be told.
        """
        readiness = boots.find(tx, server.id)
        if self._room_bytes == 0 or readiness is None:
            return
        given = self._vault.find(tx, server.id, secrets.USER_DATA)
        url = self._callback("0" * 2 * _TOKEN_BYTES)
        bytes_ = size(given, host_key=readiness.host_key is not None, callback_url=url)
        if len(public_keys) < len(server.ssh_keys):
            bytes_ += LOGIN_BYTES + sum(len(key) + _QUOTES for key in public_keys)
        if bytes_ <= self._room_bytes:
            return
        raise SpawnError(
            Code.CONFLICT,
            f"The user_data of this server, with what a rebuild plants beside it, is {bytes_} bytes long: its provider "
            f"takes {self._room_bytes}.",
            details={"bytes": bytes_, "bytes_max": self._room_bytes},
            next="Order a new server with shorter user_data, and destroy this one.",
        )

    def plant(self, tx: Tx, server: Server, wanted: api.CreateServer) -> None:
        """Seal what the order of this new server's machine will carry."""
        if wanted.user_data is not None:
            self._vault.put(tx, server.id, secrets.USER_DATA, wanted.user_data, server.created_at)
        if self._room_bytes == 0 and not self._host_key:
            return
        made = host_key(self._entropy.bytes(SEED_BYTES)) if wanted.host_key else None
        if made is not None:
            self._vault.put(tx, server.id, secrets.HOST_KEY, made.private, server.created_at)
        readiness = Readiness(
            server_id=server.id,
            host_key=None if made is None else made.public,
            token_hash=self._new_token(tx, server.id, server.created_at),
            since=server.created_at,
        )
        boots.insert(tx, readiness)

    def replant(self, tx: Tx, server_id: ServerId, now: int) -> None:
        """A rebuild is ordered: what runs until it begins goes on reporting as before."""
        readiness = boots.find(tx, server_id)
        if readiness is not None:
            next_hash = self._new_token(tx, server_id, now)
            boots.save(tx, readiness, msgspec.structs.replace(readiness, next_hash=next_hash))

    def user_data(self, tx: Tx, server_id: ServerId, step: Step) -> str | None:
        """What the machine of this step is told; None where it keeps what it has, or gets nothing."""
        rebuilds = isinstance(step, Act) and step.verb is Verb.REBUILD
        if self._room_bytes == 0 or not (rebuilds or isinstance(step, Create)):
            return None
        given = self._vault.find(tx, server_id, secrets.USER_DATA)
        readiness = boots.find(tx, server_id)
        token = self._vault.find(tx, server_id, secrets.CALLBACK)
        if readiness is None or token is None:
            return None if rebuilds else given
        private = self._vault.find(tx, server_id, secrets.HOST_KEY)
        public = readiness.host_key
        planted = None if private is None or public is None else HostKey(private=private, public=public)
        return merged(given, Boot(host_key=planted, callback_url=self._callback(token)))

    def _left(self, user_data: str, wanted: api.CreateServer) -> int:
        """How many bytes are left beside it; below 0, how many are missing."""
        url = self._callback("0" * 2 * _TOKEN_BYTES)
        taken = size(user_data, host_key=wanted.host_key, callback_url=url)
        return self._room_bytes - _KEPT_BYTES - taken

    def _callback(self, token: str) -> str:
        return f"{self._url}{PATH}{token}"

    def _new_token(self, tx: Tx, server_id: ServerId, now: int) -> str:
        """Seal a fresh token; answers what it is found by."""
        token = self._entropy.bytes(_TOKEN_BYTES).hex()
        self._vault.put(tx, server_id, secrets.CALLBACK, token, now)
        return hashed(token)


def hashed(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def began_rebuild(tx: Tx, operation: Operation) -> None:
    """The provider rebuilds the machine: what was told of the old one is history. Nothing where that is known."""
    readiness = boots.find(tx, operation.server_id)
    if readiness is not None and readiness.next_hash is not None:
        boots.save(tx, readiness, began_anew(readiness, operation.created_at))


def forget(tx: Tx, server_id: ServerId) -> None:
    """The server has ended: its secrets go, and nobody reports under its token any more."""
    boots.delete(tx, server_id)
    tx.execute(secrets.DELETE_ALL_SEALED, {"owner": server_id})


# --- what machines tell ---------------------------------------------------------------------------------------------


async def report(db: Database, clock: Clock, token: str, told: BootReport) -> None:
    """Write down what a machine tells of itself. Raises not_found or invalid_request."""
    token_hash = hashed(token)
    if not told.ssh and told.cloud_init is None:
        raise SpawnError(
            Code.INVALID_REQUEST,
            "The report says nothing.",
            next='Send {"ssh": true}, or {"cloud_init": "done"} or "failed" with its log.',
        )
    if not await db.read(boots.SELECT_BY_HASH, {"hash": token_hash}):
        raise _nothing_to_report()
    await db.write(lambda tx: _record(tx, token_hash, told, clock.now_s()))


def _record(tx: Tx, token_hash: str, told: BootReport, now: int) -> None:
    was = boots.find_by_hash(tx, token_hash)
    server = None if was is None else servers.find_server(tx, was.server_id)
    if was is None or server is None or server.status in FINAL | {Status.DESTROYING}:
        raise _nothing_to_report()
    begun = was
    if token_hash == was.next_hash:
        # Only the rebuilt machine knows this one: it was faster than the provider's answer.
        running = operations.find_running(tx, server.id)
        begun = began_anew(was, now if running is None else running.created_at)
    after: Readiness | None = told_ssh(begun, now) if told.ssh else begun
    if told.cloud_init is not None and after is not None:
        after = told_cloud_init(after, CloudInit(told.cloud_init), told.log, now)
    if after is None:
        raise _nothing_to_report()
    boots.save(tx, was, after)
    if after.cloud_init is not None and begun.cloud_init is None:
        _tell_ready(tx, server, after, after.cloud_init, now)


def _tell_ready(tx: Tx, server: Server, readiness: Readiness, ended: CloudInit, now: int) -> None:
    data = ReadyData(
        server=server.id,
        name=server.name,
        cloud_init=ended.value,
        seconds=max(0, now - readiness.since),
        ipv4=server.ipv4,
        ipv6=server.ipv6,
    )
    emit(tx, server.wallet, EventType.SERVER_READY, data, resource=server.id, at=now)


def _nothing_to_report() -> SpawnError:
    """The same whatever is the matter: who guesses learns nothing."""
    return SpawnError(
        Code.NOT_FOUND,
        "No machine has anything to report here: the address was never given out, or its machine has told all that it "
        "had to, or is gone.",
        next="A rebuild gives the machine a new address; GET /v1/servers/{id} shows what was told.",
    )
