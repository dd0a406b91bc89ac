"""Events are numbered and forgotten wallet by wallet.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# PostgreSQL would compare texts by a language's rules; we go by their bytes, as SQLite does.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    # Whoever numbers an event of a wallet holds its row, so that its numbers are committed in their order.
    # `forgotten` is the highest number of the wallet's that is not kept any more.
    op.create_table(
        "event_head",
        sa.Column("wallet", TEXT, primary_key=True),
        sa.Column("forgotten", BIG, nullable=False, server_default=sa.text("0")),
        sqlite_strict=True,
    )
    # Whose the events were that are forgotten already, nobody knows: the row of no wallet speaks for all.
    op.execute(
        "INSERT INTO event_head (wallet, forgotten) "
        "SELECT '', kept.oldest - 1 FROM (SELECT MIN(seq) AS oldest FROM event) AS kept WHERE kept.oldest > 1"
    )


def downgrade() -> None:
    raise RuntimeError("history is append-only: restore a backup instead of going back")
