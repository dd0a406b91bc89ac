"""${message}

Revision ID: ${up_revision}
"""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    ${upgrades if upgrades else "raise NotImplementedError('write this migration')"}


def downgrade() -> None:
    raise NotImplementedError("history is append-only: restore a backup instead of going back")
