"""Adapters and tenants that are suspended."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    for table in ("adapters", "tenants"):
        op.add_column(table, sa.Column("suspension", sa.JSON))
