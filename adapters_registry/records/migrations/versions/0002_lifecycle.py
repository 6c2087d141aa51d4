"""Change epoch, weighted aliases with a way back, deleted adapters, audit, idempotency keys."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    epoch = op.create_table(
        "epoch",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(epoch, [{"id": 1, "value": 1}])
    with op.batch_alter_table("adapters") as adapters:
        adapters.add_column(
            sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false())
        )
        adapters.add_column(sa.Column("epoch", sa.BigInteger, nullable=False, server_default="1"))
        adapters.create_index("ix_adapters_epoch", ["epoch"])
    with op.batch_alter_table("aliases") as aliases:
        aliases.add_column(sa.Column("targets", sa.JSON, nullable=False, server_default="[]"))
        aliases.add_column(sa.Column("previous", sa.JSON))
        aliases.add_column(sa.Column("revision", sa.Integer, nullable=False, server_default="1"))
    _keep_targets()
    with op.batch_alter_table("aliases") as aliases:
        aliases.drop_column("number")
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("origin", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False, index=True),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(192), nullable=False, index=True),
        sa.Column("before", sa.JSON),
        sa.Column("after", sa.JSON),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("caller", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("version_id", sa.Integer, sa.ForeignKey("versions.id")),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )


def _keep_targets() -> None:
    """An alias that pointed to one version points to it with its whole weight."""
    aliases = sa.table(
        "aliases",
        sa.column("adapter_id", sa.Integer),
        sa.column("name", sa.String),
        sa.column("number", sa.Integer),
        sa.column("targets", sa.JSON),
    )
    connection = op.get_bind()
    for row in connection.execute(sa.select(aliases)).all():
        connection.execute(
            aliases.update()
            .where(aliases.c.adapter_id == row.adapter_id, aliases.c.name == row.name)
            .values(targets=[[row.number, 100]])
        )
