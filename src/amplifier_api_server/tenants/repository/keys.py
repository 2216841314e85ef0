"""Rows of API keys. An operator's key has no tenant: functions named for operators ask for those alone.

Nothing is deleted: a revoked key stays, so that what it did can be told later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, bindparam, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlmodel import col

from amplifier_api_server.tenants.ids import KeyId, MemberId, TenantId
from amplifier_api_server.tenants.models import ApiKey, Member, Tenant
from amplifier_api_server.tenants.models import Role as RoleRow
from amplifier_api_server.tenants.repository.pages import Page


class Credential(NamedTuple):
    """What authentication asks of a key: plain columns, because this is read more often than anything else."""

    digest: bytes
    key_id: str
    tenant_id: str | None
    member_id: str | None
    role: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    key_limits: Mapping[str, Any]
    member_limits: Mapping[str, Any] | None
    tenant_limits: Mapping[str, Any] | None
    tenant_status: str | None
    tier: str | None
    member_status: str | None
    member_role: str | None
    role_grants: list[str] | None  # of a role of the tenant's own
    member_grants: list[str] | None


_RoleOfKey, _RoleOfMember = aliased(RoleRow), aliased(RoleRow)

_CREDENTIAL = (
    select(
        col(ApiKey.digest),
        col(ApiKey.id),
        col(ApiKey.tenant_id),
        col(ApiKey.member_id),
        col(ApiKey.role),
        col(ApiKey.expires_at),
        col(ApiKey.revoked_at),
        col(ApiKey.last_used_at),
        col(ApiKey.limits),
        col(Member.limits),
        col(Tenant.limits),
        col(Tenant.status),
        col(Tenant.tier),
        col(Member.status),
        col(Member.role),
        col(_RoleOfKey.permissions),
        col(_RoleOfMember.permissions),
    )
    .select_from(ApiKey)
    .outerjoin(Member, and_(col(Member.id) == col(ApiKey.member_id), col(Member.tenant_id) == col(ApiKey.tenant_id)))
    .outerjoin(Tenant, col(Tenant.id) == col(ApiKey.tenant_id))
    .outerjoin(
        _RoleOfKey,
        and_(col(_RoleOfKey.tenant_id) == col(ApiKey.tenant_id), col(_RoleOfKey.name) == col(ApiKey.role)),
    )
    .outerjoin(
        _RoleOfMember,
        and_(col(_RoleOfMember.tenant_id) == col(Member.tenant_id), col(_RoleOfMember.name) == col(Member.role)),
    )
)


async def find_by_digest(db: AsyncSession, digests: Sequence[bytes]) -> dict[bytes, Credential]:
    """What is known of keys, of any tenant or of an operator, by what their texts hash to. At most a few hundred at
    once.
    """
    rows = await db.execute(_CREDENTIAL.where(col(ApiKey.digest).in_(digests)))
    return {row[0]: Credential(*row) for row in rows}


async def count(db: AsyncSession, tenant_id: TenantId, now: datetime) -> int:
    """Those that work: neither revoked nor expired."""
    query = (
        select(func.count())
        .select_from(ApiKey)
        .where(
            col(ApiKey.tenant_id) == tenant_id,
            col(ApiKey.revoked_at).is_(None),
            or_(col(ApiKey.expires_at).is_(None), col(ApiKey.expires_at) > now),
        )
    )
    return (await db.execute(query)).scalar_one()


async def add(db: AsyncSession, tenant_id: TenantId, key: ApiKey) -> None:
    """A new key, which must be the tenant's."""
    if key.tenant_id != tenant_id:
        raise ValueError(f"{key.id} is of another tenant")
    db.add(key)
    await db.flush()


async def add_of_operator(db: AsyncSession, key: ApiKey) -> None:
    """A new key of an operator."""
    if key.tenant_id is not None or key.member_id is not None:
        raise ValueError(f"{key.id} is a tenant's, not an operator's")
    db.add(key)
    await db.flush()


async def is_any_of_all_tenants(db: AsyncSession) -> bool:
    """Whether there is a key, or ever was: an operator's or a tenant's."""
    return (await db.execute(select(col(ApiKey.id)).limit(1))).first() is not None


