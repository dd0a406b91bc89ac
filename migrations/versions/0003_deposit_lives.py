"""The deposit lives: month caps, costs, warnings, price changes; events, webhooks, leases, barred wallets.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# PostgreSQL would compare texts by a language's rules; we go by their bytes, as SQLite does.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
NO_CAP_S = 31 * 86_400


def _table(name: str, *columns: sa.schema.SchemaItem, never_reuses_ids: bool = False) -> None:
    op.create_table(name, *columns, sqlite_strict=True, sqlite_autoincrement=never_reuses_ids)


def _index_where(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def upgrade() -> None:
    _meters()
    _warnings()
    _events()
    _webhooks()
    _operating()


def _meters() -> None:
    # Seconds of a UTC month that are charged at most, and the seconds of the watermark's month metered so far.
    _add("server", "capped_s", default=NO_CAP_S)
    _add("server", "month_s", default=0)
    _add("server", "metered_from")
    # When the price was pinned, and what it will be from when on, once a change is announced.
    _add("server", "priced_at", default=0)
    _add("server", "reprice_at")
    _add("server", "reprice_usdc")
    # What the provider charges us: null where nobody says. `cost_until` outlives the meter until the machine is gone.
    _add("server", "cost_daily_usdc")
    _add("server", "cost_capped_s", default=NO_CAP_S)
    _add("server", "cost_step_s", default=1)
    _add("server", "cost_remainder", default=0)
    _add("server", "cost_until")
    _add("server", "cost_usdc", default=0)
    # Pages of due servers go on from a place in it, however many are due in the same second; and what every settlement
    # writes lies in no index that it need not lie in.
    op.drop_index("server_due", "server")
    _index_where("server_due", "server", ["due_at", "id"], "due_at IS NOT NULL")
    op.drop_index("server_due_by_wallet", "server")
    # The one set that every leg of a set-based settlement is driven by; empty between transactions.
    _table(
        "burn_due",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("charged_until", BIG, nullable=False),
        sa.Column("charge", BIG, nullable=False),
        sa.Column("remainder", BIG, nullable=False),
        sa.Column("cost", BIG, nullable=False),
        sa.Column("cost_remainder", BIG, nullable=False),
    )


def _warnings() -> None:
    # The few that are on their way out, for whoever looks whether one was forgotten.
    _index_where("server_destroying", "server", ["id"], "status = 'destroying'")
    # The funding epoch; the tightest threshold spent in it; when the last threshold of all was warned of.
    _add("server", "epoch", default=0)
    _add("server", "warned_s")
    _add("server", "last_warned_at")
    _add("server", "exhausted_at")


def _events() -> None:
    _table(
        "event",
        sa.Column("seq", BIG, primary_key=True, autoincrement=True),
        sa.Column("wallet", TEXT, nullable=False),
        sa.Column("type", TEXT, nullable=False),
        sa.Column("resource", TEXT, nullable=False),
        # What may happen once only; null where the effect's own transaction sees to that.
        sa.Column("cause", TEXT, unique=True),
        sa.Column("at", BIG, nullable=False),
        sa.Column("data", TEXT, nullable=False),
        # Old events are forgotten, and a cursor must never meet their numbers again.
        never_reuses_ids=True,
    )
    op.create_index("event_by_wallet", "event", ["wallet", "seq"])


def _webhooks() -> None:
    _table(
        "webhook",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("wallet", TEXT, nullable=False),
        sa.Column("url", TEXT, nullable=False),
        sa.Column("types", TEXT, nullable=False),
        sa.Column("description", TEXT, nullable=False),
        sa.Column("enabled", sa.Integer, nullable=False),
        sa.Column("disabled_reason", TEXT),
        sa.Column("failing_since", BIG),
        sa.Column("created_at", BIG, nullable=False),
        sa.CheckConstraint("enabled IN (0, 1)", name="webhook_enabled"),
    )
    op.create_index("webhook_by_wallet", "webhook", ["wallet", "created_at", "id"])
    _index_where("webhook_deleted", "webhook", ["id"], "disabled_reason = 'deleted'")
    _table(
        "delivery",
        sa.Column("webhook_id", TEXT, sa.ForeignKey("webhook.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("seq", BIG, sa.ForeignKey("event.seq", ondelete="CASCADE"), primary_key=True),
        sa.Column("resource", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", BIG, nullable=False),
        sa.Column("claim", TEXT),
        sa.Column("claim_until", BIG, nullable=False),
        sa.Column("status_code", sa.Integer),
        sa.Column("error", TEXT),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("attempted_at", BIG),
        sa.Column("finished_at", BIG),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="delivery_state"),
    )
    _index_where("delivery_due", "delivery", ["next_at"], "state = 'pending'")
    _index_where("delivery_order", "delivery", ["webhook_id", "resource", "seq"], "state = 'pending'")
    op.create_index("delivery_by_event", "delivery", ["seq"])


def _operating() -> None:
    # Who may run the jobs; the token grows with each holder and is checked where a job writes.
    _table(
        "lease",
        sa.Column("name", TEXT, primary_key=True),
        sa.Column("holder", TEXT, nullable=False),
        sa.Column("token", BIG, nullable=False),
        sa.Column("until", BIG, nullable=False),
    )
    _table(
        "price_change",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("type", TEXT, nullable=False),
        sa.Column("location", TEXT, nullable=False),
        sa.Column("daily_usdc", BIG, nullable=False),
        sa.Column("announced_at", BIG, nullable=False),
        sa.Column("effective_at", BIG, nullable=False),
        # How far the servers it concerns were told, by id; null once all were.
        sa.Column("told_to", TEXT),
    )
    op.create_index("price_change_by_offer", "price_change", ["type", "location", "announced_at"])
    op.add_column("account", sa.Column("barred", TEXT))
    # What the operator did to a wallet, and why.
    _table(
        "wallet_note",
        sa.Column("seq", BIG, primary_key=True, autoincrement=True),
        sa.Column("wallet", TEXT, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
    )
    op.create_index("wallet_note_by_wallet", "wallet_note", ["wallet", "seq"])


def _add(table: str, name: str, *, default: int | None = None) -> None:
    op.add_column(
        table,
        sa.Column(
            name,
            BIG,
            nullable=default is None,
            server_default=None if default is None else sa.text(str(default)),
        ),
    )


def downgrade() -> None:
    raise RuntimeError("history is append-only: restore a backup instead of going back")
