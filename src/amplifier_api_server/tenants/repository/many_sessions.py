"""Rows of many sessions at once: the same slice of each one's messages or turns, by one statement whatever their number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Subquery, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.json_columns import bytes_of
from amplifier_api_server.tenants.models import Message, Turn

_ROW_BYTES = 1024  # what a row costs beside its text: a hundred thousand empty messages are no small answer


@dataclass(frozen=True, slots=True)
class Slice:
    """At most `count` rows of each of these sessions. A few hundred sessions at once."""

    session_ids: tuple[str, ...]
    count: int


async def messages(db: AsyncSession, tenant_id: TenantId, of: Slice, *, after: int | None) -> list[Message]:
    """Messages in order: of each session those after number `after`, or with None its newest."""
    ranked = _ranked_messages(tenant_id, of, after)
    query = (
        select(Message)
        .join(ranked, (ranked.c.session_id == col(Message.session_id)) & (ranked.c.seq == col(Message.seq)))
        .where(ranked.c.place <= of.count, col(Message.tenant_id) == tenant_id)
        .order_by(col(Message.session_id), col(Message.seq))
    )
    return list((await db.execute(query)).scalars())


async def weight_of_messages(db: AsyncSession, tenant_id: TenantId, of: Slice, *, after: int | None) -> int:
    """How many bytes `messages` would read, about."""
    ranked = _ranked_messages(tenant_id, of, after)
    query = (
        select(func.coalesce(func.sum(bytes_of(col(Message.body)) + _ROW_BYTES), 0))
        .join(ranked, (ranked.c.session_id == col(Message.session_id)) & (ranked.c.seq == col(Message.seq)))
        .where(ranked.c.place <= of.count, col(Message.tenant_id) == tenant_id)
    )
    return int((await db.execute(query)).scalar_one())


async def turns(db: AsyncSession, tenant_id: TenantId, of: Slice, *, before: tuple[Any, ...] | None) -> list[Turn]:
    """Of each session its newest turns, those older than `before` (started_at, id)."""
    ranked = _ranked_turns(tenant_id, of, before)
    query = (
        select(Turn)
        .join(ranked, ranked.c.id == col(Turn.id))
        .where(ranked.c.place <= of.count, col(Turn.tenant_id) == tenant_id)
        .order_by(col(Turn.session_id), ranked.c.place)
    )
    return list((await db.execute(query)).scalars())


async def weight_of_turns(db: AsyncSession, tenant_id: TenantId, of: Slice, *, before: tuple[Any, ...] | None) -> int:
    """How many bytes `turns` would read, about."""
    ranked = _ranked_turns(tenant_id, of, before)
    size = bytes_of(col(Turn.response)) + bytes_of(col(Turn.tool_calls)) + _ROW_BYTES
    query = (
        select(func.coalesce(func.sum(size), 0))
        .join(ranked, ranked.c.id == col(Turn.id))
        .where(ranked.c.place <= of.count, col(Turn.tenant_id) == tenant_id)
    )
    return int((await db.execute(query)).scalar_one())


def _ranked_messages(tenant_id: TenantId, of: Slice, after: int | None) -> Subquery:
    order: ColumnElement[Any] = col(Message.seq).desc() if after is None else col(Message.seq).asc()
    place = func.row_number().over(partition_by=col(Message.session_id), order_by=order).label("place")
    query = select(col(Message.session_id), col(Message.seq), place).where(
        col(Message.tenant_id) == tenant_id, col(Message.session_id).in_(of.session_ids)
    )
    return (query if after is None else query.where(col(Message.seq) > after)).subquery()


def _ranked_turns(tenant_id: TenantId, of: Slice, before: tuple[Any, ...] | None) -> Subquery:
    order = (col(Turn.started_at).desc(), col(Turn.id).desc())
    place = func.row_number().over(partition_by=col(Turn.session_id), order_by=order).label("place")
    query = select(col(Turn.id), place).where(
        col(Turn.tenant_id) == tenant_id, col(Turn.session_id).in_(of.session_ids)
    )
    if before is not None:
        query = query.where(tuple_(col(Turn.started_at), col(Turn.id)) < before)
    return query.subquery()
