"""Rows of turns and of their events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, false, insert, not_, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.errors import Conflict
from amplifier_api_server.tenants.ids import RuntimeId, SessionId, TenantId, TurnId
from amplifier_api_server.tenants.lifecycle import TurnStatus
from amplifier_api_server.tenants.models import Turn, TurnEvents
from amplifier_api_server.tenants.repository.pages import Page


async def begin(db: AsyncSession, tenant_id: TenantId, values: dict[str, Any]) -> None:
    """A running turn. Conflict (`turn_running`) where another one runs in the session: the index decides."""
    try:
        await db.execute(insert(Turn).values(tenant_id=tenant_id, status=TurnStatus.RUNNING.value, **values))
    except IntegrityError as error:
        raise Conflict(
            "another turn is running in this session; wait for its end, or cancel it", code="turn_running"
        ) from error


async def find(db: AsyncSession, tenant_id: TenantId, session_id: SessionId, turn_id: TurnId) -> Turn | None:
    query = select(Turn).where(
        col(Turn.id) == turn_id, col(Turn.session_id) == session_id, col(Turn.tenant_id) == tenant_id
    )
    return (await db.execute(query)).scalar_one_or_none()


async def running(db: AsyncSession, tenant_id: TenantId, session_id: SessionId) -> str | None:
    """The id of the session's running turn."""
    query = select(col(Turn.id)).where(
        col(Turn.session_id) == session_id,
        col(Turn.tenant_id) == tenant_id,
        col(Turn.status) == TurnStatus.RUNNING.value,
    )
    return (await db.execute(query)).scalar_one_or_none()


async def place(db: AsyncSession, tenant_id: TenantId, turn_id: TurnId, runtime_id: RuntimeId) -> None:
    """Where the turn runs."""
    await db.execute(
        update(Turn).where(col(Turn.id) == turn_id, col(Turn.tenant_id) == tenant_id).values(runtime_id=runtime_id)
    )


async def finish(db: AsyncSession, tenant_id: TenantId, turn_id: TurnId, **values: Any) -> bool:
    """Compare-and-swap from running to how it ended; False when it had ended already, and nothing is changed."""
    statement = (
        update(Turn)
        .where(col(Turn.id) == turn_id, col(Turn.tenant_id) == tenant_id, col(Turn.status) == TurnStatus.RUNNING.value)
        .values(**values)
        .returning(col(Turn.id))
    )
    return (await db.execute(statement)).first() is not None


async def set_spent(db: AsyncSession, tenant_id: TenantId, turn_id: TurnId, **totals: int | None) -> None:
    """What the turn used so far, by its columns; in the transaction that appends the ledger rows of the latest calls."""
    await db.execute(update(Turn).where(col(Turn.id) == turn_id, col(Turn.tenant_id) == tenant_id).values(**totals))


async def set_open_calls(
    db: AsyncSession, tenant_id: TenantId, turn_id: TurnId, calls: Sequence[dict[str, Any]]
) -> None:
    """What a running turn's calls used that the ledger does not have yet. Nothing, where the turn has ended."""
    await db.execute(
        update(Turn)
        .where(col(Turn.id) == turn_id, col(Turn.tenant_id) == tenant_id, col(Turn.status) == TurnStatus.RUNNING.value)
        .values(open_calls=list(calls))
    )


async def save_events(
    db: AsyncSession, tenant_id: TenantId, turn_id: TurnId, frames: bytes, state: bytes | None = None
) -> None:
    """The turn's whole stream, and the session's state as of its end; compressed by the caller."""
    await db.execute(insert(TurnEvents).values(turn_id=turn_id, tenant_id=tenant_id, frames=frames, state=state))


async def state(db: AsyncSession, tenant_id: TenantId, turn_id: TurnId) -> bytes | None:
    """The session's state as of the turn's end, compressed; None where the turn kept none."""
    query = select(col(TurnEvents.state)).where(
        col(TurnEvents.turn_id) == turn_id, col(TurnEvents.tenant_id) == tenant_id
    )
    return (await db.execute(query)).scalar_one_or_none()


WAITING = "waiting_for_approval"  # what is shown of a running turn that waits; no row says so


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which turns; None is any."""

    session_id: str | None = None
    statuses: Sequence[str] | None = None
    member_id: str | None = None
    waiting: Sequence[str] = ()  # those of the running ones that wait for a person


async def page(db: AsyncSession, tenant_id: TenantId, wanted: Wanted, page: Page) -> list[Turn]:
    """By (started_at, id)."""
    query = select(Turn).where(col(Turn.tenant_id) == tenant_id)
    if wanted.session_id is not None:
        query = query.where(col(Turn.session_id) == wanted.session_id)
    if wanted.statuses is not None:
        query = query.where(_is_one_of(wanted.statuses, wanted.waiting))
    if wanted.member_id is not None:
        query = query.where(col(Turn.member_id) == wanted.member_id)
    return list((await db.execute(page.cut(query, col(Turn.started_at), col(Turn.id)))).scalars())


def _is_one_of(statuses: Sequence[str], waiting: Sequence[str]) -> ColumnElement[bool]:
    running, waits = col(Turn.status) == TurnStatus.RUNNING.value, col(Turn.id).in_(waiting)
    return or_(
        col(Turn.status).in_([one for one in statuses if one != TurnStatus.RUNNING.value]),
        and_(running, not_(waits)) if TurnStatus.RUNNING.value in statuses else false(),
        and_(running, waits) if WAITING in statuses else false(),
    )


async def events(db: AsyncSession, tenant_id: TenantId, turn_id: TurnId) -> bytes | None:
    query = select(col(TurnEvents.frames)).where(
        col(TurnEvents.turn_id) == turn_id, col(TurnEvents.tenant_id) == tenant_id
    )
    return (await db.execute(query)).scalar_one_or_none()


async def running_of_all_tenants(db: AsyncSession, runtime_id: RuntimeId | None = None) -> list[Turn]:
    """Turns that run, of one runtime or of all."""
    query = select(Turn).where(col(Turn.status) == TurnStatus.RUNNING.value)
    if runtime_id is not None:
        query = query.where(col(Turn.runtime_id) == runtime_id)
    return list((await db.execute(query)).scalars())
