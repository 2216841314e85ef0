"""Rows of the ledger: appended, never changed. Every report adds up the same rows, so that every grouping has one
total.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Row, case, cast, func, select
from sqlalchemy import String as Text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import TenantId, TurnId
from amplifier_api_server.tenants.models import Usage

GroupBy = Literal["session", "day", "model", "member"]


@dataclass(frozen=True, slots=True)
class Span:
    """From inclusive, to exclusive; None is open. A date counts whole UTC days, a time what was recorded since or
    before.
    """

    begins: date | datetime | None = None
    ends: date | datetime | None = None


@dataclass(frozen=True, slots=True)
class Sum:
    """What one group used; `key` is "" for all of them."""

    key: str
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    turns: int
    cached_tokens: int  # of the prompts: read from the providers' caches
    cache_write_tokens: int  # of the prompts: written to them
    reasoning_tokens: int  # of the completions
    cost_microdollars: int  # of calls with the operator's keys, as far as their prices are known
    own_key_cost_microdollars: int  # of calls with the tenant's own keys, which the operator was not charged
    unpriced_tokens: int  # of calls whose price is not known: they are in neither cost


@dataclass(frozen=True, slots=True)
class Report:
    totals: Sum  # over the whole span, whatever page this is
    groups: Sequence[Sum]  # by key, ascending
    next_key: str | None  # the last key of this page, when there are more


async def append(db: AsyncSession, tenant_id: TenantId, rows: Sequence[Usage]) -> int:
    """Write what is not written yet, told apart by `source`; how many were new. Safe to call again with the same
    rows.
    """
    if not rows:
        return 0
    values = [row.model_dump(exclude={"id"}) for row in rows]
    for row in rows:
        if row.tenant_id != tenant_id:
            raise ValueError(f"{row.source} is of another tenant")
    dialect = db.get_bind().dialect.name
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = insert(Usage).values(values).on_conflict_do_nothing(index_elements=["source"])
    return len((await db.execute(statement.returning(col(Usage.id)))).all())


async def sources_of(db: AsyncSession, tenant_id: TenantId, turn_id: TurnId) -> set[str]:
    """What the ledger has of one turn."""
    query = select(col(Usage.source)).where(col(Usage.turn_id) == turn_id, col(Usage.tenant_id) == tenant_id)
    return set((await db.execute(query)).scalars())


async def spent_on(db: AsyncSession, tenant_id: TenantId, day: date) -> int:
    """Tokens of one UTC day."""
    query = select(func.coalesce(func.sum(col(Usage.total_tokens)), 0))
    query = query.where(col(Usage.tenant_id) == tenant_id, col(Usage.day) == day)
    return int((await db.execute(query)).scalar_one())


async def report(
    db: AsyncSession, tenant_id: TenantId, group_by: GroupBy, span: Span, *, after: str | None, limit: int
) -> Report:
    """Sums by group, from the key after `after` on. One transaction sees one ledger: totals and groups agree exactly."""
    where = [col(Usage.tenant_id) == tenant_id, *_within(span)]
    totals = _sum("", (await db.execute(select(*_sums()).where(*where))).one())
    key = _key(group_by)
    query = select(key, *_sums()).where(*where).group_by(key).order_by(key).limit(limit + 1)
    if after is not None:
        query = query.where(key > after)
    groups = [_sum(str(row[0]), row[1:]) for row in await db.execute(query)]
    next_key = groups[limit - 1].key if len(groups) > limit else None
    return Report(totals, groups[:limit], next_key)


def _sums() -> list[ColumnElement[Any]]:
    """In the order of `Sum`."""
    cost, is_own = col(Usage.cost_microdollars), col(Usage.own_key)
    columns: list[Any] = [
        col(Usage.prompt_tokens),
        col(Usage.completion_tokens),
        col(Usage.total_tokens),
        col(Usage.turns),
        col(Usage.cached_tokens),
        col(Usage.cache_write_tokens),
        col(Usage.reasoning_tokens),
        case((is_own, 0), else_=cost),
        case((is_own, cost), else_=0),
        case((cost.is_(None), col(Usage.total_tokens)), else_=0),
    ]
    return [func.coalesce(func.sum(column), 0) for column in columns]


def _sum(key: str, row: Row[Any] | Sequence[Any]) -> Sum:
    return Sum(key, *(int(value) for value in row))


def _key(group_by: GroupBy) -> ColumnElement[Any]:
    table = Usage.__table__.c  # type: ignore[attr-defined]  # SQLModel's metaclass adds it
    column: ColumnElement[Any] = {
        "session": table.session_id,
        "model": table.model,
        "member": table.member_id,
        "day": cast(table.day, Text),  # ISO, so that text sorts as days do
    }[group_by]
    return column


def _within(span: Span) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    for bound, is_begin in ((span.begins, True), (span.ends, False)):
        if bound is None:
            continue
        if isinstance(bound, datetime):
            column = col(Usage.recorded_at)
            found.append(column >= bound if is_begin else column < bound)
        else:
            day = col(Usage.day)
            found.append(day >= bound if is_begin else day < bound)
    return found
