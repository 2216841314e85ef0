"""Rows of tenants' events: appended, read in the order of their numbers, deleted when they are old."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Table, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.models import TenantEvent
from amplifier_api_server.tenants.repository.numbers import NumberedRows

_TABLE: Table = TenantEvent.__table__  # type: ignore[attr-defined]  # SQLModel's metaclass adds it
_ROWS = NumberedRows(_TABLE)


async def add(db: AsyncSession, tenant_id: TenantId, kind: str, data: Mapping[str, Any], now: datetime) -> None:
    """One more. Every turn makes two of them: it is one statement, made once, past the row objects."""
    values = {"tenant_id": tenant_id, "type": kind, "data": dict(data), "created_at": now}
    await _ROWS.add(db, now, values)


async def page(db: AsyncSession, tenant_id: TenantId, *, after: int, limit: int) -> Sequence[TenantEvent]:
    """The tenant's events from the one after number `after` on."""
    query = select(TenantEvent).where(col(TenantEvent.tenant_id) == tenant_id, col(TenantEvent.id) > after)
    return list((await db.execute(query.order_by(col(TenantEvent.id)).limit(limit))).scalars())


async def last_before(db: AsyncSession, tenant_id: TenantId, before: datetime) -> int:
    """The number of the tenant's last event that was made before `before`; 0 where there is none."""
    query = select(func.max(col(TenantEvent.id))).where(
        col(TenantEvent.tenant_id) == tenant_id, col(TenantEvent.created_at) < before
    )
    return (await db.execute(query)).scalar_one() or 0


async def last_of_all_tenants(db: AsyncSession) -> int:
    """The highest number there is."""
    return (await db.execute(select(func.max(col(TenantEvent.id))))).scalar_one() or 0


async def told_of_all_tenants(db: AsyncSession, after: int) -> set[str]:
    """The tenants that have events after number `after`."""
    query = select(col(TenantEvent.tenant_id)).where(col(TenantEvent.id) > after).distinct()
    return set((await db.execute(query)).scalars())


async def forget_of_all_tenants(db: AsyncSession, before: datetime, limit: int) -> int:
    """Delete events that were made before `before`, `limit` at most; how many were.

    The last of them stays, of each tenant: it tells a reader who saw it from one who missed what is gone.
    """
    later = _TABLE.alias()
    is_later = later.c.tenant_id == _TABLE.c.tenant_id, later.c.id > _TABLE.c.id, later.c.created_at < before
    has_later = select(later.c.id).where(*is_later).correlate(_TABLE).exists()
    old = select(_TABLE.c.id).where(_TABLE.c.created_at < before, has_later).limit(limit)
    statement = delete(TenantEvent).where(col(TenantEvent.id).in_(old)).returning(col(TenantEvent.id))
    return len((await db.execute(statement)).all())
