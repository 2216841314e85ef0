"""What a tenant keeps, by its rows: the room of its sessions' files, transcripts and profiles, and the trees that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer
from sqlmodel import col

from amplifier_api_server.tenants.ids import SessionId, TenantId
from amplifier_api_server.tenants.images import trees_of
from amplifier_api_server.tenants.lifecycle import SessionStatus
from amplifier_api_server.tenants.models import Collection, Profile, Session
from amplifier_api_server.tenants.repository.sessions import OPEN


@dataclass(frozen=True, slots=True)
class SessionsKeep:
    """Of sessions that are not closed. Files are counted as they were when each was last at rest."""

    resting_bytes: int = 0
    resting_files: int = 0
    awake_bytes: int = 0
    awake_files: int = 0
    transcript_bytes: int = 0


async def of_sessions(db: AsyncSession, tenant_id: TenantId) -> SessionsKeep:
    is_awake = col(Session.status) == SessionStatus.ACTIVE.value
    query = (
        select(
            is_awake,
            func.coalesce(func.sum(col(Session.disk_bytes)), 0),
            func.coalesce(func.sum(col(Session.disk_files)), 0),
            func.coalesce(func.sum(col(Session.transcript_bytes)), 0),
        )
        .where(col(Session.tenant_id) == tenant_id, col(Session.status).in_(OPEN))
        .group_by(is_awake)
    )
    found = {bool(awake): (int(size), int(files), int(texts)) for awake, size, files, texts in await db.execute(query)}
    resting, awake = found.get(False, (0, 0, 0)), found.get(True, (0, 0, 0))
    return SessionsKeep(resting[0], resting[1], awake[0], awake[1], resting[2] + awake[2])


async def of_profiles(db: AsyncSession, tenant_id: TenantId) -> int:
    """Characters of all versions."""
    query = select(func.coalesce(func.sum(func.length(col(Profile.content))), 0))
    return int((await db.execute(query.where(col(Profile.tenant_id) == tenant_id))).scalar_one())


async def trees(db: AsyncSession, tenant_id: TenantId) -> set[str]:
    """Of its collections, and of those that its open sessions were made with."""
    installed = select(col(Collection.image)).where(col(Collection.tenant_id) == tenant_id)
    images = list((await db.execute(installed)).scalars())
    used = select(col(Session.collections)).where(
        col(Session.tenant_id) == tenant_id, col(Session.status).in_(OPEN), col(Session.collections_key) != ""
    )
    for some in (await db.execute(used.group_by(col(Session.collections_key)))).scalars():
        images += some
    return {tree for image in images for tree in trees_of(image)}


async def unmeasured_of_all_tenants(db: AsyncSession, *, limit: int) -> Sequence[Session]:
    """Sessions at rest whose files may have changed since they were measured."""
    resting = [one for one in OPEN if one != SessionStatus.ACTIVE.value]
    query = select(Session).options(
        defer(Session.plan, raiseload=True),  # type: ignore[arg-type]
        defer(Session.state, raiseload=True),  # type: ignore[arg-type]
    )
    query = query.where(col(Session.status).in_(resting), col(Session.disk_is_known).is_(False))
    return list((await db.execute(query.order_by(col(Session.last_active_at).desc()).limit(limit))).scalars())


async def set_measured(
    db: AsyncSession, tenant_id: TenantId, session_id: SessionId, size_bytes: int, files: int
) -> None:
    """What its folder takes; nothing is changed where it is awake again."""
    await db.execute(
        update(Session)
        .where(
            col(Session.id) == session_id,
            col(Session.tenant_id) == tenant_id,
            or_(col(Session.status) != SessionStatus.ACTIVE.value),
        )
        .values(disk_bytes=size_bytes, disk_files=files, disk_is_known=True)
    )
