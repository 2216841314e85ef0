"""Members of a tenant: the people who joined it, and its services, which have no login.

Invariants: a tenant is never left without an active admin who has a way in; nobody changes or removes a member who holds more
than they do; whoever is disabled or removed is out within a second, and what they made and used stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.audit.recording import By, differences, record
from amplifier_api_server.control_plane.members.bounds import checked_limits, require_room
from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.control_plane.roles import rights
from amplifier_api_server.control_plane.tenant_events.recording import EventType, emit
from amplifier_api_server.tenants.errors import Conflict, NotFound
from amplifier_api_server.tenants.ids import KeyId, MemberId, TenantId, new_member_id
from amplifier_api_server.tenants.lifecycle import MemberStatus
from amplifier_api_server.tenants.models import Member, Tenant
from amplifier_api_server.tenants.permissions import Role, beyond
from amplifier_api_server.tenants.repository import invitations, keys, members, tenants
from amplifier_api_server.tenants.repository.pages import Page

THERE = (MemberStatus.ACTIVE.value, MemberStatus.DISABLED.value)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a new service should be, or (None: stays as it is) what a member should become."""

    name: str | None = None
    role: str | None = None
    limits: Mapping[str, Any] | None = None  # replaces all overrides
    status: MemberStatus | None = None


async def create(
    services: Management, tenant_id: TenantId, by: By, *, name: str, role: str, limits: Mapping[str, Any] | None = None
) -> Member:
    """A new service: a member that nobody logs in as. Commits. Raises Invalid, Forbidden, Conflict (`too_many_members`)."""
    async with services.database.write() as db:
        tenant = await _tenant(db, tenant_id)
        await rights.given(db, tenant_id, role, by)
        row = Member(
            id=new_member_id(),
            tenant_id=tenant_id,
            name=name,
            role=role,
            kind="service",
            limits=dict(checked_limits(services.settings, tenant, limits or {})),
            created_at=services.clock.now(),
        )
        await add(services, db, row)
        changes = differences({}, {"name": name, "role": role, "limits": row.limits})
        await record(db, services.clock, by, "createMember", tenant_id=tenant_id, target=row.id, changes=changes)
    return row


async def add(services: Management, db: AsyncSession, row: Member) -> None:
    """Any new member, in a transaction that the caller commits; what they may is checked. Raises Conflict."""
    tenant_id = TenantId(row.tenant_id)
    await require_room(db, services.settings, await _tenant(db, tenant_id))
    await members.add(db, tenant_id, row)
    told = {"member_id": row.id, "name": row.name, "kind": row.kind, "role": row.role}
    await emit(db, services.clock, tenant_id, EventType.MEMBER_ADDED, told)


async def find(services: Management, tenant_id: TenantId, member_id: MemberId) -> Member:
    """One who was removed too. Raises NotFound."""
    async with services.database.read() as db:
        row = await members.find(db, tenant_id, member_id)
    if row is None:
        raise _nobody(member_id)
    return row


async def page(
    services: Management,
    tenant_id: TenantId,
    page: Page,
    *,
    statuses: Sequence[str] = THERE,
    kind: str | None = None,
) -> list[Member]:
    """By default those who are not removed."""
    async with services.database.read() as db:
        return await members.page(db, tenant_id, page, statuses=statuses, kind=kind)


async def change(services: Management, tenant_id: TenantId, by: By, member_id: MemberId, wish: Wish) -> Member:
    """Set what is not None. Commits. Raises Invalid, NotFound, Forbidden, Conflict (`last_admin`)."""
    async with services.database.write() as db:
        row = await _mine(db, tenant_id, by, member_id)
        before = {name: getattr(row, name) for name in ("name", "role", "limits", "status")}
        values = await _checked(services, db, tenant_id, by, wish)
        changes = differences(before, values)
        was, had = row.status, await rights.grants_of(db, tenant_id, row.role)
        if changes:
            row = await members.change(db, tenant_id, member_id, **values) or row
            if row.status != MemberStatus.ACTIVE:
                await members.end_logins(db, tenant_id, member_id, services.clock.now())
            if before["role"] == Role.ADMIN.value:
                await _require_admin(services, db, tenant_id)
            await record(db, services.clock, by, "updateMember", tenant_id=tenant_id, target=member_id, changes=changes)
            told = {"member_id": member_id, "changed": sorted(changes), "role": row.role, "status": row.status}
            await emit(db, services.clock, tenant_id, EventType.MEMBER_UPDATED, told)
        has = await rights.grants_of(db, tenant_id, row.role)
    if beyond(had, has) or (was == MemberStatus.ACTIVE and row.status != MemberStatus.ACTIVE):
        await services.on_member_stopped(tenant_id, member_id)
    elif changes:
        await services.on_tenant_changed(tenant_id)
    return row


