"""Rows of tenants. All of them are the operator's to see: a tenant itself is never asked for by a caller of another."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.lifecycle import TenantStatus
from amplifier_api_server.tenants.models import Tenant
from amplifier_api_server.tenants.repository.pages import Page


async def add(db: AsyncSession, tenant_id: TenantId, tenant: Tenant) -> None:
    """A new tenant."""
    if tenant.id != tenant_id:
        raise ValueError(f"{tenant.id} is not {tenant_id}")
    db.add(tenant)
    await db.flush()


async def find(db: AsyncSession, tenant_id: TenantId) -> Tenant | None:
    """The tenant, unless it is deleted."""
    query = select(Tenant).where(col(Tenant.id) == tenant_id, col(Tenant.status) != TenantStatus.DELETED.value)
    return (await db.execute(query)).scalar_one_or_none()


async def change(db: AsyncSession, tenant_id: TenantId, now: datetime, **values: Any) -> Tenant | None:
    """Set `values` of a tenant that is not deleted; how it is then."""
    statement = (
        update(Tenant)
        .where(col(Tenant.id) == tenant_id, col(Tenant.status) != TenantStatus.DELETED.value)
        .values(updated_at=now, **values)
        .returning(Tenant)
        .execution_options(populate_existing=True)
    )
    return (await db.execute(statement)).scalar_one_or_none()


async def page_of_all_tenants(db: AsyncSession, page: Page) -> list[Tenant]:
    """Those that are not deleted, by (created_at, id)."""
    query = select(Tenant).where(col(Tenant.status) != TenantStatus.DELETED.value)
    query = page.cut(query, col(Tenant.created_at), col(Tenant.id))
    return list((await db.execute(query)).scalars())


async def oldest_of_all_tenants(db: AsyncSession) -> Tenant | None:
    """The first that was ever made, deleted or not."""
    query = select(Tenant).order_by(col(Tenant.created_at), col(Tenant.id)).limit(1)
    return (await db.execute(query)).scalar_one_or_none()
