"""The `ssh_key` table."""

from typing import Final

import msgspec
from spawn_ledger.tx import Row, Tx
from spawn_schemas.ids import Address, SshKeyId


class SshKey(msgspec.Struct, frozen=True, kw_only=True):
    """A registered public key, in OpenSSH form without its comment."""

    id: SshKeyId
    wallet: Address
    name: str
    public_key: str
    fingerprint: str
    created_at: int


INSERT_KEY: Final = """
INSERT INTO ssh_key (id, wallet, name, public_key, fingerprint, created_at)
VALUES (:id, :wallet, :name, :public_key, :fingerprint, :created_at) ON CONFLICT (wallet, fingerprint) DO NOTHING
"""
SELECT_KEY: Final = "SELECT * FROM ssh_key WHERE id = :id"
SELECT_BY_FINGERPRINT: Final = "SELECT * FROM ssh_key WHERE wallet = :wallet AND fingerprint = :fingerprint"
SELECT_KEYS: Final = "SELECT * FROM ssh_key WHERE wallet = :wallet ORDER BY created_at, id LIMIT :limit"
COUNT_KEYS: Final = "SELECT COUNT(*) AS n FROM ssh_key WHERE wallet = :wallet"
DELETE_KEY: Final = "DELETE FROM ssh_key WHERE id = :id AND wallet = :wallet"


def key_from(row: Row) -> SshKey:
    """Read one row of `SELECT * FROM ssh_key`."""
    return SshKey(**{name: row[name] for name in SshKey.__struct_fields__})


def insert_key(tx: Tx, key: SshKey) -> bool:
    """False when the wallet has registered this key before."""
    return tx.execute(INSERT_KEY, msgspec.structs.asdict(key)) == 1


def find_key(tx: Tx, key_id: SshKeyId) -> SshKey | None:
    row = tx.one(SELECT_KEY, {"id": key_id})
    return None if row is None else key_from(row)
