"""Reading the audit log: a tenant's own by its members who may, any tenant's and its own by the operator.

Refuses to know who may read at all: the gate does. Invariant: a log is its tenant's alone; an export is in the log itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from amplifier_api_server.control_plane.audit.recording import By, record
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import Clock, rfc3339
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.tenants.errors import NotFound
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.models import AuditEntry
from amplifier_api_server.tenants.repository import audit, tenants
from amplifier_api_server.tenants.repository.audit import Wanted
from amplifier_api_server.tenants.repository.pages import Page

_ROWS = 500  # of an export, in one query
_QUERY_SECONDS = 30.0  # a filter that fits little reads much


class Audit:
    """The logs of all tenants, each seen by its own."""

    def __init__(self, *, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def log_of(self, principal: Principal, asked: str | None) -> TenantId:
        """Whose log is read: the caller's own, or the one that was asked for; a deleted tenant's is kept. Raises NotFound."""
        if asked is None or asked == principal.tenant_id:
            return principal.tenant_id
        tenant_id = TenantId(asked)
        if principal.may("tenants:read") and await self.has_log(tenant_id):
            return tenant_id
        raise NotFound(f"there is no tenant {asked}", code="tenant_not_found")

    async def has_log(self, tenant_id: TenantId) -> bool:
        """Whether it is a tenant, or was one."""
        async with self._database.read() as db:
            return await tenants.find(db, tenant_id) is not None or bool(await audit.last(db, tenant_id))

    async def page(self, tenant_id: TenantId, wanted: Wanted, page: Page) -> Sequence[AuditEntry]:
        """Entries by their numbers. `tenant_id` is what `log_of` gave."""
        async with self._database.read(_QUERY_SECONDS) as db:
            return await audit.page(db, tenant_id, wanted, page)

    async def export(self, by: By, tenant_id: TenantId, wanted: Wanted) -> AsyncIterator[Sequence[AuditEntry]]:
        """All entries up to now, the oldest first, in pages; that they are exported is recorded before. Commits."""
        asked = {
            "since": rfc3339(wanted.since) if wanted.since else None,
            "until": rfc3339(wanted.until) if wanted.until else None,
            "actor": wanted.actor,
            "action": wanted.action,
            "target": wanted.target,
        }
        changes: dict[str, tuple[Any, Any]] = {
            name: (None, value) for name, value in asked.items() if value is not None
        }
        async with self._database.write() as db:
            up_to = await audit.last(db, tenant_id)
            await record(db, self._clock, by, "exportAuditEntries", tenant_id=tenant_id, changes=changes)
        return self._pages(tenant_id, wanted, up_to)

    async def _pages(self, tenant_id: TenantId, wanted: Wanted, up_to: int) -> AsyncIterator[Sequence[AuditEntry]]:
        after = 0
        while True:
            async with self._database.read(_QUERY_SECONDS) as db:
                rows = await audit.span(db, tenant_id, wanted, limit=_ROWS, after=after, up_to=up_to)
            if rows:
                after = rows[-1].id or after
                yield rows
            if len(rows) < _ROWS:
                return
