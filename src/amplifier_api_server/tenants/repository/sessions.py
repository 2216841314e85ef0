"""Rows of sessions and of their messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer
from sqlmodel import col

from amplifier_api_server.tenants.ids import MemberId, RuntimeId, SessionId, TenantId
from amplifier_api_server.tenants.images import trees_of_all
from amplifier_api_server.tenants.json_columns import JsonText
from amplifier_api_server.tenants.lifecycle import SessionStatus, TenantStatus, TurnStatus, require_session_move
from amplifier_api_server.tenants.models import Message, Session, Tenant, Turn
from amplifier_api_server.tenants.repository.pages import IN_ORDER, Page

_LIGHT = (defer(Session.plan, raiseload=True), defer(Session.state, raiseload=True))  # type: ignore[arg-type]

OPEN = (SessionStatus.ACTIVE.value, SessionStatus.SUSPENDED.value, SessionStatus.FAILED.value)
_STAYS_OPEN = (col(Session.status).in_(OPEN), col(Session.closes_with_turn).is_(False))


async def add(db: AsyncSession, tenant_id: TenantId, session: Session) -> None:
    """A new session, which must be the tenant's."""
    if session.tenant_id != tenant_id:
        raise ValueError(f"{session.id} is of another tenant")
    db.add(session)
    await db.flush()


