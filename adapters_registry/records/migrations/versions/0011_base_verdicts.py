"""A version's verdicts, each for the base that it was reached on."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("versions", sa.Column("base", sa.String(64)))
    op.add_column(
        "versions", sa.Column("base_verdicts", sa.JSON, nullable=False, server_default="{}")
    )
