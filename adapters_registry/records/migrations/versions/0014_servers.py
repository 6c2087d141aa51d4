"""What each server says of itself: its name, since when it runs, what it holds and does."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.add_column("servers", sa.Column("name", sa.String(255), nullable=False, server_default=""))
    op.add_column("servers", sa.Column("started_at", sa.DateTime(timezone=True)))
    op.add_column("servers", sa.Column("figures", sa.JSON))