async def find(db: AsyncSession, tenant_id: TenantId, session_id: SessionId) -> Session | None:
    found = await db.execute(select(Session).where(col(Session.id) == session_id, col(Session.tenant_id) == tenant_id))
    return found.scalar_one_or_none()


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which sessions; None is any."""

    statuses: Sequence[str] = OPEN
    profile: str | None = None
    member_id: str | None = None


async def page(db: AsyncSession, tenant_id: TenantId, wanted: Wanted, page: Page) -> list[Session]:
    """By (created_at, id); without their plans and states, which a sandbox made, and made as large as it may."""
    query = select(Session).options(*_LIGHT).where(col(Session.tenant_id) == tenant_id)
    query = query.where(col(Session.status).in_(wanted.statuses))
    if wanted.profile is not None:
        query = query.where(col(Session.profile) == wanted.profile)
    if wanted.member_id is not None:
        query = query.where(col(Session.member_id) == wanted.member_id)
    query = page.cut(query, col(Session.created_at), col(Session.id))
    return list((await db.execute(query)).scalars())


async def open_ids_of_member(db: AsyncSession, tenant_id: TenantId, member_id: MemberId) -> list[str]:
    """What counts against sessions_per_user."""
    query = select(col(Session.id)).where(
        col(Session.tenant_id) == tenant_id, col(Session.member_id) == member_id, *_STAYS_OPEN
    )
    return list((await db.execute(query)).scalars())


async def open_ids(db: AsyncSession, tenant_id: TenantId) -> list[str]:
    """What counts against tenant_sessions."""
    query = select(col(Session.id)).where(col(Session.tenant_id) == tenant_id, *_STAYS_OPEN)
    return list((await db.execute(query)).scalars())


async def change(
    db: AsyncSession, tenant_id: TenantId, session_id: SessionId, *, expected: Sequence[SessionStatus], **values: Any
) -> bool:
    """Compare-and-swap: set `values` while the status is one of `expected`; whether it was.

    Raises ValueError for a status that none of `expected` may go to.
    """
    if "status" in values:
        require_session_move(expected, SessionStatus(values["status"]))
        values["disk_is_known"] = False  # its files are measured when it is at rest
    statement = (
        update(Session)
        .where(
            col(Session.id) == session_id,
            col(Session.tenant_id) == tenant_id,
            col(Session.status).in_([status.value for status in expected]),
        )
        .values(**values)
        .returning(col(Session.id))
    )
    return (await db.execute(statement)).first() is not None


async def touch(db: AsyncSession, tenant_id: TenantId, session_id: SessionId, now: datetime) -> bool:
    """It is used now; False, and nothing is changed, where it is closed or there is none."""
    statement = (
        update(Session)
        .where(
            col(Session.id) == session_id,
            col(Session.tenant_id) == tenant_id,
            col(Session.status) != SessionStatus.CLOSED.value,
        )
        .values(last_active_at=now)
        .execution_options(synchronize_session=False)
    )
    done: CursorResult[Any] = await db.execute(statement)  # type: ignore[assignment]
    return done.rowcount == 1


async def add_messages(
    db: AsyncSession,
    tenant_id: TenantId,
    session_id: SessionId,
    turn_id: str,
    base: int,
    bodies: Sequence[dict[str, Any]],
    now: datetime,
    *,
    asked_at: datetime | None = None,
) -> None:
    """Append `bodies` as messages `base`, `base` + 1, ...; a sequence that is taken already is an IntegrityError.

    The first is what the user asked, at `asked_at`.
    """
    if not bodies:
        return
    rows = [
        {
            "session_id": session_id,
            "seq": base + index,
            "tenant_id": tenant_id,
            "turn_id": turn_id,
            "role": str(body.get("role", ""))[:32],
            "body": body,
            "created_at": now,
        }
        for index, body in enumerate(bodies)
    ]
    if asked_at is not None and rows[0]["role"] == "user":
        rows[0]["created_at"] = asked_at
    await db.execute(insert(Message), rows)


async def add_copied_messages(
    db: AsyncSession,
    tenant_id: TenantId,
    session_id: SessionId,
    messages: Sequence[tuple[str, str, JsonText]],
    now: datetime,
) -> None:
    """The first messages of a new session: of each the id of the turn that made it elsewhere ("" for none), role and body."""
    rows = [
        {
            "session_id": session_id,
            "seq": seq,
            "tenant_id": tenant_id,
            "turn_id": turn_id,
            "role": role,
            "body": text,
            "created_at": now,
        }
        for seq, (turn_id, role, text) in enumerate(messages)
    ]
    if rows:
        await db.execute(insert(Message), rows)


async def set_title(db: AsyncSession, tenant_id: TenantId, session_id: SessionId, title: str | None) -> Session | None:
    """The session with its new title; None where there is none."""
    found = await find(db, tenant_id, session_id)
    if found is not None:
        found.title = title
        await db.flush()
    return found


async def messages(
    db: AsyncSession, tenant_id: TenantId, session_id: SessionId, page: Page = IN_ORDER
) -> list[Message]:
    """Messages by their numbers."""
    query = select(Message).where(col(Message.session_id) == session_id, col(Message.tenant_id) == tenant_id)
    return list((await db.execute(page.cut(query, col(Message.seq)))).scalars())


def _of_tiers(tier: str | None, others: Sequence[str]) -> ColumnElement[bool]:
    """Sessions of tenants of one tier; or, with None, of every tier but `others`."""
    of_tier = col(Tenant.tier) == tier if tier is not None else col(Tenant.tier).not_in(others)
    return col(Session.tenant_id).in_(select(col(Tenant.id)).where(of_tier))


async def idle_of_all_tenants(
    db: AsyncSession, *, before: datetime, limit: int, tier: str | None = None, others: Sequence[str] = ()
) -> list[Session]:
    """Active sessions without a running turn that nobody used since `before`, the longest idle first.

    Of the tenants of `tier`; with None, of those of no tier among `others`.
    """
    running = select(col(Turn.session_id)).where(col(Turn.status) == TurnStatus.RUNNING.value)
    query = (
        select(Session)
        .options(*_LIGHT)
        .where(
            col(Session.status) == SessionStatus.ACTIVE.value,
            col(Session.last_active_at) < before,
            col(Session.id).not_in(running),
            _of_tiers(tier, others),
        )
        .order_by(col(Session.last_active_at))
        .limit(limit)
    )
    return list((await db.execute(query)).scalars())


async def aged_of_all_tenants(
    db: AsyncSession, *, before: datetime, limit: int, tier: str | None = None, others: Sequence[str] = ()
) -> list[Session]:
    """Sessions that are not closed and were made before `before`, the oldest first. Tiers as for `idle_of_all_tenants`."""
    query = (
        select(Session)
        .options(*_LIGHT)
        .where(col(Session.status).in_(OPEN), col(Session.created_at) < before, _of_tiers(tier, others))
        .order_by(col(Session.created_at))
        .limit(limit)
    )
    return list((await db.execute(query)).scalars())


async def follow_clock_of_all_tenants(db: AsyncSession, now: datetime) -> None:
    """What was used last in the future was used last now."""
    query = update(Session).where(col(Session.status).in_(OPEN), col(Session.last_active_at) > now)
    await db.execute(query.values(last_active_at=now))


async def cleared(db: AsyncSession, tenant_id: TenantId, session_id: SessionId) -> None:
    """Nothing is left to be done of a session that closed with its turn."""
    statement = update(Session).where(col(Session.id) == session_id, col(Session.tenant_id) == tenant_id)
    await db.execute(statement.values(closes_with_turn=False))


async def uncleared_of_all_tenants(db: AsyncSession, *, before: datetime, limit: int) -> list[Session]:
    """Sessions that close with their turn, unused since `before`, whose turn has ended or never began."""
    running = select(col(Turn.session_id)).where(col(Turn.status) == TurnStatus.RUNNING.value)
    query = (
        select(Session)
        .options(*_LIGHT)
        .where(
            col(Session.closes_with_turn).is_(True),
            col(Session.last_active_at) < before,
            col(Session.id).not_in(running),
        )
        .limit(limit)
    )
    return list((await db.execute(query)).scalars())


async def of_deleted_of_all_tenants(db: AsyncSession, *, limit: int) -> list[Session]:
    """Sessions that are not closed and whose tenant is deleted."""
    deleted = select(col(Tenant.id)).where(col(Tenant.status) == TenantStatus.DELETED.value)
    query = select(Session).options(*_LIGHT).where(col(Session.status).in_(OPEN), col(Session.tenant_id).in_(deleted))
    return list((await db.execute(query.limit(limit))).scalars())


async def leave_runtimes_of_all_tenants(db: AsyncSession, runtime_ids: Sequence[RuntimeId] | None) -> int:
    """Sessions of runtimes that are gone (None: of every runtime, after a restart) are suspended; how many."""
    query = update(Session).where(col(Session.status) == SessionStatus.ACTIVE.value)
    if runtime_ids is not None:
        query = query.where(col(Session.runtime_id).in_(runtime_ids))
    query = query.values(status=SessionStatus.SUSPENDED.value, runtime_id=None, disk_is_known=False)
    return len((await db.execute(query.returning(col(Session.id)))).all())


async def content_hashes_in_use_of_all_tenants(db: AsyncSession) -> set[str]:
    """Hashes of the trees that a session that is not closed was made with."""
    query = select(col(Session.collections)).where(
        col(Session.status).in_(OPEN), or_(col(Session.collections_key) != "")
    )
    return {tree for images in (await db.execute(query)).scalars() for tree in trees_of_all(images)}
