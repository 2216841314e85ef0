"""Rows of members: whom requests and sessions are counted for.

Nothing is deleted: what a member made and used is still told as theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import MemberId, PersonId, TenantId
from amplifier_api_server.tenants.lifecycle import MemberStatus
from amplifier_api_server.tenants.models import ApiKey, Identity, Login, Member
from amplifier_api_server.tenants.permissions import Role
from amplifier_api_server.tenants.repository.pages import Page


async def add(db: AsyncSession, tenant_id: TenantId, member: Member) -> None:
    """A new member, which must be the tenant's; a person who is one already is an IntegrityError."""
    if member.tenant_id != tenant_id:
        raise ValueError(f"{member.id} is of another tenant")
    db.add(member)
    await db.flush()


async def find(db: AsyncSession, tenant_id: TenantId, member_id: MemberId) -> Member | None:
    """The tenant's member, removed or not."""
    query = select(Member).where(col(Member.tenant_id) == tenant_id, col(Member.id) == member_id)
    return (await db.execute(query)).scalar_one_or_none()


async def find_person(db: AsyncSession, tenant_id: TenantId, person_id: PersonId) -> Member | None:
    """The member that a person is, unless they were removed."""
    query = select(Member).where(
        col(Member.tenant_id) == tenant_id,
        col(Member.person_id) == person_id,
        col(Member.status) != MemberStatus.REMOVED.value,
    )
    return (await db.execute(query)).scalar_one_or_none()


async def page(
    db: AsyncSession,
    tenant_id: TenantId,
    page: Page,
    *,
    statuses: Sequence[str],
    kind: str | None = None,
) -> list[Member]:
    """The tenant's members, by (created_at, id)."""
    query = select(Member).where(col(Member.tenant_id) == tenant_id, col(Member.status).in_(statuses))
    if kind is not None:
        query = query.where(col(Member.kind) == kind)
    query = page.cut(query, col(Member.created_at), col(Member.id))
    return list((await db.execute(query)).scalars())


async def count(db: AsyncSession, tenant_id: TenantId) -> int:
    """Those who are not removed."""
    query = (
        select(func.count())
        .select_from(Member)
        .where(col(Member.tenant_id) == tenant_id, col(Member.status) != MemberStatus.REMOVED.value)
    )
    return (await db.execute(query)).scalar_one()


async def change(db: AsyncSession, tenant_id: TenantId, member_id: MemberId, **values: Any) -> Member | None:
    """Set `values` of a member who is not removed; how they are then."""
    statement = (
        update(Member)
        .where(
            col(Member.tenant_id) == tenant_id,
            col(Member.id) == member_id,
            col(Member.status) != MemberStatus.REMOVED.value,
        )
        .values(**values)
        .returning(Member)
        .execution_options(populate_existing=True)
    )
    return (await db.execute(statement)).scalar_one_or_none()


async def end_logins(db: AsyncSession, tenant_id: TenantId, member_id: MemberId, now: datetime) -> None:
    """The browsers' sessions that act as this member."""
    statement = (
        update(Login)
        .where(col(Login.tenant_id) == tenant_id, col(Login.member_id) == member_id, col(Login.revoked_at).is_(None))
        .values(revoked_at=now)
    )
    await db.execute(statement)


async def has_admin(
    db: AsyncSession, tenant_id: TenantId, now: datetime, *, takes_keys: bool, providers: Sequence[str]
) -> bool:
    """Whether an active member has the built-in role admin and a way in.

    That is an admin key that works, where keys are taken, or an identity at one of `providers`, whose people are let in.
    """
    has_key = select(col(ApiKey.id)).where(
        col(ApiKey.tenant_id) == tenant_id,
        col(ApiKey.member_id) == col(Member.id),
        col(ApiKey.role) == Role.ADMIN.value,
        col(ApiKey.revoked_at).is_(None),
        or_(col(ApiKey.expires_at).is_(None), col(ApiKey.expires_at) > now),
    )
    has_login = select(col(Identity.id)).where(
        col(Identity.person_id) == col(Member.person_id), col(Identity.provider).in_(providers)
    )
    query = select(col(Member.id)).where(
        col(Member.tenant_id) == tenant_id,
        col(Member.role) == Role.ADMIN.value,
        col(Member.status) == MemberStatus.ACTIVE.value,
        or_(*([has_key.exists()] if takes_keys else []), has_login.exists()),
    )
    return (await db.execute(query.limit(1))).first() is not None
