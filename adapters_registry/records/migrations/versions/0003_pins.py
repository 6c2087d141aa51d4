"""Versions that are to keep their slot."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("versions", table_kwargs={"sqlite_autoincrement": True}) as versions:
        versions.add_column(
            sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false())
        )
