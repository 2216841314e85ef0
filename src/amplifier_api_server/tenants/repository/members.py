"""Rows of members: whom requests and sessions are counted for."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import MemberId, TenantId
from amplifier_api_server.tenants.models import Member


async def add(db: AsyncSession, tenant_id: TenantId, member: Member) -> None:
    """A new member, which must be the tenant's."""
    if member.tenant_id != tenant_id:
        raise ValueError(f"{member.id} is of another tenant")
    db.add(member)
    await db.flush()


async def find(db: AsyncSession, tenant_id: TenantId, member_id: MemberId) -> Member | None:
    """The tenant's member."""
    query = select(Member).where(col(Member.tenant_id) == tenant_id, col(Member.id) == member_id)
    return (await db.execute(query)).scalar_one_or_none()
