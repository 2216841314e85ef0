"""API keys of a tenant: making, showing, rotating and revoking them.

Invariants: a key's text leaves here once, in what `create` and `rotate` return; a tenant is never left without an
admin key that works; no key gets more than its tenant has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.tenants import api_keys
from amplifier_api_server.tenants.errors import Conflict, Invalid, NotFound
from amplifier_api_server.tenants.ids import KeyId, MemberId, TenantId, new_key_id, new_member_id
from amplifier_api_server.tenants.models import ApiKey, Member, Tenant
from amplifier_api_server.tenants.permissions import TENANT_ROLES, Role
from amplifier_api_server.tenants.repository import keys, members, tenants
from amplifier_api_server.tenants.tiers import DEFAULT, capped, overlaid, parse_overrides

DEFAULT_OVERLAP_SECONDS = 24 * 3600
MAX_OVERLAP_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key's row, and its text to be shown once."""

    row: ApiKey
    text: str

    def __repr__(self) -> str:
        return f"NewKey(id={self.row.id!r})"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a new key should be."""

    name: str
    role: str
    expires_at: datetime | None = None
    member_id: str | None = None  # None: a member of its own, named like it
    limits: Mapping[str, Any] | None = None


async def create(services: Management, tenant_id: TenantId, wish: Wish, created_by: str) -> NewKey:
    """A new key of the tenant. Commits. Raises Invalid, NotFound for a tenant that is not there."""
    now = services.clock.now()
    if wish.expires_at is not None and wish.expires_at <= now:
        raise _invalid("expires_at", "should be in the future")
    async with services.database.write() as db:
        tenant = await tenants.find(db, tenant_id)
        if tenant is None:
            raise NotFound(f"there is no tenant {tenant_id}")
        return await add(services, db, tenant, wish, created_by)


async def add(services: Management, db: AsyncSession, tenant: Tenant, wish: Wish, created_by: str) -> NewKey:
    """The same in a transaction that the caller commits; `wish.expires_at` is in the future."""
    if wish.role not in TENANT_ROLES:
        raise _invalid("role", f"should be one of {', '.join(TENANT_ROLES)}")
    limits = _checked_limits(services, tenant, wish.limits or {})
    member_id = await _member(services, db, TenantId(tenant.id), wish)
    return await _insert(services, db, tenant, member_id, wish, limits, created_by)


async def _member(services: Management, db: AsyncSession, tenant_id: TenantId, wish: Wish) -> str:
    if wish.member_id is not None:
        if await members.find(db, tenant_id, MemberId(wish.member_id)) is None:
            raise _invalid("member_id", f"{wish.member_id} is no member of the tenant")
        return wish.member_id
    member = Member(
        id=new_member_id(),
        tenant_id=tenant_id,
        name=wish.name,
        role=wish.role,
        limits={},
        created_at=services.clock.now(),
    )
    await members.add(db, tenant_id, member)
    return member.id


async def _insert(
    services: Management,
    db: AsyncSession,
    tenant: Tenant,
    member_id: str | None,
    wish: Wish,
    limits: Mapping[str, Any],
    created_by: str,
    rotated_from: str | None = None,
) -> NewKey:
    minted = api_keys.mint()
    row = ApiKey(
        id=new_key_id(),
        tenant_id=tenant.id,
        member_id=member_id,
        name=wish.name,
        role=wish.role,
        digest=services.authenticator.digest(minted.text),
        hint=minted.hint,
        limits=dict(limits),
        created_at=services.clock.now(),
        created_by=created_by,
        expires_at=wish.expires_at,
        rotated_from=rotated_from,
    )
    await keys.add(db, TenantId(tenant.id), row)
    return NewKey(row, minted.text)


async def find(services: Management, tenant_id: TenantId, key_id: KeyId) -> ApiKey:
    """The tenant's key. Raises NotFound, for a revoked one too."""
    async with services.database.read() as db:
        return await _found(db, tenant_id, key_id)


async def page(
    services: Management, tenant_id: TenantId, *, limit: int, before: tuple[datetime, str] | None
) -> list[ApiKey]:
    """The tenant's keys that are not revoked, the newest first."""
    async with services.database.read() as db:
        return await keys.page(db, tenant_id, limit=limit, before=before)


async def revoke(services: Management, tenant_id: TenantId, key_id: KeyId) -> None:
    """End a key, and what was opened with it. Commits. Raises NotFound; Conflict (`last_admin_key`)."""
    now = services.clock.now()
    async with services.database.write() as db:
        row = await _found(db, tenant_id, key_id)
        if _works_as_admin(row, now) and not await keys.has_other_admin(db, tenant_id, key_id, now):
            detail = f"{key_id} is the tenant's last admin key that works; create or rotate to another one before"
            raise Conflict(detail, code="last_admin_key")
        await keys.revoke(db, tenant_id, key_id, now)
    await services.on_key_revoked(key_id)


async def rotate(
    services: Management, tenant_id: TenantId, key_id: KeyId, *, overlap_seconds: int, created_by: str
) -> NewKey:
    """A new key in a key's place, for the same member; the old one works for `overlap_seconds` more, or until it
    expires.

    A key that expires is followed by one that lasts as long as it was meant to. Commits. Raises NotFound; Conflict
    (`key_rotated`, `key_expired`).
    """
    now = services.clock.now()
    async with services.database.write() as db:
        row = await _found(db, tenant_id, key_id)
        tenant = await tenants.find(db, tenant_id)
        if tenant is None:
            raise NotFound(f"there is no tenant {tenant_id}")
        if (by := await keys.successor(db, tenant_id, key_id)) is not None:
            raise Conflict(f"{key_id} was rotated to {by} already; rotate that one", code="key_rotated")
        if row.expires_at is not None and row.expires_at <= now:
            raise Conflict(f"{key_id} has expired; create a new key", code="key_expired")
        lasts = None if row.expires_at is None else row.expires_at - row.created_at
        wish = Wish(row.name, row.role, None if lasts is None else now + lasts)
        made = await _insert(services, db, tenant, row.member_id, wish, row.limits, created_by, rotated_from=key_id)
        await keys.set_expiry(db, tenant_id, key_id, now + timedelta(seconds=overlap_seconds))
    services.authenticator.forget(key_id)
    if overlap_seconds == 0:
        await services.on_key_revoked(key_id)
    return made


async def _found(db: AsyncSession, tenant_id: TenantId, key_id: KeyId) -> ApiKey:
    row = await keys.find(db, tenant_id, key_id)
    if row is None:
        raise NotFound(f"there is no key {key_id}")
    return row


def _works_as_admin(row: ApiKey, now: datetime) -> bool:
    return row.role == Role.ADMIN.value and (row.expires_at is None or row.expires_at > now)


def _checked_limits(services: Management, tenant: Tenant, given: Mapping[str, Any]) -> Mapping[str, int | None]:
    """Overrides that only lower. Raises Invalid."""
    parsed = parse_overrides(given)
    tier = services.settings.limits_of(tenant.tier) or services.settings.limits_of("default") or DEFAULT
    bounds = overlaid(tier, parse_overrides(tenant.limits))
    wished = overlaid(bounds, parsed)
    allowed = capped(wished, bounds)
    for name in parsed:
        if getattr(allowed, name) != getattr(wished, name):
            raise _invalid(f"limits.{name}", f"is above the tenant's own, which is {getattr(bounds, name)}")
    return parsed


def _invalid(field: str, message: str) -> Invalid:
    return Invalid(f"{field} {message}", errors=[{"field": field, "message": message}])
