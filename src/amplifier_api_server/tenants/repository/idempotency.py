"""Rows of requests that came with an Idempotency-Key."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import MemberId, TenantId
from amplifier_api_server.tenants.lifecycle import RequestStatus
from amplifier_api_server.tenants.models import AuditEntry, IdempotentRequest, Turn

_PRIMARY = ["tenant_id", "member_id", "key"]


async def claim(db: AsyncSession, tenant_id: TenantId, row: IdempotentRequest, expired_before: datetime) -> bool:
    """Write the row, unless the key is kept already; one that was kept since before `expired_before` is not any more."""
    if row.tenant_id != tenant_id:
        raise ValueError(f"{row.key!r} is of another tenant")
    insert = postgresql.insert if db.get_bind().dialect.name == "postgresql" else sqlite.insert
    values = row.model_dump()
    statement = insert(IdempotentRequest).values(values)
    statement = statement.on_conflict_do_update(
        index_elements=_PRIMARY,
        set_={name: value for name, value in values.items() if name not in _PRIMARY},
        where=col(IdempotentRequest.created_at) < expired_before,
    )
    return (await db.execute(statement.returning(col(IdempotentRequest.key)))).first() is not None


async def find(db: AsyncSession, tenant_id: TenantId, member_id: MemberId, key: str) -> IdempotentRequest | None:
    query = select(IdempotentRequest).where(_one(tenant_id, member_id, key))
    return (await db.execute(query)).scalar_one_or_none()


async def settle(
    db: AsyncSession,
    tenant_id: TenantId,
    member_id: MemberId,
    key: str,
    request_id: str,
    *,
    status: RequestStatus,
    answer: bytes | None = None,
) -> bool:
    """How the request ended, while it is the one with `request_id` that runs; whether it was."""
    statement = update(IdempotentRequest).where(_running(tenant_id, member_id, key, request_id))
    statement = statement.values(status=status.value, answer=answer)
    return (await db.execute(statement.returning(col(IdempotentRequest.key)))).first() is not None


async def release(db: AsyncSession, tenant_id: TenantId, member_id: MemberId, key: str, request_id: str) -> bool:
    """Forget the request with `request_id`, while it runs; whether it did."""
    statement = delete(IdempotentRequest).where(_running(tenant_id, member_id, key, request_id))
    return (await db.execute(statement.returning(col(IdempotentRequest.key)))).first() is not None


async def running_of_all_tenants(
    db: AsyncSession, *, limit: int, after: tuple[str, str, str] = ("", "", "")
) -> Sequence[IdempotentRequest]:
    """Requests that run, but executions, by their primary keys, those after `after`."""
    place = col(IdempotentRequest.tenant_id), col(IdempotentRequest.member_id), col(IdempotentRequest.key)
    query = select(IdempotentRequest).where(
        col(IdempotentRequest.status) == RequestStatus.RUNNING.value,
        col(IdempotentRequest.turn_id).is_(None),
        tuple_(*place) > tuple_(*after),
    )
    return list((await db.execute(query.order_by(*place).limit(limit))).scalars())


async def release_unbegun_of_all_tenants(db: AsyncSession) -> int:
    """Forget executions that were never recorded; how many. For when nothing runs."""
    has_turn = select(col(Turn.id)).where(col(Turn.id) == col(IdempotentRequest.turn_id)).exists()
    statement = delete(IdempotentRequest).where(col(IdempotentRequest.turn_id).is_not(None), ~has_turn)
    return len((await db.execute(statement.returning(col(IdempotentRequest.key)))).all())


async def was_recorded_of_all_tenants(db: AsyncSession, row: IdempotentRequest) -> bool:
    """Whether the audit log says that the request's work was done. An operator's may be in any tenant's log."""
    wanted: list[Any] = [
        col(AuditEntry.request_id) == row.request_id,
        col(AuditEntry.action) == row.operation,
        col(AuditEntry.actor) == row.member_id,
        col(AuditEntry.at) >= row.created_at,
    ]
    if row.tenant_id:
        wanted.append(col(AuditEntry.tenant_id) == row.tenant_id)
    return (await db.execute(select(col(AuditEntry.id)).where(*wanted).limit(1))).first() is not None


async def has_older_of_all_tenants(db: AsyncSession, before: datetime) -> bool:
    """Whether any is kept since before `before`."""
    query = select(col(IdempotentRequest.key)).where(col(IdempotentRequest.created_at) < before).limit(1)
    return (await db.execute(query)).first() is not None


async def forget_of_all_tenants(db: AsyncSession, before: datetime, limit: int) -> int:
    """Delete what was kept since before `before`, `limit` rows at most; how many were."""
    columns = col(IdempotentRequest.tenant_id), col(IdempotentRequest.member_id), col(IdempotentRequest.key)
    old = select(*columns).where(col(IdempotentRequest.created_at) < before).limit(limit)
    statement = delete(IdempotentRequest).where(tuple_(*columns).in_(old))
    return len((await db.execute(statement.returning(col(IdempotentRequest.key)))).all())


def _one(tenant_id: TenantId, member_id: MemberId, key: str) -> ColumnElement[bool]:
    return and_(
        col(IdempotentRequest.tenant_id) == tenant_id,
        col(IdempotentRequest.member_id) == member_id,
        col(IdempotentRequest.key) == key,
    )


def _running(tenant_id: TenantId, member_id: MemberId, key: str, request_id: str) -> ColumnElement[bool]:
    return and_(
        _one(tenant_id, member_id, key),
        col(IdempotentRequest.status) == RequestStatus.RUNNING.value,
        col(IdempotentRequest.request_id) == request_id,
    )
