"""Warm promotions, what servers report on them, judged canaries, and the traffic of both sides."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.add_column("adapters", sa.Column("warming", sa.JSON))
    op.create_table(
        "servers",
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("seen_at", moment, nullable=False),
        sa.Column("warming", sa.JSON, nullable=False),
    )
    op.create_table(
        "judged_canaries",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column(
            "adapter_id", sa.Integer, sa.ForeignKey("adapters.id"), nullable=False, index=True
        ),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("live_number", sa.Integer, nullable=False),
        sa.Column("plan", sa.JSON, nullable=False),
        sa.Column("examples", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("step_at", moment, nullable=False),
        sa.Column("look_at", moment, nullable=False),
        sa.Column("finding", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("evidence", sa.JSON, nullable=False),
        sa.Column("scores", sa.JSON),
        sa.Column("claimed_by", sa.String(255)),
        sa.Column("claimed_until", moment),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("ended_at", moment),
    )
    op.create_table(
        "arm_traffic",
        sa.Column("version_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("process", sa.String(32), primary_key=True),
        sa.Column("counts", sa.JSON, nullable=False),
        sa.Column("at", moment, nullable=False, index=True),
    )
