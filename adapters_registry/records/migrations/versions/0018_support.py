"""Which earlier releases can work with the schema."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    support = op.create_table(
        "schema_support", sa.Column("oldest", sa.String(32), primary_key=True)
    )
    op.bulk_insert(support, [{"oldest": revision}])
