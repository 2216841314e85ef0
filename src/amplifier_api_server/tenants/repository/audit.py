"""Rows of the audit log: appended and read. The database lets nobody change or delete one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Table, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.models import AuditEntry
from amplifier_api_server.tenants.repository.numbers import NumberedRows
from amplifier_api_server.tenants.repository.pages import Page

_TABLE: Table = AuditEntry.__table__  # type: ignore[attr-defined]  # SQLModel's metaclass adds it
_ROWS = NumberedRows(_TABLE)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries; None is any. `since` is inclusive, `until` exclusive."""

    actor: str | None = None
    action: str | None = None
    target: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def add(db: AsyncSession, tenant_id: TenantId, row: AuditEntry) -> None:
    """One more. `tenant_id` "" is the operator's own log."""
    row.tenant_id = tenant_id
    values = {one.name: getattr(row, one.name) for one in _TABLE.c if one.name != "id"}
    await _ROWS.add(db, row.at, values)


async def page(db: AsyncSession, tenant_id: TenantId, wanted: Wanted, page: Page) -> Sequence[AuditEntry]:
    """By their numbers. `tenant_id` "" is the operator's own log."""
    query = select(AuditEntry).where(*_where(tenant_id, wanted))
    return list((await db.execute(page.cut(query, col(AuditEntry.id)))).scalars())


async def span(
    db: AsyncSession, tenant_id: TenantId, wanted: Wanted, *, limit: int, after: int, up_to: int
) -> Sequence[AuditEntry]:
    """The oldest first, those after number `after` up to number `up_to`."""
    query = select(AuditEntry).where(
        *_where(tenant_id, wanted), col(AuditEntry.id) > after, col(AuditEntry.id) <= up_to
    )
    return list((await db.execute(query.order_by(col(AuditEntry.id)).limit(limit))).scalars())


async def last(db: AsyncSession, tenant_id: TenantId) -> int:
    """The number of the log's newest entry; 0 where there is none."""
    query = select(col(AuditEntry.id)).where(col(AuditEntry.tenant_id) == tenant_id)
    return (await db.execute(query.order_by(col(AuditEntry.id).desc()).limit(1))).scalar_one_or_none() or 0


def _where(tenant_id: TenantId, wanted: Wanted) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [col(AuditEntry.tenant_id) == tenant_id]
    for column, value in (
        (col(AuditEntry.actor), wanted.actor),
        (col(AuditEntry.action), wanted.action),
        (col(AuditEntry.target), wanted.target),
    ):
        if value is not None:
            found.append(column == value)
    if wanted.since is not None:
        found.append(col(AuditEntry.at) >= wanted.since)
    if wanted.until is not None:
        found.append(col(AuditEntry.at) < wanted.until)
    return found
