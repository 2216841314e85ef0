"""Rows of devices that wait for a person's word. A grant belongs to no tenant before somebody has given it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select, update
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


async def waiting_by_network_of_all_tenants(db: AsyncSession, now: datetime) -> dict[str | None, int]:
    """How many of each network nobody has decided on yet."""
    query = select(col(DeviceGrant.network), func.count()).where(*_waits(now)).group_by(col(DeviceGrant.network))
    rows: Iterable[Any] = await db.execute(query)
    return {network: int(count) for network, count in rows}


async def forget_oldest_of_all_tenants(db: AsyncSession, network: str | None, now: datetime, count: int) -> None:
    """Of those of the network that nobody has decided on yet."""
    waits = select(col(DeviceGrant.id)).where(col(DeviceGrant.network) == network, *_waits(now))
    oldest = waits.order_by(col(DeviceGrant.created_at), col(DeviceGrant.id)).limit(count)
    await db.execute(delete(DeviceGrant).where(col(DeviceGrant.id).in_(oldest)))


def _waits(now: datetime) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return col(DeviceGrant.status) == "pending", col(DeviceGrant.expires_at) > now


async def delete_over_of_all_tenants(db: AsyncSession, before: datetime, limit: int) -> int:
    """Forget those that were over before then; how many."""
    over = select(col(DeviceGrant.id)).where(col(DeviceGrant.expires_at) < before).limit(limit)
    statement = delete(DeviceGrant).where(col(DeviceGrant.id).in_(over)).returning(col(DeviceGrant.id))
    return len((await db.execute(statement)).all())
