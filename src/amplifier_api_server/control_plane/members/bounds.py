"""How many members and keys a tenant has, and what limits they and their keys can be given."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import Conflict, Invalid
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.repository import keys, members
from amplifier_api_server.tenants.tiers import DEFAULT, Limits, capped, overlaid, overlaid_for_tenant, parse_overrides


class HasLimits(Protocol):
    """What of a tenant says its limits."""

    @property
    def id(self) -> str: ...
    @property
    def tier(self) -> str: ...
    @property
    def limits(self) -> Mapping[str, Any]: ...


async def require_room(db: AsyncSession, settings: Settings, tenant: HasLimits) -> None:
    """Raise Conflict (`too_many_members`) where the tenant can have no more."""
    most = limits_of(settings, tenant).members
    if settings.rate_limiting.enabled and most is not None and await members.count(db, TenantId(tenant.id)) >= most:
        raise Conflict(f"the tenant has at most {most} members; remove some before", code="too_many_members")


async def require_room_for_key(
    db: AsyncSession, settings: Settings, tenant: HasLimits, now: datetime, *, is_successor: bool = False
) -> None:
    """Raise Conflict (`too_many_keys`) where the tenant can have no more. Each may be rotated: then both work for a while."""
    most = limits_of(settings, tenant).keys
    if not settings.rate_limiting.enabled or most is None:
        return
    if await keys.count(db, TenantId(tenant.id), now) >= most * (1 + is_successor):
        raise Conflict(f"the tenant has at most {most} keys that work; revoke some before", code="too_many_keys")


def limits_of(settings: Settings, tenant: HasLimits) -> Limits:
    """What the tenant has, before any of its members' and keys' own."""
    tier = settings.limits_of(tenant.tier) or settings.limits_of("default") or DEFAULT
    return overlaid_for_tenant(tier, parse_overrides(tenant.limits))


def checked_limits(settings: Settings, tenant: HasLimits, given: Mapping[str, Any]) -> Mapping[str, int | None]:
    """Overrides that only lower what the tenant has. Raises Invalid."""
    parsed = parse_overrides(given)
    bounds = limits_of(settings, tenant)
    wished = overlaid(bounds, parsed)
    allowed = capped(wished, bounds)
    for name in parsed:
        if getattr(allowed, name) != getattr(wished, name):
            message = f"is above the tenant's own, which is {getattr(bounds, name)}"
            field = f"limits.{name}"
            raise Invalid(f"{field} {message}", errors=[{"field": field, "message": message}])
    return parsed
