"""Tokens that were used in the service tiers flex and priority; earlier ones count as default."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"

TABLES = ("usage", "usage_of_days", "usage_of_months", "usage_in_all")
TIERS = ("flex", "priority")


def upgrade() -> None:
    for table in TABLES:
        for tier in TIERS:
            for direction in ("input", "output"):
                name = f"{tier}_{direction}_tokens"
                op.add_column(
                    table, sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
                )
