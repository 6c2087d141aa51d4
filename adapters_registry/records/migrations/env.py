"""Alembic's entry: runs migrations on the connection that `upgrade` passes in."""

from alembic import context

import adapters_registry.records.usage.tables  # noqa: F401  so that the metadata have them
from adapters_registry.records.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
