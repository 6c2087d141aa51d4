"""Who checks a version and until when; which promotions a later change of `live` cancels."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    with op.batch_alter_table("adapters") as adapters:
        adapters.add_column(
            sa.Column("live_revision", sa.Integer, nullable=False, server_default="0")
        )
    with op.batch_alter_table("versions", table_kwargs={"sqlite_autoincrement": True}) as versions:
        versions.add_column(
            sa.Column("live_revision", sa.Integer, nullable=False, server_default="0")
        )
        versions.add_column(sa.Column("checked_by", sa.String(64)))
        versions.add_column(sa.Column("checked_until", sa.DateTime(timezone=True)))
