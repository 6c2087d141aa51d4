"""What tenants have used, by the hour."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("hour", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("adapter", sa.String(192), primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("slot_seconds", sa.Float, nullable=False),
        sa.Column("cold_starts", sa.BigInteger, nullable=False),
    )
