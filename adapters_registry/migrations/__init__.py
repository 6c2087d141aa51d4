"""The schema's history (Alembic); `upgrade` brings a database to its newest state."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, func, select

_LOCK = 0x10CA91EC
"""Any number that nothing else in the database locks."""


def upgrade(engine: Engine) -> None:
    """Apply the migrations that the database lacks, each in a transaction."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # Replicas that start together: one migrates, the others wait and find it done.
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
