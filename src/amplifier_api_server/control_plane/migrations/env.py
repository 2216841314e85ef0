"""Alembic's way in: `migrate()` hands over a connection that is in a transaction; the `alembic` command does not.

For a new revision, in this folder, with DATABASE_URL naming a migrated database:
`alembic revision --autogenerate --rev-id NNNN -m ...`
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Literal

import sqlalchemy
from alembic import context
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import AutoString, SQLModel

from amplifier_api_server.tenants import models

if TYPE_CHECKING:
    from sqlalchemy import Connection

assert models.Tenant.__tablename__ in SQLModel.metadata.tables  # importing the models is what fills the metadata


def render(kind: str, thing: object, _context: object) -> str | Literal[False]:
    """Revisions name plain SQL types: they must run unchanged when the models' own types are gone."""
    if kind == "type" and isinstance(thing, models.UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(thing, AutoString):
        return "sa.String()"
    return False


def run(connection: Connection) -> None:
    """Everything between two revisions, in the transaction that the connection is in."""
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        render_as_batch=True,
        render_item=render,
        compare_type=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_by_command() -> None:
    """For developers: `DATABASE_URL` says which database."""
    engine = create_async_engine(os.environ["DATABASE_URL"], poolclass=sqlalchemy.NullPool)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()


given: Connection | None = context.config.attributes.get("connection")
if given is None:
    asyncio.run(run_by_command())
else:
    run(given)
