"""What servers send: the price it has, what was counted of it, and what of that was charged.

Revision ID: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    # A server that was ordered before has no price for it: sending costs it nothing until it is resized.
    for name, default in (
        ("included_bytes", 0),
        ("tb_usdc", None),
        ("cost_tb_usdc", None),
        ("traffic_owed_usdc", 0),
    ):
        server_default = None if default is None else sa.text(str(default))
        op.add_column("server", sa.Column(name, BIG, nullable=default is None, server_default=server_default))
    op.create_table(
        "traffic",
        sa.Column("server_id", TEXT, sa.ForeignKey("server.id"), primary_key=True),
        # The provider's counters as they were last believed; since when they show less, null while they do not.
        sa.Column("last_ingoing", BIG, nullable=False),
        sa.Column("last_outgoing", BIG, nullable=False),
        sa.Column("fallen_at", BIG),
        # The first second of a calendar month (UTC), and what was counted, free, charged and asked for in it.
        sa.Column("month", BIG, nullable=False),
        sa.Column("ingoing_bytes", BIG, nullable=False),
        sa.Column("outgoing_bytes", BIG, nullable=False),
        sa.Column("included_bytes", BIG, nullable=False),
        sa.Column("billed_bytes", BIG, nullable=False),
        sa.Column("month_usdc", BIG, nullable=False),
        # What does not fill a micro-USDC, in parts of a TB of it; what was paid and what it cost us, ever.
        sa.Column("remainder", BIG, nullable=False),
        sa.Column("cost_remainder", BIG, nullable=False),
        sa.Column("charged_usdc", BIG, nullable=False),
        sa.Column("cost_usdc", BIG, nullable=False),
        sqlite_strict=True,
    )


def downgrade() -> None:
    raise RuntimeError("history is append-only: restore a backup instead of going back")
