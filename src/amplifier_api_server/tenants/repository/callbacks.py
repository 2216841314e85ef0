"""Rows of callbacks: what callers want to be told when a turn has ended, and how far the telling is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import SessionId, TenantId, TurnId
from amplifier_api_server.tenants.lifecycle import CallbackStatus
from amplifier_api_server.tenants.models import TurnCallback


async def add(db: AsyncSession, tenant_id: TenantId, row: TurnCallback) -> None:
    """In the transaction that records its turn."""
    if row.tenant_id != tenant_id:
        raise ValueError(f"{row.id} is of another tenant")
    db.add(row)
    await db.flush()


async def of_turn(db: AsyncSession, tenant_id: TenantId, session_id: SessionId, turn_id: TurnId) -> TurnCallback | None:
    query = select(TurnCallback).where(
        col(TurnCallback.turn_id) == turn_id,
        col(TurnCallback.session_id) == session_id,
        col(TurnCallback.tenant_id) == tenant_id,
    )
    return (await db.execute(query)).scalar_one_or_none()


async def make_due(db: AsyncSession, tenant_id: TenantId, turn_id: TurnId, now: datetime) -> None:
    """Its turn has ended; in the transaction that says so."""
    statement = (
        update(TurnCallback)
        .where(
            col(TurnCallback.turn_id) == turn_id,
            col(TurnCallback.tenant_id) == tenant_id,
            col(TurnCallback.status) == CallbackStatus.WAITING.value,
        )
        .values(status=CallbackStatus.DUE.value, next_at=now)
    )
    await db.execute(statement)


async def due_of_all_tenants(
    db: AsyncSession, now: datetime, *, limit: int, but_of: Sequence[str] = ()
) -> list[TurnCallback]:
    """Those whose time has come, the longest due first."""
    query = select(TurnCallback).where(
        col(TurnCallback.status) == CallbackStatus.DUE.value, col(TurnCallback.next_at) <= now
    )
    if but_of:
        query = query.where(col(TurnCallback.tenant_id).not_in(but_of))
    return list((await db.execute(query.order_by(col(TurnCallback.next_at)).limit(limit))).scalars())


async def next_of_all_tenants(db: AsyncSession) -> datetime | None:
    """When the next one is due."""
    query = select(func.min(col(TurnCallback.next_at))).where(col(TurnCallback.status) == CallbackStatus.DUE.value)
    found: datetime | None = (await db.execute(query)).scalar_one_or_none()
    return found


async def bring_forward_of_all_tenants(db: AsyncSession, now: datetime) -> None:
    """Whatever is put off is due now."""
    is_put_off = (col(TurnCallback.status) == CallbackStatus.DUE.value, col(TurnCallback.next_at) > now)
    await db.execute(update(TurnCallback).where(*is_put_off).values(next_at=now))


async def begin_attempt(db: AsyncSession, tenant_id: TenantId, row: TurnCallback, again_at: datetime) -> bool:
    """Take it for one attempt; one that is never told of ends at `again_at`. False where another process has taken it."""
    statement = (
        update(TurnCallback)
        .where(
            col(TurnCallback.id) == row.id,
            col(TurnCallback.tenant_id) == tenant_id,
            col(TurnCallback.status) == CallbackStatus.DUE.value,
            col(TurnCallback.attempts) == row.attempts,
            col(TurnCallback.next_at) == row.next_at,
        )
        .values(attempts=row.attempts + 1, next_at=again_at)
        .returning(col(TurnCallback.id))
    )
    return (await db.execute(statement)).first() is not None


async def put_off(db: AsyncSession, tenant_id: TenantId, callback_id: str, again_at: datetime, problem: str) -> None:
    """It failed, and is tried again."""
    statement = (
        update(TurnCallback)
        .where(
            col(TurnCallback.id) == callback_id,
            col(TurnCallback.tenant_id) == tenant_id,
            col(TurnCallback.status) == CallbackStatus.DUE.value,
        )
        .values(next_at=again_at, problem=problem)
    )
    await db.execute(statement)


async def finish(
    db: AsyncSession, tenant_id: TenantId, callback_id: str, status: CallbackStatus, problem: str, now: datetime
) -> None:
    """Delivered, or given up. Its secret is of no more use."""
    statement = (
        update(TurnCallback)
        .where(
            col(TurnCallback.id) == callback_id,
            col(TurnCallback.tenant_id) == tenant_id,
            col(TurnCallback.status) == CallbackStatus.DUE.value,
        )
        .values(status=status.value, problem=problem, finished_at=now, next_at=None, secret=None)
    )
    await db.execute(statement)
