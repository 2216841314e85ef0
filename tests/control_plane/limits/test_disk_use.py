"""What a tenant keeps on the disk: added up from rows, sandboxes, trees and what is on its way; held against its share."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.limits.disk_use import DiskUse
from amplifier_api_server.control_plane.migrations import migrate
from amplifier_api_server.control_plane.pods.trees import Size
from amplifier_api_server.tenants.errors import InsufficientStorage
from amplifier_api_server.tenants.ids import RuntimeId, SessionId, TenantId
from amplifier_api_server.tenants.lifecycle import SessionStatus
from amplifier_api_server.tenants.models import Collection, Profile, Session, Tenant
from amplifier_api_server.tenants.repository import sessions
from amplifier_api_server.tenants.tiers import Limits

NOW = datetime(2026, 11, 1, tzinfo=UTC)
ME, OTHER = TenantId("ten_me"), TenantId("ten_other")
RUN = RuntimeId("run_one")
LIMITS = Limits(disk_bytes=10_000, disk_files=100)


class Sandboxes:
    """What lies where, as a launcher would measure it."""

    def __init__(self) -> None:
        self.resting: dict[str, Size | None] = {}
        self.open: dict[str, Size | None] = {}

    async def size(self, tenant_id: TenantId, session_id: SessionId) -> Size | None:
        return self.resting.get(session_id, Size())

    def held(self, runtime_id: RuntimeId) -> Size | None:
        return self.open[runtime_id]


class Trees:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def size(self, tree: str) -> Size:
        self.asked.append(tree)
        return Size(1000, 10)


class Kit:
    """One of each, over a database with two tenants."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.sandboxes, self.trees = Sandboxes(), Trees()
        self.running: dict[RuntimeId, TenantId] = {}
        self.now = 100.0
        self.use = DiskUse(
            database, self.trees, running=lambda: self.running, sandboxes=self.sandboxes, now=lambda: self.now
        )

    async def add(self, *rows: object) -> None:
        async with self.database.write() as db:
            db.add_all(rows)

    async def held(self) -> tuple[int, int]:
        self.now += 10
        of_bytes, of_files = await self.use.standings(ME, LIMITS)
        return of_bytes.used, of_files.used

    async def is_refused(self, more: Size, *, may_free: bool = False) -> str:
        """The limit that says no; empty where none does."""
        try:
            await self.use.require(ME, LIMITS, more, may_free=may_free)
        except InsufficientStorage as error:
            return str(error.extra["limit"]) if error.stable_code == "disk_quota_exceeded" else error.stable_code
        return ""


@pytest.fixture
async def kit(tmp_path: Path):
    url = f"sqlite+aiosqlite:///{tmp_path}/a.db"
    await migrate(url)
    database = Database(url)
    made = Kit(database)
    for tenant in (ME, OTHER):
        row = Tenant(
            id=tenant, name="x", tier="default", status="active", limits={}, web={}, created_at=NOW, updated_at=NOW
        )
        await made.add(row)
    yield made
    await database.close()


def session(
    name: str, size: int, files: int, *, tenant: TenantId = ME, status: str = "suspended", **more: object
) -> Session:
    values = {"disk_is_known": True, "transcript_bytes": 0, "collections": [], **more}
    return Session(
        id=f"sess_{name}", tenant_id=tenant, member_id="m", key_id="k", profile="p", context={}, state={}, status=status,
        created_at=NOW, last_active_at=NOW, disk_bytes=size, disk_files=files, **values,
    )  # fmt: skip


def image(*trees: str) -> dict:
    return {"root": {"tree": trees[0]}, "sources": [{"tree": one} for one in trees[1:]]}


async def test_everything_is_added_up_and_a_tree_counts_once(kit: Kit) -> None:
    await kit.add(
        session("a", 300, 3, transcript_bytes=7),
        session("b", 200, 2, status="failed", collections=[image("t1", "t2")], collections_key="x"),
        session("closed", 9_000, 90, status="closed", transcript_bytes=900),
        session("theirs", 9_000, 90, tenant=OTHER),
        Collection(
            id="c", tenant_id=ME, name="c", version="1", source="s", content_hash="h", image=image("t1", "t3"), manifest={},
            installed_at=NOW, installed_by="m",
        ),
        Profile(id="p", tenant_id=ME, name="p", version=1, content="x" * 50, created_at=NOW, created_by="m"),
    )  # fmt: skip
    assert await kit.held() == (300 + 200 + 7 + 50 + 3 * 1000, 3 + 2 + 3 * 10)
    assert sorted(kit.trees.asked) == ["t1", "t2", "t3"]