async def find(db: AsyncSession, tenant_id: TenantId, key_id: KeyId) -> ApiKey | None:
    """The tenant's key, unless it is revoked."""
    query = select(ApiKey).where(_unrevoked_of(tenant_id), col(ApiKey.id) == key_id)
    return (await db.execute(query)).scalar_one_or_none()


async def page(db: AsyncSession, tenant_id: TenantId, page: Page) -> list[ApiKey]:
    """The tenant's keys that are not revoked, by (created_at, id)."""
    return await _page(db, _unrevoked_of(tenant_id), page)


async def page_of_operators(db: AsyncSession, page: Page) -> list[ApiKey]:
    """Operators' keys that are not revoked."""
    return await _page(db, and_(col(ApiKey.tenant_id).is_(None), col(ApiKey.revoked_at).is_(None)), page)


async def _page(db: AsyncSession, where: ColumnElement[bool], page: Page) -> list[ApiKey]:
    query = page.cut(select(ApiKey).where(where), col(ApiKey.created_at), col(ApiKey.id))
    return list((await db.execute(query)).scalars())


async def revoke(db: AsyncSession, tenant_id: TenantId, key_id: KeyId, now: datetime) -> bool:
    """Whether it was the tenant's and not revoked before."""
    statement = update(ApiKey).where(_unrevoked_of(tenant_id), col(ApiKey.id) == key_id).values(revoked_at=now)
    return (await db.execute(statement.returning(col(ApiKey.id)))).first() is not None


async def revoke_of_operator(db: AsyncSession, key_id: KeyId, now: datetime) -> bool:
    """Whether it was an operator's and not revoked before."""
    mine = and_(col(ApiKey.tenant_id).is_(None), col(ApiKey.id) == key_id, col(ApiKey.revoked_at).is_(None))
    statement = update(ApiKey).where(mine).values(revoked_at=now)
    return (await db.execute(statement.returning(col(ApiKey.id)))).first() is not None


async def revoke_all(db: AsyncSession, tenant_id: TenantId, now: datetime) -> list[str]:
    """Every key of the tenant; the ids of those that were not revoked before."""
    statement = update(ApiKey).where(_unrevoked_of(tenant_id)).values(revoked_at=now)
    return list((await db.execute(statement.returning(col(ApiKey.id)))).scalars())


async def revoke_of_member(db: AsyncSession, tenant_id: TenantId, member_id: MemberId, now: datetime) -> list[str]:
    """Every key of the member; the ids of those that were not revoked before."""
    statement = update(ApiKey).where(_unrevoked_of(tenant_id), col(ApiKey.member_id) == member_id)
    return list((await db.execute(statement.values(revoked_at=now).returning(col(ApiKey.id)))).scalars())


async def set_expiry(db: AsyncSession, tenant_id: TenantId, key_id: KeyId, expires_at: datetime) -> bool:
    """End a key at `expires_at`, or earlier where it ends earlier already; whether there was one."""
    statement = (
        update(ApiKey)
        .where(
            _unrevoked_of(tenant_id),
            col(ApiKey.id) == key_id,
            or_(col(ApiKey.expires_at).is_(None), col(ApiKey.expires_at) > expires_at),
        )
        .values(expires_at=expires_at)
    )
    return (await db.execute(statement.returning(col(ApiKey.id)))).first() is not None


async def successor(db: AsyncSession, tenant_id: TenantId, key_id: KeyId) -> str | None:
    """The id of the key that was made by rotating `key_id`, unless it is revoked."""
    query = select(col(ApiKey.id)).where(_unrevoked_of(tenant_id), col(ApiKey.rotated_from) == key_id)
    return (await db.execute(query.limit(1))).scalar_one_or_none()


async def set_last_used_of_all_tenants(db: AsyncSession, used_at: Mapping[str, datetime]) -> None:
    """When each key was used last, by id."""
    if not used_at:
        return
    table = ApiKey.__table__  # type: ignore[attr-defined]  # SQLModel's metaclass adds it
    statement = update(table).where(table.c.id == bindparam("key_id")).values(last_used_at=bindparam("used_at"))
    await db.execute(statement, [{"key_id": key_id, "used_at": at} for key_id, at in used_at.items()])


def _unrevoked_of(tenant_id: TenantId) -> ColumnElement[bool]:
    return and_(col(ApiKey.tenant_id) == tenant_id, col(ApiKey.revoked_at).is_(None))
