"""Rows of installed collections."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.images import trees_of
from amplifier_api_server.tenants.lifecycle import TenantStatus
from amplifier_api_server.tenants.models import Collection, Tenant
from amplifier_api_server.tenants.repository.pages import IN_ORDER, Page


async def put(db: AsyncSession, tenant_id: TenantId, collection: Collection) -> None:
    """Install, or replace the one of the same name."""
    await remove(db, tenant_id, collection.name)
    if collection.tenant_id != tenant_id:
        raise ValueError(f"{collection.id} is of another tenant")
    db.add(collection)
    await db.flush()


async def page(db: AsyncSession, tenant_id: TenantId, page: Page = IN_ORDER) -> list[Collection]:
    """By name."""
    query = page.cut(select(Collection).where(col(Collection.tenant_id) == tenant_id), col(Collection.name))
    return list((await db.execute(query)).scalars())


async def find(db: AsyncSession, tenant_id: TenantId, name: str) -> Collection | None:
    query = select(Collection).where(col(Collection.tenant_id) == tenant_id, col(Collection.name) == name)
    return (await db.execute(query)).scalar_one_or_none()


async def remove(db: AsyncSession, tenant_id: TenantId, name: str) -> bool:
    """Whether there was one."""
    statement = delete(Collection).where(col(Collection.tenant_id) == tenant_id, col(Collection.name) == name)
    return (await db.execute(statement.returning(col(Collection.id)))).first() is not None


async def remove_of_deleted_of_all_tenants(db: AsyncSession) -> None:
    """Those of tenants that are deleted."""
    deleted = select(col(Tenant.id)).where(col(Tenant.status) == TenantStatus.DELETED.value)
    await db.execute(delete(Collection).where(col(Collection.tenant_id).in_(deleted)))


async def content_hashes_of_all_tenants(db: AsyncSession) -> set[str]:
    """Of every tree of everything installed by anybody."""
    return {tree for image in (await db.execute(select(col(Collection.image)))).scalars() for tree in trees_of(image)}
