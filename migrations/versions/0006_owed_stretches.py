"""The time that a server's owner has not paid for yet, where it costs another price than what came after it.

Revision ID: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # JSON, oldest first; null for nearly everybody.
    op.add_column("server", sa.Column("owed", sa.Text(), nullable=True))


def downgrade() -> None:
    raise RuntimeError("history is append-only: restore a backup instead of going back")
