from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlmodel import Session, SQLModel

from amplifier_api_server.control_plane.migrations import head, is_known, migrate, revision_of
from amplifier_api_server.tenants import models


def url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path / 'amplifier.db'}"


def schema(path: Path) -> dict[str, str]:
    engine = sa.create_engine(f"sqlite:///{path / 'amplifier.db'}")
    with engine.connect() as connection:
        rows = connection.execute(sa.text("select name, sql from sqlite_master where sql is not null")).all()
    found = {row[0]: row[1] for row in rows}
    engine.dispose()
    return found


async def test_the_tables_are_as_the_models_say(tmp_path: Path):
    assert models.Tenant.__tablename__ in SQLModel.metadata.tables
    await migrate(url(tmp_path))
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'amplifier.db'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, SQLModel.metadata) == []
    engine.dispose()


async def test_indexes_are_the_same_partial_ones_too(tmp_path: Path):
    await migrate(url(tmp_path))
    migrated = {
        name: " ".join(sql.split()) for name, sql in schema(tmp_path).items() if name.startswith(("ux_", "ix_"))
    }
    (tmp_path / "made").mkdir()
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'made' / 'amplifier.db'}")
    SQLModel.metadata.create_all(engine)
    engine.dispose()
    made = {
        name: " ".join(sql.split())
        for name, sql in schema(tmp_path / "made").items()
        if name.startswith(("ux_", "ix_"))
    }
    assert migrated == made
    assert "WHERE status = 'running'" in migrated["ux_turn_running"]


async def test_up_down_and_up_again(tmp_path: Path):
    assert await migrate(url(tmp_path)) is None
    first = schema(tmp_path)
    assert await migrate(url(tmp_path)) == head() == await revision_of(url(tmp_path))
    assert await migrate(url(tmp_path), "base") == head()
    assert set(schema(tmp_path)) - {"sqlite_sequence"} == {"alembic_version"}  # SQLite's own, of what counts by itself
    assert await revision_of(url(tmp_path)) is None
    await migrate(url(tmp_path))
    assert schema(tmp_path) == first


async def test_the_database_refuses_to_change_the_audit_log(tmp_path: Path):
    await migrate(url(tmp_path))
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'amplifier.db'}")
    row = models.AuditEntry(tenant_id="t", at=datetime.now(UTC), actor="mem_1", action="createKey", changes={})
    with Session(engine) as db:
        db.add(row)
        db.commit()
    for statement in ("update audit_entry set actor = 'somebody else'", "delete from audit_entry"):
        with engine.begin() as connection, pytest.raises(sa.exc.IntegrityError, match="append-only"):
            connection.execute(sa.text(statement))
    engine.dispose()


async def test_two_that_start_at_once_both_succeed(tmp_path: Path):
    await asyncio.gather(*(migrate(url(tmp_path)) for _ in range(3)))
    assert await revision_of(url(tmp_path)) == head()


async def test_a_migration_that_fails_leaves_the_database_as_it_was(tmp_path: Path):
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'amplifier.db'}")
    with engine.begin() as connection:
        connection.execute(sa.text("create table turn_events (something text)"))  # the last one that is made
    engine.dispose()
    before = schema(tmp_path)
    with pytest.raises(sa.exc.OperationalError, match="already exists"):
        await migrate(url(tmp_path))
    assert schema(tmp_path) == before


def test_a_revision_of_a_newer_version_is_not_known():
    assert is_known(head() or "")
    assert not is_known("9999")
