"""What a machine is trusted by, and what it says of its own boot.

Revision ID: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "boot",
        sa.Column("server_id", TEXT, sa.ForeignKey("server.id"), primary_key=True),
        # The public half; null where the machine makes its own. The private one is sealed in `secret`.
        sa.Column("host_key", TEXT),
        # SHA-256 of what the machine reports under, and of what it will once the rebuild that is ordered has begun.
        sa.Column("token_hash", TEXT, nullable=False, unique=True),
        sa.Column("next_hash", TEXT, unique=True),
        # When the machine was ordered or last rebuilt; from here on, what it reported since.
        sa.Column("since", BIG, nullable=False),
        sa.Column("ssh_at", BIG),
        sa.Column("cloud_init", TEXT),
        sa.Column("log", TEXT),
        sa.Column("reported_at", BIG),
        sqlite_strict=True,
    )


def downgrade() -> None:
    raise RuntimeError("history is append-only: restore a backup instead of going back")
