"""Tenants, for the operator of the service: making, changing, suspending and deleting them.

Invariant: a tenant that is suspended or deleted has no key that is let in, from the commit on here and within
`auth.cache_ttl` elsewhere. A deleted tenant stays as a row: the ledger still says what it used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amplifier_api_server.control_plane.audit.recording import By, differences, record
from amplifier_api_server.control_plane.keys import service as keys_service
from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.control_plane.tenant_events.recording import EventType, emit
from amplifier_api_server.tenants.errors import Invalid, NotFound
from amplifier_api_server.tenants.ids import KeyId, TenantId, new_tenant_id
from amplifier_api_server.tenants.lifecycle import TenantStatus
from amplifier_api_server.tenants.models import Tenant
from amplifier_api_server.tenants.permissions import Role
from amplifier_api_server.tenants.repository import collections, keys, provider_keys, tenants
from amplifier_api_server.tenants.repository.pages import Page
from amplifier_api_server.tenants.tiers import TIERS, parse_overrides

_ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class NewTenant:
    """A tenant, and the text of its first admin key, to be shown once."""

    row: Tenant
    admin_key: str

    def __repr__(self) -> str:
        return f"NewTenant(id={self.row.id!r})"


async def create(services: Management, by: By, *, name: str, tier: str, limits: Mapping[str, Any] | None) -> NewTenant:
    """A tenant with one admin key. Commits. Raises Invalid."""
    _check_tier(services, tier)
    now = services.clock.now()
    tenant = Tenant(
        web={},
        id=new_tenant_id(),
        name=name,
        tier=tier,
        status=TenantStatus.ACTIVE.value,
        limits=parse_overrides(limits or {}),
        created_at=now,
        updated_at=now,
    )
    async with services.database.write() as db:
        await tenants.add(db, TenantId(tenant.id), tenant)
        wish = keys_service.Wish(_ADMIN, Role.ADMIN.value)
        changes = differences({}, {"name": name, "tier": tier, "limits": tenant.limits})
        await record(
            db, services.clock, by, "createTenant", tenant_id=TenantId(tenant.id), target=tenant.id, changes=changes
        )
        made = await keys_service.add(services, db, tenant, wish, by)
    return NewTenant(tenant, made.text)


async def find(services: Management, tenant_id: TenantId) -> Tenant:
    """Raises NotFound, for a deleted one too."""
    async with services.database.read() as db:
        found = await tenants.find(db, tenant_id)
    return _there(found, tenant_id)


async def page(services: Management, page: Page) -> list[Tenant]:
    """Tenants that are not deleted."""
    async with services.database.read() as db:
        return await tenants.page_of_all_tenants(db, page)


async def change(
    services: Management,
    tenant_id: TenantId,
    by: By,
    *,
    name: str | None = None,
    tier: str | None = None,
    status: TenantStatus | None = None,
    limits: Mapping[str, Any] | None = None,
) -> Tenant:
    """Set what is not None; `limits` replaces all overrides. Commits. Raises Invalid, NotFound."""
    if tier is not None:
        _check_tier(services, tier)
    if status is TenantStatus.DELETED:
        raise Invalid(
            "status: a tenant is deleted with DELETE", errors=[{"field": "status", "message": "can't be set"}]
        )
    given = {"name": name, "tier": tier, "status": status.value if status is not None else None}
    values: dict[str, Any] = {field: value for field, value in given.items() if value is not None}
    if limits is not None:
        values["limits"] = parse_overrides(limits)
    async with services.database.write() as db:
        row = _there(await tenants.find(db, tenant_id), tenant_id)
        changes = differences({field: getattr(row, field) for field in values}, values)
        changed = _there(await tenants.change(db, tenant_id, services.clock.now(), **values), tenant_id)
        if changes:
            await record(db, services.clock, by, "updateTenant", tenant_id=tenant_id, target=tenant_id, changes=changes)
            told = {"changed": sorted(changes), "name": changed.name, "tier": changed.tier, "status": changed.status}
            await emit(db, services.clock, tenant_id, EventType.TENANT_UPDATED, told)
    await services.on_tenant_changed(tenant_id)
    if status is TenantStatus.SUSPENDED:
        await services.on_tenant_stopped(tenant_id)
    return changed


async def delete(services: Management, tenant_id: TenantId, by: By) -> None:
    """Mark it deleted, revoke its keys, forget those that it gave us, and its collections. A server's next sweep closes its
    sessions, whose files go then. Commits. Raises NotFound.
    """
    now = services.clock.now()
    async with services.database.write() as db:
        _there(await tenants.change(db, tenant_id, now, status=TenantStatus.DELETED.value), tenant_id)
        revoked = await keys.revoke_all(db, tenant_id, now)
        await collections.remove_of_deleted_of_all_tenants(db)
        await provider_keys.remove_all(db, tenant_id)
        changes: dict[str, tuple[Any, Any]] = {"keys": (revoked, [])}
        await record(db, services.clock, by, "deleteTenant", tenant_id=tenant_id, target=tenant_id, changes=changes)
    await services.on_tenant_stopped(tenant_id)
    for key_id in revoked:
        await services.on_key_revoked(KeyId(key_id))


def _there(found: Tenant | None, tenant_id: TenantId) -> Tenant:
    if found is None:
        raise NotFound(f"there is no tenant {tenant_id}", code="tenant_not_found")
    return found


def _check_tier(services: Management, tier: str) -> None:
    if services.settings.limits_of(tier) is None:
        known = ", ".join(sorted({*TIERS, *services.settings.rate_limiting.tiers}))
        message = f"should be one of {known}"
        raise Invalid(f"tier is {tier!r}; it {message}", errors=[{"field": "tier", "message": message}])
