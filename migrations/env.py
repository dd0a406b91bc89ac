"""What Alembic runs: apply the migrations over the connection that `spawn.store.migrate` hands in.

Invariant: each migration commits together with its version number, and apart from the next one. Nothing is logged
or printed.
"""

from alembic import context

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    on_version_apply=attributes["on_version_apply"],
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
