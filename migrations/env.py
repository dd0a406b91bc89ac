"""What Alembic runs: apply the migrations over the connection that `spawn.store.migrate` hands in.

Invariant: a migration commits together with its version number. On SQLite each commits apart from the next one; on
PostgreSQL all commit at once, so that who waited for another's migrations finds them done. Nothing is logged or
printed.
"""

from alembic import context

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    on_version_apply=attributes["on_version_apply"],
    transaction_per_migration=attributes["connection"].dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
