"""Settling on a real chain: what we send, what became of it, and what arrives unasked.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# PostgreSQL would compare texts by a language's rules; we go by their bytes, as SQLite does.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _table(name: str, *columns: sa.schema.SchemaItem) -> None:
    op.create_table(name, *columns, sqlite_strict=True)


def _index_where(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def upgrade() -> None:
    _settlements()
    _arrivals()


def _settlements() -> None:
    # An authorization that we bring to the chain ourselves. `id` is its nonce key: one row for ever.
    _table(
        "settlement",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("payer", TEXT, nullable=False),
        sa.Column("amount", BIG, nullable=False),
        sa.Column("payment", sa.LargeBinary, nullable=False),
        sa.Column("valid_before", BIG, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("relayer", TEXT),
        sa.Column("relayer_nonce", BIG),
        sa.Column("transaction_hash", TEXT),
        sa.Column("reason", TEXT),
        sa.Column("message", TEXT),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("finished_at", BIG),
        sa.CheckConstraint(
            "state IN ('reserved', 'signed', 'broadcast', 'confirmed', 'failed')", name="settlement_state"
        ),
    )
    _index_where(
        "settlement_open", "settlement", ["created_at", "id"], "state IN ('reserved', 'signed', 'broadcast')"
    )
    op.create_index("settlement_by_transaction", "settlement", ["relayer", "relayer_nonce"])
    # Every version of every transaction that we signed; the one with a block is what happened at its nonce.
    _table(
        "relay",
        sa.Column("hash", TEXT, primary_key=True),
        sa.Column("relayer", TEXT, nullable=False),
        sa.Column("nonce", BIG, nullable=False),
        sa.Column("attempt", BIG, nullable=False),
        sa.Column("raw", sa.LargeBinary, nullable=False),
        sa.Column("gas_limit", BIG, nullable=False),
        sa.Column("max_fee_wei", BIG, nullable=False),
        sa.Column("priority_fee_wei", BIG, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("block_number", BIG),
        sa.Column("gas_wei", BIG),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("sent_at", BIG),
        sa.UniqueConstraint("relayer", "nonce", "attempt", name="relay_attempt"),
        sa.CheckConstraint("state IN ('signed', 'broadcast', 'confirmed', 'replaced')", name="relay_state"),
    )
    _index_where("relay_open", "relay", ["relayer", "nonce"], "state IN ('signed', 'broadcast')")


def _arrivals() -> None:
    # USDC that reached us and that no settled call accounts for. `id` is transaction hash and log index.
    _table(
        "arrival",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("transaction_hash", TEXT, nullable=False),
        sa.Column("sender", TEXT, nullable=False),
        sa.Column("amount", BIG, nullable=False),
        sa.Column("nonce_key", TEXT, unique=True),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("claimed_at", BIG),
        sa.CheckConstraint("state IN ('suspense', 'claimed')", name="arrival_state"),
    )
    _index_where("arrival_unclaimed", "arrival", ["sender", "at", "id"], "state = 'suspense'")
    # How far a watcher of the chain has read.
    _table(
        "watch",
        sa.Column("name", TEXT, primary_key=True),
        sa.Column("cursor", TEXT, nullable=False),
    )
