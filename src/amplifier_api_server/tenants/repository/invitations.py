"""Rows of invitations."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import InvitationId, MemberId, TenantId
from amplifier_api_server.tenants.lifecycle import InvitationStatus
from amplifier_api_server.tenants.models import Invitation
from amplifier_api_server.tenants.repository.pages import Page


async def add(db: AsyncSession, tenant_id: TenantId, invitation: Invitation) -> None:
    """A new invitation, which must be the tenant's."""
    if invitation.tenant_id != tenant_id:
        raise ValueError(f"{invitation.id} is of another tenant")
    db.add(invitation)
    await db.flush()


async def find_by_digest_of_all_tenants(db: AsyncSession, digest: bytes) -> Invitation | None:
    """What a token is good for: it says which tenant invites."""
    return (await db.execute(select(Invitation).where(col(Invitation.digest) == digest))).scalar_one_or_none()


async def find(db: AsyncSession, tenant_id: TenantId, invitation_id: InvitationId) -> Invitation | None:
    query = select(Invitation).where(col(Invitation.tenant_id) == tenant_id, col(Invitation.id) == invitation_id)
    return (await db.execute(query)).scalar_one_or_none()


async def page(db: AsyncSession, tenant_id: TenantId, page: Page) -> list[Invitation]:
    """The tenant's, by (created_at, id)."""
    query = select(Invitation).where(col(Invitation.tenant_id) == tenant_id)
    query = page.cut(query, col(Invitation.created_at), col(Invitation.id))
    return list((await db.execute(query)).scalars())


async def count_pending(db: AsyncSession, tenant_id: TenantId, now: datetime) -> int:
    """Those that can be accepted."""
    query = (
        select(func.count())
        .select_from(Invitation)
        .where(
            col(Invitation.tenant_id) == tenant_id,
            col(Invitation.status) == InvitationStatus.PENDING.value,
            col(Invitation.expires_at) > now,
        )
    )
    return (await db.execute(query)).scalar_one()


async def accept(
    db: AsyncSession, tenant_id: TenantId, invitation_id: InvitationId, member_id: MemberId, now: datetime
) -> bool:
    """Compare-and-swap from pending; whether it was."""
    statement = (
        update(Invitation)
        .where(
            col(Invitation.tenant_id) == tenant_id,
            col(Invitation.id) == invitation_id,
            col(Invitation.status) == InvitationStatus.PENDING.value,
        )
        .values(status=InvitationStatus.ACCEPTED.value, accepted_at=now, member_id=member_id)
        .returning(col(Invitation.id))
    )
    return (await db.execute(statement)).first() is not None


async def revoke(db: AsyncSession, tenant_id: TenantId, invitation_id: InvitationId) -> Invitation | None:
    """The invitation, if it was pending."""
    statement = (
        update(Invitation)
        .where(
            col(Invitation.tenant_id) == tenant_id,
            col(Invitation.id) == invitation_id,
            col(Invitation.status) == InvitationStatus.PENDING.value,
        )
        .values(status=InvitationStatus.REVOKED.value)
        .returning(Invitation)
    )
    return (await db.execute(statement)).scalar_one_or_none()


async def revoke_of_member(db: AsyncSession, tenant_id: TenantId, member_id: MemberId) -> None:
    """Every pending one that this member made."""
    statement = (
        update(Invitation)
        .where(
            col(Invitation.tenant_id) == tenant_id,
            col(Invitation.created_by) == member_id,
            col(Invitation.status) == InvitationStatus.PENDING.value,
        )
        .values(status=InvitationStatus.REVOKED.value)
    )
    await db.execute(statement)
