"""Where the host's private key is kept: a systemd credential, a keyring of the desktop, or a file of mode 0600.

Invariant: a key is never given to a keyring that is not on the list. With `keyrings.alt` installed the library would
choose one that writes plain text wherever it runs; the list names those that a system encrypts.
"""

import os
from base64 import b64decode, b64encode
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Protocol

from spawn_hostagent.failures import Failure
from spawn_hostagent.files import make_private_folder, read_private, write_private

SEED_BYTES: Final = 32
CREDENTIAL_NAME: Final = "spawn-host-key"
KEYRING_SERVICE: Final = "spawn-host"
CREDENTIALS_VARIABLE: Final = "CREDENTIALS_DIRECTORY"
"""Where systemd lays the credentials of a unit (systemd.exec(5), `LoadCredential=`)."""
REAL_KEYRINGS: Final = (
    ("keyring.backends.macOS", "Keyring"),
    ("keyring.backends.Windows", "WinVaultKeyring"),
    ("keyring.backends.SecretService", "Keyring"),
    ("keyring.backends.libsecret", "Keyring"),
    ("keyring.backends.kwallet", "DBusKeyring"),
)


class KeyStore(Protocol):
    """Keeps private keys by the public ones they belong to."""

    @property
    def kind(self) -> str:
        """What the identity's file calls it: `credential`, `keyring` or `file`."""
        ...

    @property
    def says(self) -> str:
        """Where that is, for a person."""
        ...

    def get(self, public_key: str) -> bytes | None:
        """The seed of this key, None if it is not here. Raises Failure."""
        ...

    def put(self, public_key: str, seed: bytes) -> None:
        """Keep it; what was kept stays. Raises Failure."""
        ...

    def drop(self, public_key: str) -> None:
        """Forget it; what is not there is forgotten already. Raises Failure."""
        ...


class FileStore:
    """One file a key in a folder of its own."""

    kind = "file"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.says = f"files of mode 0600 in {folder}"

    def get(self, public_key: str) -> bytes | None:
        text = read_private(self._path(public_key))
        return None if text is None else decode_seed(text, str(self._path(public_key)))

    def put(self, public_key: str, seed: bytes) -> None:
        make_private_folder(self._folder)
        write_private(self._path(public_key), b64encode(seed) + b"\n")

    def drop(self, public_key: str) -> None:
        self._path(public_key).unlink(missing_ok=True)

    def _path(self, public_key: str) -> Path:
        return self._folder / f"{sha256(public_key.encode()).hexdigest()[:16]}.key"


class KeyringStore:
    """A keyring of the system."""

    kind = "keyring"

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.says = f"the keyring {backend.name}"

    def get(self, public_key: str) -> bytes | None:
        text = self._ask("get_password", KEYRING_SERVICE, public_key)
        return None if text is None else decode_seed(text.encode(), self.says)

    def put(self, public_key: str, seed: bytes) -> None:
        self._ask("set_password", KEYRING_SERVICE, public_key, b64encode(seed).decode())

    def drop(self, public_key: str) -> None:
        if self.get(public_key) is not None:
            self._ask("delete_password", KEYRING_SERVICE, public_key)

    def _ask(self, verb: str, *arguments: str) -> Any:
        from keyring.errors import KeyringError  # noqa: PLC0415 - 3 MiB that most machines never need

        try:
            return getattr(self._backend, verb)(*arguments)
        except KeyringError as error:
            raise Failure(f"{self.says} refuses: {error}. Unlock it, and run this again.") from error


class CredentialStore:
    """What systemd hands to the unit: it can be read and never changed from here."""

    kind = "credential"

    def __init__(self, folder: Path, public_key_of: Any) -> None:
        self._path = folder / CREDENTIAL_NAME
        self._public_key_of = public_key_of
        self.says = f"the systemd credential {CREDENTIAL_NAME}"

    def seed(self) -> bytes | None:
        """The key that is there, whatever it is."""
        try:
            return decode_seed(self._path.read_bytes(), self.says)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Failure(f"{self.says} cannot be read from {self._path}: {error.strerror}.") from error

    def get(self, public_key: str) -> bytes | None:
        seed = self.seed()
        return seed if seed is not None and self._public_key_of(seed) == public_key else None

    def put(self, public_key: str, seed: bytes) -> None:
        raise Failure(
            f"The key is {self.says}, which only its owner changes: make another with `systemd-creds encrypt` and run "
            "`spawn-host setup --force` with a new token."
        )

    def drop(self, public_key: str) -> None:
        """systemd takes it away with the unit."""


def decode_seed(text: bytes, where: str) -> bytes:
    """The 32 bytes of an Ed25519 seed from their base64. Raises Failure."""
    try:
        seed = b64decode(text.strip(), validate=True)
    except ValueError:
        seed = b""
    if len(seed) != SEED_BYTES:
        raise Failure(
            f"{where} does not hold a key (32 bytes in base64): restore it from a backup, or register this machine "
            "again with `spawn-host setup --force`."
        )
    return seed


def real_keyrings() -> tuple[Any, ...]:
    """The keyrings of this session that encrypt, the best first; none for root on Linux.

    A keyring belongs to somebody who is logged in. The daemon of root starts before anybody is, and would not get in.
    """
    if os.name == "posix" and os.uname().sysname == "Linux" and os.geteuid() == 0:
        return ()
    from keyring.backend import get_all_keyring  # noqa: PLC0415 - see KeyringStore

    return allowed(get_all_keyring())


def allowed(backends: Iterable[Any]) -> tuple[Any, ...]:
    """Those of the list, by the class itself: a backend may call itself anything, or wrap another."""
    found = [it for it in backends if (type(it).__module__, type(it).__name__) in REAL_KEYRINGS]
    return tuple(sorted(found, key=lambda it: -float(it.priority)))
