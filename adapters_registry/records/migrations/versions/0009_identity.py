"""Tenants get an id that outlives no owner; an adapter that is made again is a new row."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

NAMES = {"uq": "uq_%(table_name)s_%(column_0_name)s_%(column_1_name)s"}
"""SQLite does not keep the names of constraints that were made without one."""


def upgrade() -> None:
    with op.batch_alter_table("tenants") as tenants:
        tenants.add_column(sa.Column("id", sa.String(32), nullable=False, server_default=""))
        tenants.add_column(sa.Column("reused_at", sa.DateTime(timezone=True)))
    with op.batch_alter_table("audit") as audit:
        audit.add_column(sa.Column("tenant_id", sa.String(32), nullable=False, server_default=""))
        audit.create_index("ix_audit_tenant_id", ["tenant_id"])
    with op.batch_alter_table("adapters", naming_convention=NAMES) as adapters:
        adapters.add_column(
            sa.Column("shared_with_ids", sa.JSON, nullable=False, server_default="[]")
        )
        is_sqlite = op.get_bind().dialect.name == "sqlite"
        name = "uq_adapters_tenant_name" if is_sqlite else "adapters_tenant_name_key"
        adapters.drop_constraint(name, type_="unique")
    op.create_index(
        "uq_adapters_tenant_name",
        "adapters",
        ["tenant", "name"],
        unique=True,
        sqlite_where=sa.text("deleted = 0"),
        postgresql_where=sa.text("NOT deleted"),
    )
    _give_ids()
    with op.batch_alter_table("tenants") as tenants:
        tenants.create_unique_constraint("uq_tenants_id", ["id"])


def _give_ids() -> None:
    """Give every tenant an id, and what is its own by name until now."""
    connection = op.get_bind()
    ids = {}
    for name, is_deleted in connection.execute(sa.text("SELECT name, deleted FROM tenants")).all():
        tenant_id = uuid.uuid4().hex
        parameters = {"name": name, "id": tenant_id}
        connection.execute(sa.text("UPDATE tenants SET id = :id WHERE name = :name"), parameters)
        connection.execute(
            sa.text("UPDATE audit SET tenant_id = :id WHERE tenant = :name"), parameters
        )
        if not is_deleted:
            ids[name] = tenant_id
    adapters = sa.table(
        "adapters",
        sa.column("id", sa.Integer),
        sa.column("deleted", sa.Boolean),
        sa.column("public", sa.Boolean),
        sa.column("shared_with", sa.JSON),
        sa.column("shared_with_ids", sa.JSON),
    )
    for row in connection.execute(sa.select(adapters)).all():
        # Whom a deleted adapter was shared with is nobody's any more.
        names = [] if row.deleted else row.shared_with
        shared = [ids[name] for name in names if name in ids]
        change = adapters.update().where(adapters.c.id == row.id)
        connection.execute(change.values(shared_with_ids=shared))
