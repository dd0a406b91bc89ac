"""How a lent machine becomes known, proves its calls, and changes its key.

Invariant: a registration token is good once, for a day, and only for the host that it was made for; the same key may
repeat it, since its answer may have been lost. From then on a signature by the host's own key proves a call, whose
nonce is taken in the books.
"""

from base64 import b64decode
from hashlib import sha256
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec.structs import replace
from spawn_ledger.tx import Tx
from spawn_schemas import hosts as wire
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import HostId

from spawn.clock import Clock
from spawn.domain.hosts import BEAT_IDLE_S, Host, HostState
from spawn.store import hosts
from spawn.store.database import Database

_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_NONCE_MAX: Final = 64
CALLS_MAX: Final = 240
"""Calls of one host within two minutes: a hundred times what it has to say."""


class SignedCall(msgspec.Struct, frozen=True, kw_only=True):
    """A plain call as a host signs it; `path` with its query, as it was sent."""

    method: str
    path: str
    body_sha256: str
    host_id: str
    timestamp: str
    nonce: str
    signature: str


def hashed(token: str) -> str:
    """What a registration token is found by."""
    return sha256(token.encode()).hexdigest()


def verifies(public_key: str, signature: str, text: bytes) -> bool:
    """Whether `signature` (base64) over `text` is by the raw Ed25519 key `public_key` (base64)."""
    try:
        key, proof = b64decode(public_key, validate=True), b64decode(signature, validate=True)
        if len(key) != _KEY_BYTES or len(proof) != _SIGNATURE_BYTES:
            return False
        Ed25519PublicKey.from_public_bytes(key).verify(proof, text)
    except (ValueError, InvalidSignature):
        return False
    return True


def unproven() -> SpawnError:
    """The same whatever is the matter: who guesses learns nothing."""
    return SpawnError(
        Code.INVALID_SIGNATURE,
        "This call is not signed by a registered host: its id is unknown or revoked, its signature is false, its clock "
        "is off by more than a minute, or its nonce was used.",
        next="Sign it anew with the host's key and the present time; `spawn-host check` looks at the clock, too.",
    )


class Hosts:
    """Registers and recognizes hosts; `link_url` is where they dial out to."""

    def __init__(self, db: Database, clock: Clock, *, link_url: str) -> None:
        self._db = db
        self._clock = clock
        self._link_url = link_url

    async def register(self, wanted: wire.RegisterHost) -> wire.HostRegistered:
        """Raises forbidden for a token that is not good, conflict for a key that is another host's."""
        if not verifies(
            wanted.public_key, wanted.proof, wire.registration_text(wanted.token, wanted.public_key)
        ):
            raise SpawnError(
                Code.INVALID_SIGNATURE,
                "The proof is not the public key's signature over this registration.",
                next="Sign `registration_text` of the token with the key that is registered.",
            )
        host = await self._db.write(lambda tx: _register(tx, wanted, self._clock.now_s()))
        return wire.HostRegistered(
            host_id=host.id,
            name=host.name,
            link_url=self._link_url,
            heartbeat_interval_s=BEAT_IDLE_S,
        )

    async def authenticate(self, call: SignedCall) -> Host:
        """Whose call this is; its nonce is used from now on. Raises invalid_signature or rate_limited."""
        now = self._clock.now_s()
        host = await self.claimed(call)
        if host.public_key is None or not verifies(host.public_key, call.signature, _text(call)):
            raise unproven()
        keep_s = 2 * wire.CLOCK_SKEW_S + 1
        fresh = await self._db.write(lambda tx: _takes(tx, host.id, call.nonce, now, keep_s))
        if not fresh:
            raise unproven()
        return host

    async def claimed(self, call: SignedCall) -> Host:
        """The host that this call says it is from, if everything but the signature is in order. Raises
        invalid_signature.
        """
        timestamp = int(call.timestamp) if call.timestamp.isascii() and call.timestamp.isdigit() else 0
        in_time = len(call.timestamp) <= 12 and abs(self._clock.now_s() - timestamp) <= wire.CLOCK_SKEW_S
        if not in_time or not 0 < len(call.nonce) <= _NONCE_MAX or len(call.host_id) > _NONCE_MAX:
            raise unproven()
        found = await self._db.read(hosts.SELECT_HOST, {"id": call.host_id})
        host = hosts.host_from(found[0]) if found else None
        if host is None or host.state is HostState.REVOKED:
            raise unproven()
        return host

    async def change_key(self, host: Host, wanted: wire.ChangeKey) -> None:
        """Raises invalid_signature, or conflict for a key that is another host's. The call is the old key's."""
        text = wire.registration_text(host.id, wanted.public_key)
        if not verifies(wanted.public_key, wanted.proof, text):
            raise SpawnError(
                Code.INVALID_SIGNATURE,
                "The proof is not the new key's signature.",
                next="Sign `registration_text` of the host's id with the new key, and the call with the old one.",
            )
        await self._db.write(lambda tx: _change_key(tx, host, wanted.public_key))


