"""Rows of tenants' own roles."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.lifecycle import InvitationStatus, MemberStatus
from amplifier_api_server.tenants.models import ApiKey, Invitation, Member, Role


async def add(db: AsyncSession, tenant_id: TenantId, role: Role) -> None:
    """A new role, which must be the tenant's; a name that is taken is an IntegrityError."""
    if role.tenant_id != tenant_id:
        raise ValueError(f"{role.id} is of another tenant")
    db.add(role)
    await db.flush()


async def find(db: AsyncSession, tenant_id: TenantId, name: str) -> Role | None:
    """The tenant's role of this name."""
    query = select(Role).where(col(Role.tenant_id) == tenant_id, col(Role.name) == name)
    return (await db.execute(query)).scalar_one_or_none()


async def all_of(db: AsyncSession, tenant_id: TenantId) -> list[Role]:
    """The tenant's, by name; their number is bounded when they are made."""
    query = select(Role).where(col(Role.tenant_id) == tenant_id).order_by(col(Role.name))
    return list((await db.execute(query)).scalars())


async def count(db: AsyncSession, tenant_id: TenantId) -> int:
    query = select(func.count()).select_from(Role).where(col(Role.tenant_id) == tenant_id)
    return (await db.execute(query)).scalar_one()


async def change(db: AsyncSession, tenant_id: TenantId, name: str, now: datetime, **values: Any) -> Role | None:
    """Set `values`; how it is then."""
    statement = (
        update(Role)
        .where(col(Role.tenant_id) == tenant_id, col(Role.name) == name)
        .values(updated_at=now, **values)
        .returning(Role)
        .execution_options(populate_existing=True)
    )
    return (await db.execute(statement)).scalar_one_or_none()


async def remove(db: AsyncSession, tenant_id: TenantId, name: str) -> bool:
    """Whether there was one."""
    statement = delete(Role).where(col(Role.tenant_id) == tenant_id, col(Role.name) == name).returning(col(Role.id))
    return (await db.execute(statement)).first() is not None


async def uses(db: AsyncSession, tenant_id: TenantId, name: str, now: datetime) -> dict[str, int]:
    """How many members, keys and invitations have the role, of those that count or may come to count again."""
    queries = {
        "members": select(func.count())
        .select_from(Member)
        .where(
            col(Member.tenant_id) == tenant_id,
            col(Member.role) == name,
            col(Member.status) != MemberStatus.REMOVED.value,
        ),
        "keys": select(func.count())
        .select_from(ApiKey)
        .where(
            col(ApiKey.tenant_id) == tenant_id,
            col(ApiKey.role) == name,
            col(ApiKey.revoked_at).is_(None),
            or_(col(ApiKey.expires_at).is_(None), col(ApiKey.expires_at) > now),
        ),
        "invitations": select(func.count())
        .select_from(Invitation)
        .where(
            col(Invitation.tenant_id) == tenant_id,
            col(Invitation.role) == name,
            col(Invitation.status) == InvitationStatus.PENDING.value,
            col(Invitation.expires_at) > now,
        ),
    }
    return {what: (await db.execute(query)).scalar_one() for what, query in queries.items()}
