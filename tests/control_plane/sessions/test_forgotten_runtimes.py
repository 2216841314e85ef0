"""Rows of runtimes that are gone do not pile up."""

from datetime import UTC, datetime, timedelta

import pytest

from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.migrations import migrate
from amplifier_api_server.tenants.lifecycle import RuntimeStatus
from amplifier_api_server.tenants.models import Runtime
from amplifier_api_server.tenants.repository import runtimes

NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
async def database(tmp_path):
    url = f"sqlite+aiosqlite:///{tmp_path}/a.db"
    await migrate(url)
    made = Database(url)
    yield made
    await made.close()


async def test_only_what_was_gone_for_long_is_forgotten(database):
    rows = [
        Runtime(id="run_old", status=RuntimeStatus.GONE.value, created_at=NOW, gone_at=NOW - timedelta(days=2)),
        Runtime(id="run_new", status=RuntimeStatus.GONE.value, created_at=NOW, gone_at=NOW - timedelta(hours=2)),
        Runtime(id="run_live", status=RuntimeStatus.CLAIMED.value, created_at=NOW - timedelta(days=9)),
    ]
    async with database.write() as db:
        db.add_all(rows)
    async with database.write() as db:
        assert await runtimes.forget_gone_of_all_tenants(db, NOW - timedelta(days=1)) == 1
    async with database.read() as db:
        assert [row.id for row in await runtimes.wanted_of_all_tenants(db)] == ["run_live"]
        assert await db.get(Runtime, "run_old") is None
        assert await db.get(Runtime, "run_new") is not None