async def test_what_is_open_counts_as_it_is_measured_and_before_that_as_it_was(kit: Kit) -> None:
    await kit.add(session("a", 300, 3, status="active"))
    kit.running[RUN] = ME
    kit.sandboxes.open[RUN] = None
    assert await kit.held() == (300, 3)
    kit.sandboxes.open[RUN] = Size(5_000, 1)
    assert await kit.held() == (5_000, 1)
    assert not kit.use.is_over(RUN, 5_000)
    assert kit.use.is_over(RUN, 5_001)
    kit.sandboxes.open[RUN] = Size(5_000, 101)
    assert kit.use.is_over(RUN, 0)
    assert not kit.use.is_over(RuntimeId("run_nobodys"), 10**9)


async def test_what_is_on_its_way_counts_for_those_who_come_at_the_same_time(kit: Kit) -> None:
    await kit.add(session("a", 4_000, 10))
    assert await kit.is_refused(Size(6_000, 90)) == ""
    assert await kit.is_refused(Size(6_001, 0)) == "disk_bytes"
    assert await kit.is_refused(Size(0, 91)) == "disk_files"
    with kit.use.coming(ME, "fork", Size(4_000, 20)):
        assert await kit.is_refused(Size(2_001, 0)) == "disk_bytes"
        of_bytes, _ = await kit.use.standings(ME, LIMITS)
        assert (of_bytes.used, of_bytes.reserved, of_bytes.remaining) == (4_000, 4_000, 2_000)
        with pytest.raises(InsufficientStorage):
            kit.use.require_now(ME, Size(2_001, 0))
    assert await kit.is_refused(Size(6_000, 90)) == ""


async def test_who_is_full_may_only_do_what_may_free_and_only_a_little_over(kit: Kit) -> None:
    await kit.add(session("a", 10_000, 10))
    assert await kit.is_refused(Size()) == "disk_bytes"
    assert await kit.is_refused(Size(), may_free=True) == ""
    await kit.add(session("b", 1_001, 10))
    kit.now += 10
    assert await kit.is_refused(Size(), may_free=True) == "disk_bytes"


async def test_what_comes_to_rest_is_measured_once_and_what_is_on_its_way_there_later(kit: Kit) -> None:
    await kit.add(session("a", 0, 0, status="active"), session("b", 5, 5))
    async with kit.database.write() as db:
        await sessions.leave_runtimes_of_all_tenants(db, None)  # a server that has crashed
    kit.sandboxes.resting["sess_a"] = None
    await kit.use.sweep()
    assert await kit.held() == (5, 5)
    kit.sandboxes.resting["sess_a"] = Size(700, 7)
    await kit.use.sweep()
    assert await kit.held() == (705, 12)
    kit.sandboxes.resting["sess_a"] = Size(1, 1)
    await kit.use.sweep()
    assert await kit.held() == (705, 12), "nothing has touched it since"


async def test_a_session_that_leaves_its_sandbox_is_to_be_measured(kit: Kit) -> None:
    await kit.add(session("a", 3, 3, status="active"))
    async with kit.database.write() as db:
        moved = {"expected": [SessionStatus.ACTIVE], "status": SessionStatus.SUSPENDED.value}
        assert await sessions.change(db, ME, SessionId("sess_a"), **moved)
    kit.sandboxes.resting["sess_a"] = Size(40, 4)
    await kit.use.sweep()
    assert await kit.held() == (40, 4)


async def test_one_session_that_can_not_be_measured_does_not_keep_the_others_from_it(kit: Kit, monkeypatch) -> None:
    await kit.add(session("a", 0, 0, disk_is_known=False), session("b", 0, 0, disk_is_known=False))
    real = kit.sandboxes.size

    async def fails(tenant_id: TenantId, session_id: SessionId) -> Size | None:
        if session_id == "sess_a":
            raise OSError("the folder is broken")
        return await real(tenant_id, session_id)

    monkeypatch.setattr(kit.sandboxes, "size", fails)
    kit.sandboxes.resting["sess_b"] = Size(9, 9)
    await kit.use.sweep()
    assert await kit.held() == (9, 9)
