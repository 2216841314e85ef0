"""Rows of logins: browsers' sessions. They are found by what their cookie's value hashes to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import and_, bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import LoginId, PersonId
from amplifier_api_server.tenants.models import Login, Member, Role, Tenant


class LoginFacts(NamedTuple):
    """What authentication asks of a login: plain columns."""

    digest: bytes
    login_id: str
    person_id: str
    provider: str
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    tenant_id: str | None
    tenant_status: str | None
    tier: str | None
    tenant_limits: Mapping[str, Any] | None
    member_id: str | None
    member_status: str | None
    member_limits: Mapping[str, Any] | None
    role: str | None
    role_grants: Sequence[str] | None  # of a role of the tenant's own


_FACTS = (
    select(
        col(Login.digest),
        col(Login.id),
        col(Login.person_id),
        col(Login.provider),
        col(Login.created_at),
        col(Login.expires_at),
        col(Login.revoked_at),
        col(Login.tenant_id),
        col(Tenant.status),
        col(Tenant.tier),
        col(Tenant.limits),
        col(Member.id),
        col(Member.status),
        col(Member.limits),
        col(Member.role),
        col(Role.permissions),
    )
    .select_from(Login)
    .outerjoin(
        Member,
        and_(
            col(Member.id) == col(Login.member_id),
            col(Member.tenant_id) == col(Login.tenant_id),
            col(Member.person_id) == col(Login.person_id),
        ),
    )
    .outerjoin(Tenant, col(Tenant.id) == col(Login.tenant_id))
    .outerjoin(Role, and_(col(Role.tenant_id) == col(Member.tenant_id), col(Role.name) == col(Member.role)))
)


async def find_by_digest_of_all_tenants(db: AsyncSession, digests: Sequence[bytes]) -> dict[bytes, LoginFacts]:
    """At most a few hundred at once."""
    rows: Iterable[Any] = await db.execute(_FACTS.where(col(Login.digest).in_(digests)))
    return {row[0]: LoginFacts(*row) for row in rows}


async def find_of_all_tenants(db: AsyncSession, login_id: LoginId) -> LoginFacts | None:
    rows: Iterable[Any] = await db.execute(_FACTS.where(col(Login.id) == login_id))
    return next((LoginFacts(*row) for row in rows), None)


async def add_of_all_tenants(db: AsyncSession, login: Login) -> None:
    db.add(login)
    await db.flush()


async def last_of_all_tenants(db: AsyncSession, person_id: PersonId) -> Login | None:
    """The person's latest, whatever became of it."""
    query = select(Login).where(col(Login.person_id) == person_id)
    return (await db.execute(query.order_by(col(Login.created_at).desc(), col(Login.id)).limit(1))).scalar_one_or_none()


async def revoke_of_all_tenants(db: AsyncSession, login_id: LoginId, now: datetime) -> bool:
    """Whether it was not revoked before."""
    statement = update(Login).where(col(Login.id) == login_id, col(Login.revoked_at).is_(None)).values(revoked_at=now)
    return (await db.execute(statement.returning(col(Login.id)))).first() is not None


async def revoke_oldest_of_all_tenants(db: AsyncSession, person_id: PersonId, keep: int, now: datetime) -> list[str]:
    """All of a person that count but the newest `keep`; their ids."""
    counts = (col(Login.person_id) == person_id, col(Login.revoked_at).is_(None), col(Login.expires_at) > now)
    kept = select(col(Login.id)).where(*counts).order_by(col(Login.created_at).desc(), col(Login.id)).limit(keep)
    statement = update(Login).where(*counts, col(Login.id).not_in(kept)).values(revoked_at=now)
    return list((await db.execute(statement.returning(col(Login.id)))).scalars())


async def act_as_of_all_tenants(db: AsyncSession, login_id: LoginId, **values: str) -> bool:
    """Set which member (`tenant_id`, `member_id`) a login that counts acts as; whether there was one."""
    statement = update(Login).where(col(Login.id) == login_id, col(Login.revoked_at).is_(None)).values(**values)
    return (await db.execute(statement.returning(col(Login.id)))).first() is not None


async def extend_of_all_tenants(
    db: AsyncSession, used_at: Mapping[str, datetime], *, idle: timedelta, longest: timedelta
) -> None:
    """Write down when each was used last, and move its end: `idle` later, but never beyond `longest` after its begin."""
    query = select(col(Login.id), col(Login.created_at)).where(col(Login.id).in_(list(used_at)))
    rows = [
        {"login_id": login_id, "at": at, "until": min(created_at + longest, at + idle)}
        for login_id, created_at in await db.execute(query)
        for at in (used_at[login_id],)
    ]
    if not rows:
        return
    table = Login.__table__  # type: ignore[attr-defined]  # SQLModel's metaclass adds it
    statement = (
        update(table)
        .where(table.c.id == bindparam("login_id"), table.c.revoked_at.is_(None))
        .values(last_used_at=bindparam("at"), expires_at=bindparam("until"))
    )
    await db.execute(statement, rows)


async def delete_over_of_all_tenants(db: AsyncSession, before: datetime, limit: int) -> int:
    """Forget logins that ended before then; how many."""
    over = select(col(Login.id)).where(col(Login.expires_at) < before).limit(limit)
    return len((await db.execute(delete(Login).where(col(Login.id).in_(over)).returning(col(Login.id)))).all())
