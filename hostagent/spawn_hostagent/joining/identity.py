"""Who this machine is to the service: the id it was given, and the Ed25519 key that was made here and stays here.

Invariant: at every instant the files name a key that is kept, and that the service accepts: a new key is kept and
named as pending before the service hears of it, and the old one is dropped only after the service took the new one.
"""

import os
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from spawn_schemas.hosts import (
    HOST_HEADER,
    NONCE_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    ChangeKey,
    HostRegistered,
    registration_text,
    request_text,
)
from spawn_schemas.ids import HostId

from spawn_hostagent.failures import Failure
from spawn_hostagent.files import make_private_folder, read_private, write_private
from spawn_hostagent.joining.keystore import (
    CREDENTIALS_VARIABLE,
    CredentialStore,
    FileStore,
    KeyringStore,
    KeyStore,
    real_keyrings,
)

FILE_NAME: Final = "identity.json"
KEYS_FOLDER: Final = "keys"
VERSION: Final = 1

Keyrings = Callable[[], Iterable[Any]]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The identity's file: all but the key itself. `pending` is a key that the service may already know."""

    host_id: HostId
    name: str
    service: str
    link_url: str
    heartbeat_interval_s: int
    public_key: str
    kept_in: str
    pending: str | None = None
    version: int = VERSION


class NewKey:
    """A key that no service knows yet."""

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        self.public_key = public_key_of(seed)

    def proof(self, secret: str) -> str:
        """What shows that somebody has it: the signature that `registration_text` asks for, in base64."""
        return _signed(self.seed, registration_text(secret, self.public_key))


class Identity:
    """This host, registered. Signs what it says to the service."""

    def __init__(self, folder: Path, record: Record, store: KeyStore) -> None:
        self._folder = folder
        self._record = record
        self._store = store
        self._public_key = record.public_key
        self._private = self._key(record.public_key)

    @property
    def host_id(self) -> HostId:
        return self._record.host_id

    @property
    def name(self) -> str:
        return self._record.name

    @property
    def service(self) -> str:
        """The address of the service, without a slash at its end."""
        return self._record.service

    @property
    def link_url(self) -> str:
        return self._record.link_url

    @property
    def heartbeat_interval_s(self) -> int:
        return self._record.heartbeat_interval_s

    @property
    def public_key(self) -> str:
        """What signs now: raw Ed25519, in base64."""
        return self._public_key

    @property
    def pending(self) -> str | None:
        """The key of a rotation that a crash cut short."""
        return self._record.pending

    @property
    def kept_in(self) -> str:
        """Where the private key is, for a person."""
        return self._store.says

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of an Ed25519 signature."""
        return self._private.sign(message)

    def headers(self, method: str, path: str, body: bytes, *, now_s: int, nonce: str) -> dict[str, str]:
        """What proves a plain call. `now_s` by the service's clock, within a minute; `nonce` never used before."""
        text = request_text(
            method=method,
            path=path,
            body_sha256=sha256(body).hexdigest(),
            timestamp_s=now_s,
            nonce=nonce,
            host_id=self.host_id,
        )
        return {
            HOST_HEADER: self.host_id,
            TIMESTAMP_HEADER: str(now_s),
            NONCE_HEADER: nonce,
            SIGNATURE_HEADER: b64encode(self.sign(text)).decode(),
        }

    async def rotate(self) -> None:
        """Make a new key and have the service accept it. Raises Failure; then either key may be the right one, and
        the next `rotate` or `switch` finds out."""
        from spawn_hostagent.joining.service import rotate  # noqa: PLC0415 - it needs an HTTP client, and is called by nobody else

        await rotate(self)

    def begin_rotation(self) -> ChangeKey:
        """Keep a new key and say so in the file; what to ask of the service. One that is pending is asked for again."""
        pending = self._record.pending
        if pending is None:
            key = NewKey(os.urandom(32))
            self._store.put(key.public_key, key.seed)
            self._write(pending=key.public_key)
        else:
            key = NewKey(self._seed(pending))
        return ChangeKey(public_key=key.public_key, proof=key.proof(self.host_id))

    def switch(self) -> bool:
        """The service refused this key: sign with the other one of a rotation that broke off. False if there is none.

        Nothing is written: `finish_rotation` with `public_key`, once the service believed it, is what decides.
        """
        if self._record.pending is None:
            return False
        other = {self._record.public_key: self._record.pending}.get(self._public_key, self._record.public_key)
        self._private, self._public_key = self._key(other), other
        return True

    def finish_rotation(self, accepted: str) -> None:
        """The service knows this key and no other: go on with it and drop the other."""
        others = {self._record.public_key, self._record.pending} - {accepted, None}
        self._private, self._public_key = self._key(accepted), accepted
        self._write(public_key=accepted, pending=None)
        for other in others:
            if other is not None:
                self._store.drop(other)

    def forget(self) -> None:
        """Drop every key of this host, and the file that names it: it can never sign again. Raises Failure."""
        for key in (self._record.public_key, self._record.pending):
            if key is not None:
                self._store.drop(key)
        (self._folder / FILE_NAME).unlink(missing_ok=True)

    def _write(self, **changes: str | None) -> None:
        record = msgspec.structs.replace(self._record, **changes)
        write_record(self._folder, record)
        self._record = record

    def _seed(self, public_key: str) -> bytes:
        seed = self._store.get(public_key)
        if seed is None or public_key_of(seed) != public_key:
            raise Failure(
                f"the key of this host is not in {self._store.says}: restore it from a backup, or register this "
                "machine again with `spawn-host setup --force`."
            )
        return seed

    def _key(self, public_key: str) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self._seed(public_key))


