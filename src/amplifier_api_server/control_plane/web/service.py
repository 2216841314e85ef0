"""A tenant's web policy: reading and replacing it."""

from __future__ import annotations

from amplifier_api_server.control_plane.audit.recording import By, differences, record
from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.control_plane.tenant_events.recording import EventType, emit
from amplifier_api_server.control_plane.web.policy import WebPolicy, policy_in
from amplifier_api_server.tenants.errors import NotFound
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.repository import tenants


async def find(services: Management, tenant_id: TenantId) -> WebPolicy:
    """Raises NotFound."""
    async with services.database.read() as db:
        tenant = await tenants.find(db, tenant_id)
    if tenant is None:
        raise NotFound(f"there is no tenant {tenant_id}", code="tenant_not_found")
    return policy_in(tenant.web)


async def replace(services: Management, tenant_id: TenantId, policy: WebPolicy, by: By) -> WebPolicy:
    """Holds from the next fetch on, redirects of one under way aside. Commits. Raises NotFound."""
    async with services.database.write() as db:
        tenant = await tenants.find(db, tenant_id)
        if tenant is None:
            raise NotFound(f"there is no tenant {tenant_id}", code="tenant_not_found")
        changes = differences({"web": tenant.web}, {"web": policy.as_row()})
        if changes:
            await tenants.change(db, tenant_id, services.clock.now(), web=policy.as_row())
            await record(db, services.clock, by, "setWebPolicy", tenant_id=tenant_id, target=tenant_id, changes=changes)
            await emit(db, services.clock, tenant_id, EventType.TENANT_UPDATED, {"changed": ["web"]})
    return policy
