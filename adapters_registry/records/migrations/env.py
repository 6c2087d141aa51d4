"""Alembic's entry: runs migrations on the connection that `upgrade` passes in."""

from alembic import context

# The metadata have the tables of the modules that are imported.
import adapters_registry.records.servers
import adapters_registry.records.usage.tables  # noqa: F401
from adapters_registry.records.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
