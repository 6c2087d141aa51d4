"""What tenants trust: signatures, and sources that requests may name."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.add_column("tenants", sa.Column("policy", sa.JSON, nullable=False, server_default="{}"))
