"""API keys of a tenant: making, showing, rotating and revoking them.

Invariants: a key's text leaves here once, in what `create` and `rotate` return; a tenant is never left without an admin
who has a way in; no key gets more than its tenant has, than its member is, or than who makes it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.audit.recording import By, differences, record
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import rfc3339
from amplifier_api_server.control_plane.members import service as members_service
from amplifier_api_server.control_plane.members.bounds import checked_limits, require_room_for_key
from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.control_plane.roles import rights
from amplifier_api_server.control_plane.tenant_events.recording import EventType, emit
from amplifier_api_server.tenants import api_keys
from amplifier_api_server.tenants.errors import Conflict, Invalid, NotFound
from amplifier_api_server.tenants.ids import KeyId, MemberId, TenantId, new_key_id, new_member_id
from amplifier_api_server.tenants.lifecycle import MemberStatus
from amplifier_api_server.tenants.models import ApiKey, Member, Tenant
from amplifier_api_server.tenants.permissions import Role, beyond
from amplifier_api_server.tenants.repository import keys, members, tenants
from amplifier_api_server.tenants.repository.pages import Page

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
    member_id: str | None = None  # None: a service of its own, named like it
    limits: Mapping[str, Any] | None = None


async def create(services: Management, tenant_id: TenantId, wish: Wish, by: By) -> NewKey:
    """A new key of the tenant. Commits. Raises Invalid, Forbidden, NotFound for a tenant that is not there."""
    now = services.clock.now()
    if wish.expires_at is not None and wish.expires_at <= now:
        raise _invalid("expires_at", "should be in the future")
    async with services.database.write() as db:
        tenant = await tenants.find(db, tenant_id)
        if tenant is None:
            raise NotFound(f"there is no tenant {tenant_id}", code="tenant_not_found")
        return await add(services, db, tenant, wish, by)


async def add(services: Management, db: AsyncSession, tenant: Tenant, wish: Wish, by: By) -> NewKey:
    """The same in a transaction that the caller commits; `wish.expires_at` is in the future."""
    tenant_id = TenantId(tenant.id)
    grants = await rights.given(db, tenant_id, wish.role, by)
    limits = checked_limits(services.settings, tenant, wish.limits or {})
    await require_room_for_key(db, services.settings, tenant, services.clock.now())
    if wish.member_id is not None:
        await _require_fitting(db, tenant_id, MemberId(wish.member_id), grants, by)
    member_id = wish.member_id or await _new_service(services, db, tenant_id, wish)
    made = await _insert(services, db, tenant_id, replace(wish, member_id=member_id, limits=limits), by)
    given = {"name": wish.name, "role": wish.role, "member_id": member_id, "limits": dict(limits)}
    changes = differences({}, given | {"expires_at": rfc3339(wish.expires_at) if wish.expires_at else None})
    await record(db, services.clock, by, "createKey", tenant_id=tenant_id, target=made.row.id, changes=changes)
    return made


async def _require_fitting(
    db: AsyncSession, tenant_id: TenantId, member_id: MemberId, grants: frozenset[str], by: By
) -> None:
    """Raise Invalid where the member can't have such a key, Forbidden where they hold more than who makes it."""
    member = await members.find(db, tenant_id, member_id)
    if member is None or member.status == MemberStatus.REMOVED:
        raise _invalid("member_id", f"{member_id} is no member of the tenant")
    if member.status != MemberStatus.ACTIVE:
        raise _invalid("member_id", f"{member_id} is disabled; enable them before")
    theirs = await rights.grants_of(db, tenant_id, member.role)
    await rights.require_held(db, by, theirs, f"the member {member_id}")
    if missing := beyond(grants, theirs):
        raise _invalid("role", f"holds more than the member's own ({member.role}): {', '.join(missing[:20])}")


async def _new_service(services: Management, db: AsyncSession, tenant_id: TenantId, wish: Wish) -> str:
    member = Member(
        id=new_member_id(),
        tenant_id=tenant_id,
        name=wish.name,
        role=wish.role,
        kind="service",
        limits={},
        created_at=services.clock.now(),
    )
    await members_service.add(services, db, member)
    return member.id


async def _insert(
    services: Management, db: AsyncSession, tenant_id: TenantId, wish: Wish, by: By, rotated_from: str | None = None
) -> NewKey:
    minted = api_keys.mint()
    row = ApiKey(
        id=new_key_id(),
        tenant_id=tenant_id,
        member_id=wish.member_id,
        name=wish.name,
        role=wish.role,
        digest=services.authenticator.digest(minted.text),
        hint=minted.hint,
        limits=dict(wish.limits or {}),
        created_at=services.clock.now(),
        created_by=by.credential_id if isinstance(by, Principal) else by,
        expires_at=wish.expires_at,
        rotated_from=rotated_from,
    )
    await keys.add(db, tenant_id, row)
    told = {"key_id": row.id, "name": row.name, "member_id": row.member_id, "role": row.role}
    await emit(db, services.clock, tenant_id, EventType.KEY_CREATED, told)
    return NewKey(row, minted.text)


