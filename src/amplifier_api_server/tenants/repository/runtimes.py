"""Rows of runtimes. They serve all tenants: what is asked here is the machinery's, never a caller's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import RuntimeId, TenantId
from amplifier_api_server.tenants.lifecycle import RuntimeStatus, require_runtime_move
from amplifier_api_server.tenants.models import Runtime


async def add_of_all_tenants(db: AsyncSession, runtime_id: RuntimeId, now: datetime) -> None:
    """A row that says: this one should be started."""
    db.add(Runtime(id=runtime_id, status=RuntimeStatus.STARTING.value, created_at=now))
    await db.flush()


async def wanted_of_all_tenants(db: AsyncSession) -> list[Runtime]:
    """Every row that is not gone."""
    query = select(Runtime).where(col(Runtime.status) != RuntimeStatus.GONE.value)
    return list((await db.execute(query)).scalars())


async def count_wanted_of_all_tenants(db: AsyncSession) -> int:
    """How many rows are not gone."""
    query = select(func.count()).select_from(Runtime).where(col(Runtime.status) != RuntimeStatus.GONE.value)
    return int((await db.execute(query)).scalar_one())


async def change_of_all_tenants(
    db: AsyncSession, runtime_id: RuntimeId, *, expected: Sequence[RuntimeStatus], **values: Any
) -> bool:
    """Compare-and-swap: set `values` while the status is one of `expected`; whether it was.

    Raises ValueError for a status that none of `expected` may go to.
    """
    if "status" in values:
        require_runtime_move(expected, RuntimeStatus(values["status"]))
    statement = (
        update(Runtime)
        .where(col(Runtime.id) == runtime_id, col(Runtime.status).in_([status.value for status in expected]))
        .values(**values)
        .returning(col(Runtime.id))
    )
    return (await db.execute(statement)).first() is not None


async def claim(db: AsyncSession, tenant_id: TenantId, runtime_id: RuntimeId, key: str, now: datetime) -> bool:
    """Give a warm runtime to the tenant, for good; False when somebody was faster, or it is warm no more."""
    return await change_of_all_tenants(
        db,
        runtime_id,
        expected=[RuntimeStatus.WARM],
        status=RuntimeStatus.CLAIMED.value,
        tenant_id=tenant_id,
        collections_key=key,
        claimed_at=now,
        idle_since=now,
    )


async def warm_of_all_tenants(db: AsyncSession) -> list[str]:
    """Ids of warm runtimes, the oldest first."""
    query = (
        select(col(Runtime.id)).where(col(Runtime.status) == RuntimeStatus.WARM.value).order_by(col(Runtime.created_at))
    )
    return list((await db.execute(query)).scalars())


async def claimed(db: AsyncSession, tenant_id: TenantId) -> list[Runtime]:
    """The tenant's runtimes that take sessions, the oldest first."""
    query = (
        select(Runtime)
        .where(col(Runtime.tenant_id) == tenant_id, col(Runtime.status) == RuntimeStatus.CLAIMED.value)
        .order_by(col(Runtime.claimed_at))
    )
    return list((await db.execute(query)).scalars())


async def reason_of_all_tenants(db: AsyncSession, runtime_id: RuntimeId) -> str:
    """Why it is gone, as its row says; empty where there is no row."""
    query = select(col(Runtime.reason)).where(col(Runtime.id) == runtime_id)
    return (await db.execute(query)).scalar_one_or_none() or ""


async def forget_gone_of_all_tenants(db: AsyncSession, before: datetime) -> int:
    """Delete the rows of runtimes that were gone before that; how many. Turns keep the id that they ran by."""
    statement = delete(Runtime).where(col(Runtime.status) == RuntimeStatus.GONE.value, col(Runtime.gone_at) < before)
    return len((await db.execute(statement.returning(col(Runtime.id)))).all())


async def mark_all_gone_of_all_tenants(db: AsyncSession, reason: str, now: datetime) -> int:
    """After a restart of an embedded server, whose sandboxes ended with it; how many rows were not gone."""
    statement = (
        update(Runtime)
        .where(col(Runtime.status) != RuntimeStatus.GONE.value)
        .values(status=RuntimeStatus.GONE.value, reason=reason, gone_at=now)
        .returning(col(Runtime.id))
    )
    return len((await db.execute(statement)).all())
