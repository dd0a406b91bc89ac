"""The first schema: money, servers, operations, reservations, keys.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# STRICT tables know INTEGER, TEXT and BLOB only; PostgreSQL needs BIGINT for money and time.
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# PostgreSQL would compare texts by a language's rules; we go by their bytes, as SQLite does.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _table(name: str, *columns: sa.schema.SchemaItem) -> None:
    op.create_table(name, *columns, sqlite_strict=True)


def upgrade() -> None:
    _money()
    _servers()
    _calls()
    _make_transfers_immutable()


def _money() -> None:
    _table(
        "account",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("balance", BIG, nullable=False),
        sa.Column("held", BIG, nullable=False),
        sa.CheckConstraint("balance >= 0 AND held >= 0 AND held <= balance", name="account_never_negative"),
    )
    _table(
        "transfer",
        sa.Column("seq", BIG, primary_key=True, autoincrement=True),
        sa.Column("id", TEXT, nullable=False, unique=True),
        sa.Column("debit", TEXT, nullable=False),
        sa.Column("credit", TEXT, nullable=False),
        sa.Column("amount", BIG, nullable=False),
        sa.Column("code", TEXT, nullable=False),
        sa.Column("reference", TEXT, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.CheckConstraint("amount > 0 AND debit <> credit", name="transfer_moves_something"),
    )
    op.create_index("transfer_by_debit", "transfer", ["debit", "seq"])
    _index_where("transfer_topup", "transfer", ["credit", "at"], "code = 'topup'")
    op.create_index("transfer_by_credit", "transfer", ["credit", "seq"])
    _table(
        "hold",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("debit", TEXT, nullable=False),
        sa.Column("credit", TEXT, nullable=False),
        sa.Column("amount", BIG, nullable=False),
        sa.Column("code", TEXT, nullable=False),
        sa.Column("reference", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("resolved_at", BIG),
        sa.CheckConstraint("amount > 0 AND debit <> credit", name="hold_moves_something"),
        sa.CheckConstraint("state IN ('pending', 'posted', 'released')", name="hold_state"),
    )
    op.create_index("hold_by_reference", "hold", ["reference"])
    op.create_index(
        "hold_pending",
        "hold",
        ["debit"],
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    )


def _servers() -> None:
    _table(
        "ssh_key",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("wallet", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("public_key", TEXT, nullable=False),
        sa.Column("fingerprint", TEXT, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.UniqueConstraint("wallet", "fingerprint", name="ssh_key_once_per_wallet"),
    )
    _table(
        "server",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("wallet", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("type", TEXT, nullable=False),
        sa.Column("image", TEXT, nullable=False),
        sa.Column("location", TEXT, nullable=False),
        sa.Column("network", TEXT, nullable=False),
        sa.Column("ssh_keys", TEXT, nullable=False),
        sa.Column("provider", TEXT, nullable=False),
        sa.Column("provider_type", TEXT, nullable=False),
        sa.Column("provider_ref", TEXT),
        sa.Column("architecture", TEXT, nullable=False),
        sa.Column("cores", sa.Integer, nullable=False),
        sa.Column("memory_gb", sa.Integer, nullable=False),
        sa.Column("disk_gb", sa.Integer, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("reason", TEXT),
        sa.Column("ipv4", TEXT),
        sa.Column("ipv6", TEXT),
        sa.Column("auto_renew", sa.Integer, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("ended_at", BIG),
        sa.Column("missing_since", BIG),
        # The meter: null `charged_until` means that the provider has not accepted yet, or that billing ended.
        sa.Column("daily_usdc", BIG, nullable=False),
        sa.Column("remainder", BIG, nullable=False),
        sa.Column("charged_until", BIG),
        sa.Column("charged_usdc", BIG, nullable=False),
        sa.Column("minimum_usdc", BIG, nullable=False),
        sa.Column("due_at", BIG),
        sa.CheckConstraint("auto_renew IN (0, 1)", name="server_auto_renew"),
    )
    _index_where("server_name", "server", ["wallet", sa.text("LOWER(name)")], "ended_at IS NULL", unique=True)
    op.create_index("server_by_wallet", "server", ["wallet", "created_at", "id"])
    _index_where("server_live", "server", ["id"], "ended_at IS NULL")
    _index_where("server_live_by_wallet", "server", ["wallet", "created_at", "id"], "ended_at IS NULL")
    _index_where("server_due", "server", ["due_at"], "due_at IS NOT NULL")
    _index_where("server_due_by_wallet", "server", ["wallet", "due_at"], "due_at IS NOT NULL")
    _table(
        "operation",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("server_id", TEXT, sa.ForeignKey("server.id"), nullable=False),
        sa.Column("wallet", TEXT, nullable=False),
        sa.Column("command", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("plan", TEXT, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("phase", TEXT, nullable=False),
        sa.Column("handle", TEXT),
        sa.Column("accepted_at", BIG),
        sa.Column("answered", sa.Integer, nullable=False),
        sa.Column("error_code", TEXT),
        sa.Column("error_message", TEXT),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", BIG, nullable=False),
        sa.Column("deadline_at", BIG, nullable=False),
        sa.Column("claim", TEXT),
        sa.Column("claim_until", BIG, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("finished_at", BIG),
        sa.CheckConstraint("status IN ('running', 'success', 'error')", name="operation_status"),
        sa.CheckConstraint("phase IN ('queued', 'sent', 'accepted')", name="operation_phase"),
    )
    _index_where("operation_one_per_server", "operation", ["server_id"], "status = 'running'", unique=True)
    op.create_index("operation_by_server", "operation", ["server_id", "finished_at"])
    _index_where("operation_due", "operation", ["next_at"], "status = 'running'")
    _table(
        "secret",
        sa.Column("owner", TEXT, primary_key=True),
        sa.Column("kind", TEXT, primary_key=True),
        sa.Column("ciphertext", sa.LargeBinary, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
    )
    _table(
        "stray",
        sa.Column("provider", TEXT, primary_key=True),
        sa.Column("ref", TEXT, primary_key=True),
        sa.Column("first_seen_at", BIG, nullable=False),
    )


def _calls() -> None:
    _table(
        "reservation",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("wallet", TEXT, nullable=False),
        sa.Column("rail", TEXT, nullable=False),
        sa.Column("idempotency_key", TEXT),
        sa.Column("fingerprint", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("fee", BIG, nullable=False),
        sa.Column("amount", BIG, nullable=False),
        sa.Column("payment", sa.LargeBinary),
        sa.Column("seal", TEXT),
        sa.Column("valid_before", BIG, nullable=False),
        sa.Column("settlement", TEXT),
        sa.Column("operation_id", TEXT),
        sa.Column("answer", sa.LargeBinary),
        sa.Column("claim", TEXT),
        sa.Column("claim_until", BIG, nullable=False),
        sa.Column("created_ms", BIG, nullable=False),
        sa.Column("keep_until", BIG, nullable=False),
        sa.CheckConstraint("rail = 'x402' OR rail = 'signed'", name="reservation_rail"),
        # Not IN: of three texts and more SQLite makes a table, anew for every row, and each paid call writes one.
        sa.CheckConstraint(
            "state = 'done' OR state = 'reserved' OR state = 'settled' OR state = 'acted' OR state = 'refused'",
            name="reservation_state",
        ),
    )
    _index_where("reservation_unsettled", "reservation", ["created_ms"], "state = 'reserved'")
    op.create_index("reservation_expiry", "reservation", ["keep_until"])
    _table(
        "idempotency",
        sa.Column("wallet", TEXT, primary_key=True),
        sa.Column("key", TEXT, primary_key=True),
        sa.Column("reservation_id", TEXT, sa.ForeignKey("reservation.id"), nullable=False),
        sa.Column("keep_until", BIG, nullable=False),
    )
    op.create_index("idempotency_by_reservation", "idempotency", ["reservation_id"])
    op.create_index("idempotency_expiry", "idempotency", ["keep_until"])


def _index_where(
    name: str, table: str, columns: list[str | sa.TextClause], where: str, *, unique: bool = False
) -> None:
    op.create_index(
        name, table, columns, unique=unique, sqlite_where=sa.text(where), postgresql_where=sa.text(where)
    )


def _make_transfers_immutable() -> None:
    """History is corrected by new transfers, never edited; `recursive_triggers` closes INSERT OR REPLACE."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER transfer_no_{verb.lower()} BEFORE {verb} ON transfer "
                "BEGIN SELECT RAISE(ABORT, 'a transfer is never changed'); END"
            )
    else:
        op.execute(
            "CREATE FUNCTION refuse_transfer_change() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'a transfer is never changed'; END $$"
        )
        op.execute(
            "CREATE TRIGGER transfer_immutable BEFORE UPDATE OR DELETE ON transfer "
            "FOR EACH ROW EXECUTE FUNCTION refuse_transfer_change()"
        )


def downgrade() -> None:
    raise RuntimeError("history is append-only: restore a backup instead of going back")
