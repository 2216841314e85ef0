"""A session's messages by the bytes that they have: what is read at once is bounded by them, not by a count alone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Text, cast, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import SessionId, TenantId
from amplifier_api_server.tenants.models import Message

ROW_BYTES = 1024  # what a row costs beside its text: a hundred thousand empty messages are no small answer


async def weights(
    db: AsyncSession, tenant_id: TenantId, session_id: SessionId, *, after: int, limit: int
) -> list[tuple[int, int]]:
    """The number and the bytes, about, of each of the first `limit` messages after number `after`, in order."""
    query = (
        select(col(Message.seq), func.length(cast(col(Message.body), Text)) + ROW_BYTES)
        .where(col(Message.session_id) == session_id, col(Message.tenant_id) == tenant_id, col(Message.seq) > after)
        .order_by(col(Message.seq))
        .limit(limit)
    )
    return [(seq, weight) for seq, weight in (await db.execute(query)).all()]


async def last_number(db: AsyncSession, tenant_id: TenantId, session_id: SessionId) -> int:
    """The number of the newest message; -1 where there is none."""
    query = select(func.coalesce(func.max(col(Message.seq)), -1)).where(
        col(Message.session_id) == session_id, col(Message.tenant_id) == tenant_id
    )
    return int((await db.execute(query)).scalar_one())


@dataclass(frozen=True, slots=True)
class About:
    """A message without its body."""

    turn_id: str
    created_at: datetime
    chars: int  # of its body, as JSON


async def about(db: AsyncSession, tenant_id: TenantId, session_id: SessionId, seq: int) -> About | None:
    query = select(col(Message.turn_id), col(Message.created_at), func.length(cast(col(Message.body), Text))).where(
        col(Message.session_id) == session_id, col(Message.tenant_id) == tenant_id, col(Message.seq) == seq
    )
    found = (await db.execute(query)).one_or_none()
    return About(found[0], found[1], found[2]) if found is not None else None


async def text_of_body(
    db: AsyncSession, tenant_id: TenantId, session_id: SessionId, seq: int, *, begin: int, count: int
) -> str:
    """Of one message's body, as JSON, `count` characters from the one at `begin`; fewer at its end."""
    query = select(func.substr(cast(col(Message.body), Text), begin + 1, count)).where(
        col(Message.session_id) == session_id, col(Message.tenant_id) == tenant_id, col(Message.seq) == seq
    )
    return (await db.execute(query)).scalar_one_or_none() or ""