async def _checked(
    services: Management, db: AsyncSession, tenant_id: TenantId, by: By, wish: Wish
) -> Mapping[str, Any]:
    values: dict[str, Any] = {}
    if wish.name is not None:
        values["name"] = wish.name
    if wish.role is not None:
        await rights.given(db, tenant_id, wish.role, by)
        values["role"] = wish.role
    if wish.limits is not None:
        values["limits"] = dict(checked_limits(services.settings, await _tenant(db, tenant_id), wish.limits))
    if wish.status is not None:
        values["status"] = MemberStatus(wish.status).value
    return values


async def remove(services: Management, tenant_id: TenantId, by: By, member_id: MemberId) -> None:
    """For good: their keys are revoked, their logins end, what they have open ends; their running turns go on.

    What they made stays the tenant's; invitations of theirs that nobody took are void. Commits. Raises NotFound, Forbidden,
    Conflict (`last_admin`).
    """
    now = services.clock.now()
    async with services.database.write() as db:
        row = await _mine(db, tenant_id, by, member_id)
        role, status = row.role, row.status
        await members.change(db, tenant_id, member_id, status=MemberStatus.REMOVED.value)
        revoked = await keys.revoke_of_member(db, tenant_id, member_id, now)
        await members.end_logins(db, tenant_id, member_id, now)
        await invitations.revoke_of_member(db, tenant_id, member_id)
        if role == Role.ADMIN.value:
            await _require_admin(services, db, tenant_id)
        changes = {"status": (status, MemberStatus.REMOVED.value), "keys": (revoked, [])}
        await record(db, services.clock, by, "deleteMember", tenant_id=tenant_id, target=member_id, changes=changes)
        for key_id in revoked:
            await emit(db, services.clock, tenant_id, EventType.KEY_REVOKED, {"key_id": key_id, "member_id": member_id})
        told = {"member_id": member_id, "name": row.name, "kind": row.kind}
        await emit(db, services.clock, tenant_id, EventType.MEMBER_REMOVED, told)
    for key_id in revoked:
        await services.on_key_revoked(KeyId(key_id))
    await services.on_member_stopped(tenant_id, member_id)


async def has_admin(services: Management, db: AsyncSession, tenant_id: TenantId) -> bool:
    """Whether, after what was done in this transaction, an active admin has a way in: a key, a login, tokens."""
    auth = services.settings.auth
    providers = [one.identity_provider for one in auth.logins if one.is_complete] + [one.issuer for one in auth.bearers]
    now = services.clock.now()
    return await members.has_admin(db, tenant_id, now, takes_keys=bool(auth.keys), providers=providers)


async def _require_admin(services: Management, db: AsyncSession, tenant_id: TenantId) -> None:
    if not await has_admin(services, db, tenant_id):
        detail = "the tenant would have no active admin with a key that works or a login; make another one before"
        raise Conflict(detail, code="last_admin")


async def _mine(db: AsyncSession, tenant_id: TenantId, by: By, member_id: MemberId) -> Member:
    """A member whom `by` may change. Raises NotFound, Forbidden."""
    row = await members.find(db, tenant_id, member_id)
    if row is None or row.status == MemberStatus.REMOVED:
        raise _nobody(member_id)
    await rights.require_held(db, by, await rights.grants_of(db, tenant_id, row.role), f"the member {member_id}")
    return row


async def _tenant(db: AsyncSession, tenant_id: TenantId) -> Tenant:
    tenant = await tenants.find(db, tenant_id)
    if tenant is None:
        raise NotFound(f"there is no tenant {tenant_id}", code="tenant_not_found")
    return tenant


def _nobody(member_id: MemberId) -> NotFound:
    return NotFound(f"there is no member {member_id}", code="member_not_found")
