"""Rows of devices that wait for a person's word. A grant belongs to no tenant before somebody has given it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.models import DeviceGrant


async def add_of_all_tenants(db: AsyncSession, grant: DeviceGrant) -> None:
    """A code that is taken is an IntegrityError."""
    db.add(grant)
    await db.flush()


async def find_by_user_digest_of_all_tenants(db: AsyncSession, digest: bytes) -> DeviceGrant | None:
    return (await db.execute(select(DeviceGrant).where(col(DeviceGrant.user_digest) == digest))).scalar_one_or_none()


async def find_by_device_digest_of_all_tenants(db: AsyncSession, digest: bytes) -> DeviceGrant | None:
    return (await db.execute(select(DeviceGrant).where(col(DeviceGrant.device_digest) == digest))).scalar_one_or_none()


async def move_of_all_tenants(db: AsyncSession, grant_id: str, before: str, now: datetime, **values: Any) -> bool:
    """Compare-and-swap from the status `before`, of one that is not over; whether it was."""
    statement = (
        update(DeviceGrant)
        .where(col(DeviceGrant.id) == grant_id, col(DeviceGrant.status) == before, col(DeviceGrant.expires_at) > now)
        .values(**values)
    )
    return (await db.execute(statement.returning(col(DeviceGrant.id)))).first() is not None


async def count_of_all_tenants(db: AsyncSession, now: datetime) -> int:
    """Those that are not over, whatever was said to them."""
    query = select(func.count()).select_from(DeviceGrant).where(col(DeviceGrant.expires_at) > now)
    return (await db.execute(query)).scalar_one()


async def delete_over_of_all_tenants(db: AsyncSession, before: datetime, limit: int) -> int:
    """Forget those that were over before then; how many."""
    over = select(col(DeviceGrant.id)).where(col(DeviceGrant.expires_at) < before).limit(limit)
    statement = delete(DeviceGrant).where(col(DeviceGrant.id).in_(over)).returning(col(DeviceGrant.id))
    return len((await db.execute(statement)).all())
