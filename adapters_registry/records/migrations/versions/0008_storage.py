"""Reservations of quota, versions whose files were removed, indexes for what is read by time."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "reservations",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False, index=True),
        sa.Column("adapter", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.String(64), nullable=True),
        sa.Column("server", sa.String(255), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.add_column(
        "versions",
        sa.Column("collected", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.execute("UPDATE versions SET collected = (1 = 1) WHERE state = 'rejected'")
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_usage_tenant_hour", "usage", ["tenant", "hour"])
