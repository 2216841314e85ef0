"""How many members a tenant has, and what limits they and their keys can be given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import Conflict, Invalid
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.models import Tenant
from amplifier_api_server.tenants.repository import members
from amplifier_api_server.tenants.tiers import DEFAULT, capped, overlaid, parse_overrides

MAX_MEMBERS = 10_000  # of one tenant, those that were made for keys among them


async def require_room(db: AsyncSession, tenant_id: TenantId) -> None:
    """Raise Conflict (`too_many_members`) where the tenant can have no more."""
    if await members.count(db, tenant_id) >= MAX_MEMBERS:
        raise Conflict(f"a tenant has at most {MAX_MEMBERS} members; remove some before", code="too_many_members")


def checked_limits(settings: Settings, tenant: Tenant, given: Mapping[str, Any]) -> Mapping[str, int | None]:
    """Overrides that only lower what the tenant has. Raises Invalid."""
    parsed = parse_overrides(given)
    tier = settings.limits_of(tenant.tier) or settings.limits_of("default") or DEFAULT
    bounds = overlaid(tier, parse_overrides(tenant.limits))
    wished = overlaid(bounds, parsed)
    allowed = capped(wished, bounds)
    for name in parsed:
        if getattr(allowed, name) != getattr(wished, name):
            message = f"is above the tenant's own, which is {getattr(bounds, name)}"
            field = f"limits.{name}"
            raise Invalid(f"{field} {message}", errors=[{"field": field, "message": message}])
    return parsed
