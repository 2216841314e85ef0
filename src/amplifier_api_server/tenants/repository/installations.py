"""Rows of installations: jobs that install a collection, and how they ended."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import InstallationId, TenantId
from amplifier_api_server.tenants.lifecycle import InstallationStatus
from amplifier_api_server.tenants.models import Installation
from amplifier_api_server.tenants.repository.pages import Page

_KEPT = 200  # of one tenant; older ones that have ended are forgotten when another one begins


async def add(db: AsyncSession, tenant_id: TenantId, installation: Installation) -> None:
    """A new one, which must be the tenant's; the tenant's oldest ones are forgotten."""
    if installation.tenant_id != tenant_id:
        raise ValueError(f"{installation.id} is of another tenant")
    newest = (
        select(col(Installation.id))
        .where(col(Installation.tenant_id) == tenant_id)
        .order_by(col(Installation.created_at).desc(), col(Installation.id).desc())
        .limit(_KEPT)
    )
    await db.execute(
        delete(Installation).where(
            col(Installation.tenant_id) == tenant_id,
            col(Installation.status) != InstallationStatus.RUNNING.value,
            col(Installation.id).not_in(newest),
        )
    )
    db.add(installation)
    await db.flush()


async def find(db: AsyncSession, tenant_id: TenantId, installation_id: InstallationId) -> Installation | None:
    query = select(Installation).where(
        col(Installation.id) == installation_id, col(Installation.tenant_id) == tenant_id
    )
    return (await db.execute(query)).scalar_one_or_none()


async def page(db: AsyncSession, tenant_id: TenantId, page: Page) -> list[Installation]:
    """By (created_at, id)."""
    query = select(Installation).where(col(Installation.tenant_id) == tenant_id)
    query = page.cut(query, col(Installation.created_at), col(Installation.id))
    return list((await db.execute(query)).scalars())


async def change(db: AsyncSession, tenant_id: TenantId, installation_id: InstallationId, **values: Any) -> bool:
    """Set `values` while it runs; whether it did. What has ended is never changed."""
    statement = (
        update(Installation)
        .where(
            col(Installation.id) == installation_id,
            col(Installation.tenant_id) == tenant_id,
            col(Installation.status) == InstallationStatus.RUNNING.value,
        )
        .values(**values)
        .returning(col(Installation.id))
    )
    return (await db.execute(statement)).first() is not None


async def fail_running_of_all_tenants(db: AsyncSession, failure: dict[str, Any], now: datetime) -> int:
    """After a restart: whatever still says that it runs was another process's; how many there were."""
    statement = (
        update(Installation)
        .where(col(Installation.status) == InstallationStatus.RUNNING.value)
        .values(status=InstallationStatus.FAILED.value, failure=failure, finished_at=now)
        .returning(col(Installation.id))
    )
    return len((await db.execute(statement)).all())
