"""A migrated database of its own for a test, a clock that a test turns, and rows to begin with."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from amplifier_api_server.control_plane.auth.authenticate import Authenticator
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.migrations import migrate
from amplifier_api_server.control_plane.settings import Auth, Server, Settings
from amplifier_api_server.tenants.ids import (
    KeyId,
    MemberId,
    SessionId,
    TenantId,
    new_key_id,
    new_member_id,
    new_tenant_id,
)
from amplifier_api_server.tenants.models import Member, Session, Tenant
from amplifier_api_server.tenants.permissions import GRANTS, Role
from amplifier_api_server.tenants.repository import members, sessions, tenants
from amplifier_api_server.tenants.tiers import DEFAULT, Limits

PEPPER = b"a pepper that is only for tests!"
GITHUB = {"type": "oauth2", "provider": "github", "client_id": "x", "client_secret": "x"}
WITH_A_LOGIN = Auth.model_validate({"methods": [{"type": "api_key"}, GITHUB]})
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


@dataclass
class TestClock:
    """Stands still until a test turns it."""

    __test__ = False

    at: datetime = NOON
    passed: float = 1000.0  # seconds: of what a monotonic clock shows, the number itself means nothing

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.passed

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.passed += seconds
        self.jump(seconds)

    def jump(self, seconds: float) -> None:
        """Somebody sets the machine's clock, forward or back; no time passes."""
        self.at += timedelta(seconds=seconds)


@cache
def _template() -> Path:
    """One migrated file for the process; copying it is faster than migrating."""
    folder = tempfile.mkdtemp(prefix="amplifier-test-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder, "template.db")
    asyncio.run(migrate(f"sqlite+aiosqlite:///{path}"))
    return path


async def migrated_in(folder: Path) -> None:
    """A database as `migrate` makes it, in a data folder that has none."""
    template = await asyncio.to_thread(_template)
    await asyncio.to_thread(shutil.copy, template, folder / "amplifier.db")


@dataclass
class Embedded:
    """What embedded mode has: a data folder, settings, a database, a clock."""

    database: Database
    settings: Settings
    clock: TestClock
    authenticator: Authenticator
    revoked: list[KeyId] = field(default_factory=list)
    stopped: list[TenantId] = field(default_factory=list)
    changed: list[TenantId] = field(default_factory=list)
    ended: list[MemberId] = field(default_factory=list)
    narrowed: list[TenantId] = field(default_factory=list)

    async def on_key_revoked(self, key_id: KeyId) -> None:
        self.authenticator.forget(key_id)
        self.revoked.append(key_id)

    async def on_member_stopped(self, tenant_id: TenantId, member_id: MemberId) -> None:
        self.authenticator.forget_tenant(tenant_id)
        self.ended.append(member_id)

    async def on_role_changed(self, tenant_id: TenantId, *, is_narrowed: bool) -> None:
        self.authenticator.forget_tenant(tenant_id)
        self.narrowed += [tenant_id] if is_narrowed else []

    async def on_tenant_changed(self, tenant_id: TenantId) -> None:
        self.authenticator.forget_tenant(tenant_id)
        self.changed.append(tenant_id)

    async def on_tenant_stopped(self, tenant_id: TenantId) -> None:
        self.authenticator.forget_tenant(tenant_id)
        self.stopped.append(tenant_id)

    async def tenant(self, **values: Any) -> Tenant:
        row = Tenant(
            web={},
            id=new_tenant_id(),
            **{"name": "T", "tier": "pro", "status": "active", "limits": {}, **values},
            created_at=self.clock.now(),
            updated_at=self.clock.now(),
        )
        async with self.database.write() as db:
            await tenants.add(db, TenantId(row.id), row)
        return row

    async def member(self, tenant: Tenant, **values: Any) -> Member:
        row = Member(
            id=new_member_id(),
            tenant_id=tenant.id,
            **{"name": "M", "role": "admin", "limits": {}, **values},
            created_at=self.clock.now(),
        )
        async with self.database.write() as db:
            await members.add(db, TenantId(tenant.id), row)
        return row

    async def session(self, principal: Principal, session_id: str, status: str = "active") -> None:
        now = self.clock.now()
        row = Session(
            id=session_id,
            tenant_id=principal.tenant_id,
            member_id=principal.member_id,
            key_id=principal.credential_id,
            profile="foundation:base",
            context={},
            collections=[],
            state={},
            status=status,
            created_at=now,
            last_active_at=now,
        )
        async with self.database.write() as db:
            await sessions.add(db, principal.tenant_id, row)

    async def principal(self, role: Role = Role.ADMIN, limits: Limits = DEFAULT) -> Principal:
        """A caller whose tenant and member have rows."""
        tenant = await self.tenant()
        member = await self.member(tenant)
        return Principal(
            new_key_id(), TenantId(tenant.id), MemberId(member.id), role.value, GRANTS[role], "pro", limits
        )


def session_id(number: int) -> SessionId:
    return SessionId(f"sess_{number}")


@contextlib.asynccontextmanager
async def embedded_in(folder: Path, **sections: Any) -> AsyncIterator[Embedded]:
    settings = Settings(server=Server(data_dir=folder), **{"auth": WITH_A_LOGIN, **sections})
    await migrated_in(folder)
    clock = TestClock()
    database = Database(settings.database_url)
    authenticator = Authenticator(database, settings, PEPPER, clock)
    try:
        yield Embedded(database, settings, clock, authenticator)
    finally:
        await authenticator.close()
        await database.close()


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[Embedded]:
    async with embedded_in(tmp_path) as found:
        yield found
