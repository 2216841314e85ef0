"""Rows of tenants' own profiles: versions that are never changed, the highest of a name being the current one."""

from __future__ import annotations

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.models import Profile


async def add(db: AsyncSession, tenant_id: TenantId, profile: Profile) -> None:
    """A new version; one that is taken already is an IntegrityError."""
    if profile.tenant_id != tenant_id:
        raise ValueError(f"{profile.id} is of another tenant")
    db.add(profile)
    await db.flush()


async def current(db: AsyncSession, tenant_id: TenantId) -> list[Profile]:
    """The current version of each profile that is not removed, by name."""
    highest = (
        select(col(Profile.name), func.max(col(Profile.version)).label("version"))
        .where(col(Profile.tenant_id) == tenant_id)
        .group_by(col(Profile.name))
        .subquery()
    )
    query = (
        select(Profile)
        .join(highest, (col(Profile.name) == highest.c.name) & (col(Profile.version) == highest.c.version))
        .where(col(Profile.tenant_id) == tenant_id, col(Profile.is_removed).is_(False))
        .order_by(col(Profile.name))
    )
    return list((await db.execute(query)).scalars())


async def find(db: AsyncSession, tenant_id: TenantId, name: str, version: int | None = None) -> Profile | None:
    """One version, or the highest one, which may say that the profile is removed."""
    query = select(Profile).where(col(Profile.tenant_id) == tenant_id, col(Profile.name) == name)
    if version is not None:
        query = query.where(col(Profile.version) == version)
    return (await db.execute(query.order_by(col(Profile.version).desc()).limit(1))).scalar_one_or_none()


async def forget_old(db: AsyncSession, tenant_id: TenantId, name: str, kept: int) -> int:
    """Delete all but the newest `kept` versions of a name; how many. Sessions have their plans and need none of them."""
    newest = (
        select(col(Profile.id))
        .where(col(Profile.tenant_id) == tenant_id, col(Profile.name) == name)
        .order_by(col(Profile.version).desc())
        .limit(kept)
    )
    statement = delete(Profile).where(
        col(Profile.tenant_id) == tenant_id, col(Profile.name) == name, col(Profile.id).not_in(newest)
    )
    return len((await db.execute(statement.returning(col(Profile.id)))).all())


async def forget_removed(db: AsyncSession, tenant_id: TenantId, kept: int) -> int:
    """Delete all but the newest `kept` rows that say that a profile is removed; how many. Such a name begins anew at 1."""
    newest = (
        select(col(Profile.id))
        .where(col(Profile.tenant_id) == tenant_id, col(Profile.is_removed))
        .order_by(col(Profile.created_at).desc(), col(Profile.id))
        .limit(kept)
    )
    statement = delete(Profile).where(
        col(Profile.tenant_id) == tenant_id, col(Profile.is_removed), col(Profile.id).not_in(newest)
    )
    return len((await db.execute(statement.returning(col(Profile.id)))).all())
