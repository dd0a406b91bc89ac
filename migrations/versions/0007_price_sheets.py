"""What a provider's lists were last made into, so that a later reading knows what has changed.

Revision ID: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "price_sheet",
        sa.Column("provider", TEXT, primary_key=True),
        # The catalog and what was asked for each offer, as JSON.
        sa.Column("sheet", TEXT, nullable=False),
        sa.Column("eur_usdc", BIG, nullable=False),
        # Of which day that rate is; null where it is a setting.
        sa.Column("eur_at", BIG),
        sa.Column("read_at", BIG, nullable=False),
        # Since when it could not be read again, and why.
        sa.Column("failing_since", BIG),
        sa.Column("error", TEXT),
        sqlite_strict=True,
    )


def downgrade() -> None:
    raise RuntimeError("history is append-only: restore a backup instead of going back")
