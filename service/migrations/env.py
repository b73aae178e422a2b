"""Run by Alembic: applies migrations to the connection that `service.adapters.sql.migrate` hands over.

The caller owns the transaction, so that a migration is applied whole or not at all, by one process at a time.
"""

from __future__ import annotations

from alembic import context

from service.adapters.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
context.run_migrations()