async def find(services: Management, tenant_id: TenantId, key_id: KeyId) -> ApiKey:
    """The tenant's key. Raises NotFound, for a revoked one too."""
    async with services.database.read() as db:
        return await _found(db, tenant_id, key_id)


async def page(services: Management, tenant_id: TenantId, page: Page) -> list[ApiKey]:
    """The tenant's keys that are not revoked."""
    async with services.database.read() as db:
        return await keys.page(db, tenant_id, page)


async def revoke(services: Management, tenant_id: TenantId, key_id: KeyId, by: By) -> None:
    """End a key, and what was opened with it. Commits. Raises NotFound; Forbidden; Conflict (`last_admin_key`)."""
    now = services.clock.now()
    async with services.database.write() as db:
        row = await _mine(db, tenant_id, key_id, by)
        await keys.revoke(db, tenant_id, key_id, now)
        if _works_as_admin(row, now) and not await members_service.has_admin(services, db, tenant_id):
            detail = f"{key_id} is the tenant's last admin key that works; create or rotate to another one before"
            raise Conflict(detail, code="last_admin_key")
        await record(db, services.clock, by, "revokeKey", tenant_id=tenant_id, target=key_id)
        told = {"key_id": key_id, "member_id": row.member_id}
        await emit(db, services.clock, tenant_id, EventType.KEY_REVOKED, told)
    await services.on_key_revoked(key_id)


async def rotate(services: Management, tenant_id: TenantId, key_id: KeyId, by: By, *, overlap_seconds: int) -> NewKey:
    """A new key in a key's place, for the same member; the old one works for `overlap_seconds` more, or until it
    expires.

    A key that expires is followed by one that lasts as long as it was meant to. Commits. Raises NotFound; Forbidden: who
    rotates it learns its successor; Conflict (`key_rotated`, `key_expired`, `too_many_keys`).
    """
    now = services.clock.now()
    async with services.database.write() as db:
        row = await _mine(db, tenant_id, key_id, by)
        if (successor := await keys.successor(db, tenant_id, key_id)) is not None:
            raise Conflict(f"{key_id} was rotated to {successor} already; rotate that one", code="key_rotated")
        if row.expires_at is not None and row.expires_at <= now:
            raise Conflict(f"{key_id} has expired; create a new key", code="key_expired")
        if (tenant := await tenants.find(db, tenant_id)) is not None:
            await require_room_for_key(db, services.settings, tenant, now, is_successor=True)
        lasts = None if row.expires_at is None else row.expires_at - row.created_at
        wish = Wish(row.name, row.role, None if lasts is None else now + lasts, row.member_id, row.limits)
        made = await _insert(services, db, tenant_id, wish, by, rotated_from=key_id)
        await keys.set_expiry(db, tenant_id, key_id, now + timedelta(seconds=overlap_seconds))
        changes = {"successor": (None, made.row.id), "overlap_seconds": (None, overlap_seconds)}
        await record(db, services.clock, by, "rotateKey", tenant_id=tenant_id, target=key_id, changes=changes)
    services.authenticator.forget(key_id)
    if overlap_seconds == 0:
        await services.on_key_revoked(key_id)
    return made


async def _found(db: AsyncSession, tenant_id: TenantId, key_id: KeyId) -> ApiKey:
    row = await keys.find(db, tenant_id, key_id)
    if row is None:
        raise NotFound(f"there is no key {key_id}", code="key_not_found")
    return row


async def _mine(db: AsyncSession, tenant_id: TenantId, key_id: KeyId, by: By) -> ApiKey:
    """A key that `by` may end or follow: their own, or one that holds no more than they do. Raises NotFound, Forbidden."""
    row = await _found(db, tenant_id, key_id)
    if not isinstance(by, Principal) or str(by.credential_id) != key_id:
        await rights.require_held(db, by, await rights.grants_of(db, tenant_id, row.role), f"the key {key_id}")
    return row


def _works_as_admin(row: ApiKey, now: datetime) -> bool:
    return row.role == Role.ADMIN.value and (row.expires_at is None or row.expires_at > now)


def _invalid(field: str, message: str) -> Invalid:
    return Invalid(f"{field} {message}", errors=[{"field": field, "message": message}])
