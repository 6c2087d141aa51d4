"""Tenants that come and go, keys that expire or are revoked, adapters that are shared."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("tenants") as tenants:
        tenants.add_column(
            sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false())
        )
        tenants.add_column(sa.Column("epoch", sa.BigInteger, nullable=False, server_default="1"))
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(sa.Column("label", sa.String(64), nullable=False, server_default=""))
        for name in ("expires_at", "revoked_at", "last_used_at"):
            keys.add_column(sa.Column(name, sa.DateTime(timezone=True)))
        keys.add_column(sa.Column("epoch", sa.BigInteger, nullable=False, server_default="1"))
    with op.batch_alter_table("adapters") as adapters:
        adapters.add_column(sa.Column("shared_with", sa.JSON, nullable=False, server_default="[]"))
        adapters.add_column(
            sa.Column("public", sa.Boolean, nullable=False, server_default=sa.false())
        )
