"""Rows of tenants' own provider keys: one of each tenant for a provider, encrypted before it comes here."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.models import ProviderKey


async def put(db: AsyncSession, tenant_id: TenantId, row: ProviderKey) -> None:
    """Write it in the place of the one that there is."""
    if row.tenant_id != tenant_id:
        raise ValueError(f"{row.id} is of another tenant")
    await remove(db, tenant_id, row.provider)
    db.add(row)
    await db.flush()


async def find(db: AsyncSession, tenant_id: TenantId, provider: str) -> ProviderKey | None:
    query = select(ProviderKey).where(col(ProviderKey.tenant_id) == tenant_id, col(ProviderKey.provider) == provider)
    return (await db.execute(query)).scalar_one_or_none()


async def all_of(db: AsyncSession, tenant_id: TenantId) -> Sequence[ProviderKey]:
    """By provider."""
    query = select(ProviderKey).where(col(ProviderKey.tenant_id) == tenant_id).order_by(col(ProviderKey.provider))
    return (await db.execute(query)).scalars().all()


async def remove(db: AsyncSession, tenant_id: TenantId, provider: str) -> bool:
    """False: there was none."""
    statement = delete(ProviderKey).where(
        col(ProviderKey.tenant_id) == tenant_id, col(ProviderKey.provider) == provider
    )
    return (await db.execute(statement.returning(col(ProviderKey.id)))).first() is not None


async def remove_all(db: AsyncSession, tenant_id: TenantId) -> None:
    """The tenant is deleted: nothing that it entrusted to us is kept."""
    await db.execute(delete(ProviderKey).where(col(ProviderKey.tenant_id) == tenant_id))


async def stored_of_all_tenants(db: AsyncSession, limit: int) -> Sequence[ProviderKey]:
    """For the check at the start: can they be opened?"""
    query = select(ProviderKey).order_by(col(ProviderKey.tenant_id), col(ProviderKey.provider)).limit(limit)
    return (await db.execute(query)).scalars().all()
