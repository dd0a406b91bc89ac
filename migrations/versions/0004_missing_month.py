"""What of the month of `missing_since` a server's meter had counted by then.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("server", sa.Column("missing_month_s", BIG, nullable=False, server_default=sa.text("0")))


def downgrade() -> None:
    raise RuntimeError("history is append-only: restore a backup instead of going back")
