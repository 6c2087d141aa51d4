"""Which key replaces a key."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("replaced_by", sa.String(16)))
