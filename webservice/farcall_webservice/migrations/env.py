"""How Alembic reaches the ledger's database."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine

from farcall_webservice.models import Base

config = context.config


def run_migrations() -> None:
    """Use the caller's connection where it brought one, else open the configured URL."""
    connection = config.attributes.get("connection")
    if connection is not None:
        context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
        context.run_migrations()
        return
    engine = create_engine(config.get_main_option("sqlalchemy.url") or "")
    with engine.begin() as opened:
        context.configure(connection=opened, target_metadata=Base.metadata, render_as_batch=True)
        context.run_migrations()


run_migrations()
