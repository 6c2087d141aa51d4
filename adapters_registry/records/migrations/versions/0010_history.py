"""Usage belongs to a tenant's id; each change has a mark that no other history has."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

USED = "requests, input_tokens, output_tokens, slot_seconds, cold_starts"


def upgrade() -> None:
    _mark_changes()
    op.drop_index("ix_usage_tenant_hour", "usage")
    op.rename_table("usage", "usage_by_name")
    op.create_table(
        "usage",
        sa.Column("hour", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("tenant_id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("adapter", sa.String(192), primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("slot_seconds", sa.Float, nullable=False),
        sa.Column("cold_starts", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("hour", "tenant_id", "tenant", "adapter", name="pk_usage_by_id"),
    )
    # The hour in which a name was given again is of both tenants, so it is nobody's.
    op.execute(
        f"INSERT INTO usage (hour, tenant_id, tenant, adapter, {USED}) "
        "SELECT hour, CASE WHEN t.id IS NOT NULL AND (t.reused_at IS NULL OR hour > t.reused_at) "
        f"THEN t.id ELSE '' END, tenant, adapter, {USED} "
        "FROM usage_by_name LEFT JOIN tenants t ON t.name = tenant"
    )
    op.drop_table("usage_by_name")
    op.create_index("ix_usage_tenant_hour", "usage", ["tenant", "hour"])
    op.create_index("ix_usage_tenant_id_hour", "usage", ["tenant_id", "hour"])


def _mark_changes() -> None:
    op.create_table(
        "marks",
        sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("mark", sa.String(32), nullable=False),
    )
    with op.batch_alter_table("epoch") as epoch:
        epoch.add_column(sa.Column("mark", sa.String(32), nullable=False, server_default=""))
    mark = {"mark": uuid.uuid4().hex}
    connection = op.get_bind()
    connection.execute(sa.text("UPDATE epoch SET mark = :mark"), mark)
    connection.execute(sa.text("INSERT INTO marks SELECT value, mark FROM epoch"))