def _takes(tx: Tx, host_id: HostId, nonce: str, now: int, keep_s: int) -> bool:
    fresh = hosts.take_nonce(tx, host_id, nonce, at=now, keep_s=keep_s)
    if hosts.count_calls(tx, host_id) > CALLS_MAX:
        raise SpawnError(
            Code.RATE_LIMITED,
            f"This host makes more than {CALLS_MAX} calls in {keep_s} s.",
            retry_after_s=10,
            next="Call again when `next_s` of the last answer has passed; see what repeats its calls.",
        )
    return fresh


def _text(call: SignedCall) -> bytes:
    return wire.request_text(
        method=call.method,
        path=call.path,
        body_sha256=call.body_sha256,
        timestamp_s=int(call.timestamp),
        nonce=call.nonce,
        host_id=HostId(call.host_id),
    )


def _register(tx: Tx, wanted: wire.RegisterHost, now: int) -> Host:
    token = tx.one(hosts.SELECT_TOKEN, {"hash": hashed(wanted.token)})
    host = None if token is None else hosts.find(tx, token["host_id"])
    if token is None or host is None or host.state is HostState.REVOKED or token["expires_at"] <= now:
        raise _bad_token()
    if token["used_at"] is not None:
        if host.public_key == wanted.public_key:
            return host  # the answer was lost
        raise _bad_token()
    _refuse_taken(tx, host, wanted.public_key)
    tx.execute(hosts.USE_TOKEN, {"hash": hashed(wanted.token), "now": now})
    registered = replace(
        host,
        public_key=wanted.public_key,
        agent_version=wanted.agent_version,
        inventory=msgspec.json.encode(wanted.inventory).decode(),
        state=HostState.ONLINE if host.state is HostState.NEW else host.state,
        last_seen=now if host.last_seen is None else host.last_seen,
        registered_at=host.registered_at or now,
    )
    hosts.save(tx, host, registered)
    # Whoever holds the key of before has no session any more.
    hosts.raise_epoch(tx, host.id, host.epoch)
    return registered


def _change_key(tx: Tx, seen: Host, public_key: str) -> None:
    host = hosts.find(tx, seen.id)
    if host is None or host.public_key != seen.public_key or host.state is HostState.REVOKED:
        raise unproven()
    _refuse_taken(tx, host, public_key)
    hosts.save(tx, host, replace(host, public_key=public_key))


def _refuse_taken(tx: Tx, host: Host, public_key: str) -> None:
    if tx.one(hosts.SELECT_KEY_TAKEN, {"public_key": public_key, "id": host.id}) is not None:
        raise SpawnError(
            Code.CONFLICT,
            "This key is another host's.",
            next="Make a new key on this machine: two machines never share one.",
        )


def _bad_token() -> SpawnError:
    return SpawnError(
        Code.FORBIDDEN,
        "This registration token is not good: it was never given out, it was used, or it is older than a day.",
        next="Ask the operator for another: `spawn hosts token NAME`.",
    )