def load(folder: Path, environment: Mapping[str, str], keyrings: Keyrings = real_keyrings) -> Identity:
    """The identity in this folder. Raises Failure."""
    record = find_record(folder)
    if record is None:
        raise Failure(
            f"this machine is not registered ({folder / FILE_NAME} is missing): run `spawn-host setup`."
        )
    return Identity(folder, record, _store_of(record.kept_in, folder, environment, keyrings))


def find_record(folder: Path) -> Record | None:
    """What the identity's file says, None where there is none. Raises Failure."""
    text = read_private(folder / FILE_NAME)
    if text is None:
        return None
    try:
        record = msgspec.json.decode(text, type=Record)
    except msgspec.DecodeError as error:
        raise Failure(
            f"{folder / FILE_NAME} is damaged ({error}): restore it from a backup, or register this machine again with "
            "`spawn-host setup --force`."
        ) from error
    if record.version != VERSION:
        raise Failure(
            f"{folder / FILE_NAME} is of version {record.version}: install the spawn-host that wrote it."
        )
    return record


def new_key(environment: Mapping[str, str]) -> NewKey:
    """A fresh key, or the one that systemd hands to this unit."""
    credential = _credential(environment)
    seed = None if credential is None else credential.seed()
    return NewKey(os.urandom(32) if seed is None else seed)


def store_for_new(
    folder: Path, environment: Mapping[str, str], keyrings: Keyrings = real_keyrings
) -> KeyStore:
    """Where a new key is kept: systemd's credential, or a keyring that encrypts, or a file."""
    credential = _credential(environment)
    if credential is not None and credential.seed() is not None:
        return credential
    backend = next(iter(keyrings()), None)
    return FileStore(folder / KEYS_FOLDER) if backend is None else KeyringStore(backend)


def keep(folder: Path, service: str, key: NewKey, store: KeyStore, registered: HostRegistered) -> Identity:
    """Write down who this machine is from now on. The key was kept before the service was asked. Raises Failure."""
    record = Record(
        host_id=registered.host_id,
        name=registered.name,
        service=service,
        link_url=registered.link_url,
        heartbeat_interval_s=registered.heartbeat_interval_s,
        public_key=key.public_key,
        kept_in=store.kind,
    )
    make_private_folder(folder)
    write_record(folder, record)
    return Identity(folder, record, store)


def write_record(folder: Path, record: Record) -> None:
    write_private(folder / FILE_NAME, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def public_key_of(seed: bytes) -> str:
    """The public half, raw and in base64."""
    return b64encode(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()).decode()


def _store_of(kind: str, folder: Path, environment: Mapping[str, str], keyrings: Keyrings) -> KeyStore:
    """The store that the file names, even where another would be chosen today."""
    if kind == FileStore.kind:
        return FileStore(folder / KEYS_FOLDER)
    if kind == CredentialStore.kind:
        credential = _credential(environment)
        if credential is None:
            raise Failure(
                "the key of this host is a systemd credential, and this is not its unit: run "
                "`systemctl start spawn-host`."
            )
        return credential
    backend = next(iter(keyrings()), None)
    if backend is None:
        raise Failure(
            "the key of this host is in a keyring, and this session has none: log in as the user who ran setup, or "
            "register this machine again with `spawn-host setup --force`."
        )
    return KeyringStore(backend)


def _credential(environment: Mapping[str, str]) -> CredentialStore | None:
    folder = environment.get(CREDENTIALS_VARIABLE)
    return CredentialStore(Path(folder), public_key_of) if folder else None


def _signed(seed: bytes, message: bytes) -> str:
    return b64encode(Ed25519PrivateKey.from_private_bytes(seed).sign(message)).decode()
