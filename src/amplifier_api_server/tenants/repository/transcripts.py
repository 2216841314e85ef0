"""A session's messages as the text that is stored, and by the bytes that they have.

A transcript of megabytes is copied, sent and exported without being parsed: what it holds costs the event loop nothing.
What is read at once is bounded by bytes, not by a count alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import LargeBinary, Text, case, cast, func, insert, literal, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import SessionId, TenantId
from amplifier_api_server.tenants.json_columns import bytes_of
from amplifier_api_server.tenants.models import Message, UtcDateTime
from amplifier_api_server.tenants.repository.pages import IN_ORDER, Page

ROW_BYTES = 1024  # what a row costs beside its text: a hundred thousand empty messages are no small answer


@dataclass(frozen=True, slots=True)
class Written:
    """A message as it is stored; where that is no JSON object, `text` is an empty one and `is_spoiled` says so."""

    seq: int
    turn_id: str
    created_at: datetime
    text: str
    is_spoiled: bool


async def written(db: AsyncSession, tenant_id: TenantId, session_id: SessionId, page: Page = IN_ORDER) -> list[Written]:
    """Messages by their numbers."""
    text = cast(col(Message.body), Text)
    is_json = case((func.json_valid(text) == 1, func.json_type(text) == "object"), else_=False)
    query = select(col(Message.seq), col(Message.turn_id), col(Message.created_at), text, is_json).where(
        col(Message.session_id) == session_id, col(Message.tenant_id) == tenant_id
    )
    query = page.cut(query, col(Message.seq))
    return [
        Written(seq, turn_id, created_at, body if is_object else "{}", not is_object)
        for seq, turn_id, created_at, body, is_object in (await db.execute(query)).all()
    ]


async def copy(
    db: AsyncSession, tenant_id: TenantId, source: SessionId, target: SessionId, *, until: int, now: datetime
) -> None:
    """Give `target`, which has none, the messages of `source` up to number `until`."""
    same = [col(Message.seq), col(Message.tenant_id), col(Message.turn_id), col(Message.role), col(Message.body)]
    columns: list[Any] = [literal(target), *same, literal(now, UtcDateTime())]
    found = select(*columns).where(
        col(Message.session_id) == source, col(Message.tenant_id) == tenant_id, col(Message.seq) <= until
    )
    names = ["session_id", "seq", "tenant_id", "turn_id", "role", "body", "created_at"]
    await db.execute(insert(Message).from_select(names, found))


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of a transcript there is up to a message."""

    last: int  # its number; -1 where there is none
    size_bytes: int
    turns: int


async def extent(
    db: AsyncSession, tenant_id: TenantId, session_id: SessionId, *, until_turn: str | None = None
) -> Extent:
    """Of the transcript up to the last message of `until_turn`; None: of all of it."""
    here = (col(Message.session_id) == session_id, col(Message.tenant_id) == tenant_id)
    of_turn = here if until_turn is None else (*here, col(Message.turn_id) == until_turn)
    last = int((await db.execute(select(func.coalesce(func.max(col(Message.seq)), -1)).where(*of_turn))).scalar_one())
    size = func.coalesce(func.sum(bytes_of(col(Message.body))), 0)
    query = select(size, func.count(col(Message.turn_id).distinct())).where(*here, col(Message.seq) <= last)
    size_bytes, count = (await db.execute(query)).one()
    return Extent(last, size_bytes, count)


async def weights(db: AsyncSession, tenant_id: TenantId, session_id: SessionId, page: Page) -> list[tuple[int, int]]:
    """The number and the bytes, about, of each message of the page."""
    query = select(col(Message.seq), bytes_of(col(Message.body)) + ROW_BYTES).where(
        col(Message.session_id) == session_id, col(Message.tenant_id) == tenant_id
    )
    return [(seq, weight) for seq, weight in (await db.execute(page.cut(query, col(Message.seq)))).all()]


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
    size_bytes: int  # of its body, as JSON


async def about(db: AsyncSession, tenant_id: TenantId, session_id: SessionId, seq: int) -> About | None:
    query = select(col(Message.turn_id), col(Message.created_at), bytes_of(col(Message.body))).where(
        col(Message.session_id) == session_id, col(Message.tenant_id) == tenant_id, col(Message.seq) == seq
    )
    found = (await db.execute(query)).one_or_none()
    return About(found[0], found[1], found[2]) if found is not None else None


async def part_of_body(
    db: AsyncSession, tenant_id: TenantId, session_id: SessionId, seq: int, *, begin: int, count: int
) -> bytes:
    """Of one message's body, as JSON, `count` bytes from the one at `begin`; fewer at its end."""
    query = select(func.substr(cast(col(Message.body), LargeBinary), begin + 1, count)).where(
        col(Message.session_id) == session_id, col(Message.tenant_id) == tenant_id, col(Message.seq) == seq
    )
    return (await db.execute(query)).scalar_one_or_none() or b""
