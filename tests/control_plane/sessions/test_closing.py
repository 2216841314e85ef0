"""Closing a session, where a part of it fails: what it held is given back all the same."""

import pytest

from tests.hostile_runtime import NOTHING, attacked


@pytest.fixture
async def plane(tmp_path):
    async with attacked(tmp_path) as one:
        yield one


async def test_a_folder_that_can_not_be_deleted_keeps_no_place(plane, monkeypatch):
    session = await plane.session()
    services = plane.app.services

    async def forget(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(services.fleet.launcher, "forget", forget)
    async with plane.client() as client:
        assert (await client.delete(f"/v1/sessions/{session}")).status_code == 500
        assert (await client.get(f"/v1/sessions/{session}")).json()["status"] == "closed"
        limits = {one["name"]: one["used"] for one in (await client.get("/v1/limits")).json()["limits"]}
    assert (limits["sessions_per_user"], limits["concurrent_sessions"]) == (0, 0)
    assert await plane.left() == NOTHING
