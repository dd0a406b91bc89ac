"""Lent machines: whose they are, what runs on them, what they were told to do, and where tenants reach it.

Revision ID: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    # Whom the seconds of this server are owed to besides us; null where its provider sends an invoice.
    op.add_column("server", sa.Column("host_id", TEXT))
    op.create_table(
        "host",
        sa.Column("id", TEXT, primary_key=True),
        # For ever its own: a revoked host's name is not another's.
        sa.Column("name", TEXT, nullable=False, unique=True),
        sa.Column("wallet", TEXT, nullable=False),
        sa.Column("daily_usdc", BIG, nullable=False),
        # Raw Ed25519 in base64; null until it has registered.
        sa.Column("public_key", TEXT, unique=True),
        sa.Column("state", TEXT, nullable=False),
        # Of its newest session; grows with each login.
        sa.Column("epoch", BIG, nullable=False),
        # When it was last heard, and how often it was told to say something.
        sa.Column("last_seen", BIG),
        sa.Column("beat_s", BIG, nullable=False),
        sa.Column("draining", BIG, nullable=False),
        sa.Column("agent_status", TEXT),
        sa.Column("agent_version", TEXT),
        # JSON; what the agent says of its machine and of how it is doing. Never trusted.
        sa.Column("inventory", TEXT),
        sa.Column("metrics", TEXT),
        sa.Column("desired_generation", BIG, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("registered_at", BIG),
        sa.Column("revoked_at", BIG),
        sqlite_strict=True,
    )
    op.create_table(
        "host_token",
        # SHA-256 of a registration token.
        sa.Column("hash", TEXT, primary_key=True),
        sa.Column("host_id", TEXT, sa.ForeignKey("host.id"), nullable=False),
        sa.Column("expires_at", BIG, nullable=False),
        sa.Column("used_at", BIG),
        sqlite_strict=True,
    )
    op.create_table(
        "host_call",
        # Nonces of signed calls, kept as long as their timestamps would be taken.
        sa.Column("host_id", TEXT, sa.ForeignKey("host.id"), primary_key=True),
        sa.Column("nonce", TEXT, primary_key=True),
        sa.Column("at", BIG, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "host_outage",
        sa.Column("host_id", TEXT, sa.ForeignKey("host.id"), primary_key=True),
        sa.Column("began_at", BIG, primary_key=True),
        sa.Column("ended_at", BIG),
        sqlite_strict=True,
    )
    op.create_table(
        "rental",
        # The id of its server, which has no row where the books were lost.
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("host_id", TEXT, sa.ForeignKey("host.id"), nullable=False, index=True),
        sa.Column("generation", BIG, nullable=False),
        sa.Column("owner", TEXT, nullable=False),
        sa.Column("hostname", TEXT, nullable=False),
        sa.Column("type", TEXT, nullable=False),
        sa.Column("image", TEXT, nullable=False),
        sa.Column("cores", BIG, nullable=False),
        sa.Column("memory_gb", BIG, nullable=False),
        sa.Column("disk_gb", BIG, nullable=False),
        # JSON: where each of its ports is reached.
        sa.Column("endpoints", TEXT, nullable=False),
        # What we want: running, stopped or gone; and until when it runs without us.
        sa.Column("desired", TEXT, nullable=False),
        sa.Column("lease_until", BIG, nullable=False),
        # What the host says of it; null before it has said anything.
        sa.Column("reported", TEXT),
        sa.Column("reported_at", BIG),
        sa.Column("ended_by", TEXT),
        sa.Column("exit_code", BIG),
        sa.Column("out_of_memory_kills", BIG, nullable=False),
        # The commands that made it and that destroy it.
        sa.Column("start_command", TEXT, nullable=False),
        sa.Column("destroy_command", TEXT),
        # From when on nobody pays for it, because its host is silent or keeps it stopped; null while somebody does.
        sa.Column("paused_at", BIG),
        # What the relay carried for it.
        sa.Column("ingoing_bytes", BIG, nullable=False),
        sa.Column("outgoing_bytes", BIG, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("gone_at", BIG),
        sqlite_strict=True,
    )
    op.create_table(
        "command",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("host_id", TEXT, sa.ForeignKey("host.id"), nullable=False),
        # Its place among its host's commands.
        sa.Column("number", BIG, nullable=False),
        sa.Column("rental_id", TEXT),
        sa.Column("kind", TEXT, nullable=False),
        # JSON; null where it carries secrets, which are sealed in `secret` until it has ended.
        sa.Column("body", TEXT),
        sa.Column("expires_at", BIG, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        # When it was first put on the wire; from then on only the host can say what came of it.
        sa.Column("sent_at", BIG),
        sa.Column("progress", TEXT),
        sa.Column("problem_code", TEXT),
        sa.Column("problem", TEXT),
        sa.Column("result", TEXT),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("finished_at", BIG),
        sa.UniqueConstraint("host_id", "number", name="command_place"),
        sqlite_strict=True,
    )
    op.create_index("command_of_rental", "command", ["rental_id"])
    # What is forgotten after a month, and what tenants asked, after an hour.
    op.create_index("command_ended", "command", ["finished_at"])
    of_asks = sa.text("kind IN ('exec', 'logs')")
    op.create_index(
        "command_asks", "command", ["finished_at"], sqlite_where=of_asks, postgresql_where=of_asks
    )
    op.create_table(
        "relay_port",
        sa.Column("port", BIG, primary_key=True),
        # Whose it is or last was, which port inside it leads to, and since when it rests.
        sa.Column("rental_id", TEXT, nullable=False),
        sa.Column("inner_port", BIG, nullable=False),
        sa.Column("leased_at", BIG, nullable=False),
        sa.Column("freed_at", BIG),
        sqlite_strict=True,
    )
    op.create_index("relay_port_of_rental", "relay_port", ["rental_id"])
    # What programs in tenants' containers wrote is kept for minutes, among secrets that are kept for years.
    of_results = sa.text("kind = 'result'")
    op.create_index(
        "secret_results", "secret", ["created_at"], sqlite_where=of_results, postgresql_where=of_results
    )


def downgrade() -> None:
    raise RuntimeError("history is append-only: restore a backup instead of going back")
