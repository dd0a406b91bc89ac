"""The `secret` table: what passes through us and must not stay, encrypted while it waits.

Invariant: plaintext never reaches the database, a log or a stored answer; a secret is erased when it was used for the
last time. What a rebuild plants again is kept until its server ends.
"""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from spawn_ledger.tx import Tx
from spawn_schemas.ids import CommandId, Entropy, ServerId, WebhookId

from spawn.store.database import StoreError

USER_DATA: Final = "user_data"
ROOT_PASSWORD: Final = "root_password"  # noqa: S105 - the name of a kind of secret, not one
HOST_KEY: Final = "host_key"
CALLBACK: Final = "callback"
"""Under which token the machine reports that is made by the next order, or was by the last."""
SIGNING: Final = "signing"
SIGNING_BEFORE: Final = "signing_before"
"""What a webhook's deliveries were signed with until its secret was rotated, which is when this was sealed."""

ORDER: Final = "order"
"""What a lent machine is told to run, with its keys, until it has ended."""
RESULT: Final = "result"
"""What a tenant's command wrote."""

Owner = ServerId | WebhookId | CommandId

_PROOF_OWNER: Final = ServerId("spawn")
_PROOF: Final = "proof"

PUT_SEALED: Final = """
INSERT INTO secret (owner, kind, ciphertext, created_at) VALUES (:owner, :kind, :ciphertext, :at)
ON CONFLICT (owner, kind) DO UPDATE SET ciphertext = :ciphertext, created_at = :at
"""
FIND_SEALED: Final = """
SELECT ciphertext FROM secret WHERE owner = :owner AND kind = :kind AND created_at >= :since
"""
# The first start sealed it: when these books began.
SELECT_BEGAN: Final = "SELECT created_at FROM secret WHERE owner = 'spawn' AND kind = 'proof'"
DELETE_SEALED: Final = "DELETE FROM secret WHERE owner = :owner AND kind = :kind"
DELETE_ALL_SEALED: Final = "DELETE FROM secret WHERE owner = :owner"
DELETE_OLD_RESULTS: Final = """
DELETE FROM secret WHERE kind = 'result' AND owner IN (
  SELECT owner FROM secret WHERE kind = 'result' AND created_at < :before ORDER BY owner LIMIT :limit
)
"""


class WrongKey(StoreError):
    """Secrets at rest cannot be opened with the key we were given."""


class Vault:
    """AES-256-GCM with a random nonce; the owner and kind are authenticated, so a row cannot be moved to another."""

    def __init__(self, key: bytes, entropy: Entropy) -> None:
        self._cipher = AESGCM(key)
        self._entropy = entropy

    def prove(self, tx: Tx, at: int) -> None:
        """Raise WrongKey unless this key opens what was sealed here before; the first start seals the proof."""
        if self.find(tx, _PROOF_OWNER, _PROOF) is None:
            self.put(tx, _PROOF_OWNER, _PROOF, _PROOF, at)

    def put(self, tx: Tx, owner: Owner, kind: str, text: str, at: int) -> None:
        nonce = self._entropy.bytes(12)
        sealed = nonce + self._cipher.encrypt(nonce, text.encode(), f"{owner}|{kind}".encode())
        tx.execute(PUT_SEALED, {"owner": owner, "kind": kind, "ciphertext": sealed, "at": at})

    def find(self, tx: Tx, owner: Owner, kind: str, *, since: int = 0) -> str | None:
        """The secret if it was sealed at `since` or later, or None. Raises WrongKey when with another key."""
        row = tx.one(FIND_SEALED, {"owner": owner, "kind": kind, "since": since})
        if row is None:
            return None
        sealed = bytes(row["ciphertext"])
        try:
            return self._cipher.decrypt(sealed[:12], sealed[12:], f"{owner}|{kind}".encode()).decode()
        except InvalidTag as error:
            raise WrongKey(
                "the database was sealed with another key: restore SPAWN_SECRET_KEY, or the .key file beside it."
            ) from error

    def take(self, tx: Tx, owner: Owner, kind: str) -> str | None:
        """Hand the secret out for the only time: it is erased in the same transaction."""
        text = self.find(tx, owner, kind)
        if text is not None:
            tx.execute(DELETE_SEALED, {"owner": owner, "kind": kind})
        return text

    def erase(self, tx: Tx, owner: Owner) -> None:
        tx.execute(DELETE_ALL_SEALED, {"owner": owner})

    def erase_one(self, tx: Tx, owner: Owner, kind: str) -> None:
        tx.execute(DELETE_SEALED, {"owner": owner, "kind": kind})
