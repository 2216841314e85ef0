"""Rows of people and of how providers know them. A person belongs to no tenant: what they are of each is a member.

`subjects` finds and makes them; here is what is asked about one who is known, and what changes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import PersonId
from amplifier_api_server.tenants.lifecycle import MemberStatus, TenantStatus
from amplifier_api_server.tenants.models import Identity, Member, Person, Tenant

_MOST = 200  # memberships, and identities, of one person that are told


class Membership(NamedTuple):
    """What a person is of a tenant."""

    tenant_id: str
    tenant_name: str
    tenant_status: str
    member_id: str
    role: str
    status: str  # of the member


async def find_of_all_tenants(db: AsyncSession, person_id: PersonId) -> Person | None:
    return (await db.execute(select(Person).where(col(Person.id) == person_id))).scalar_one_or_none()


async def memberships_of_all_tenants(db: AsyncSession, person_id: PersonId) -> list[Membership]:
    """Of tenants that are not deleted, where they were not removed; the oldest first."""
    query = (
        select(
            col(Member.tenant_id),
            col(Tenant.name),
            col(Tenant.status),
            col(Member.id),
            col(Member.role),
            col(Member.status),
        )
        .join(Tenant, col(Tenant.id) == col(Member.tenant_id))
        .where(
            col(Member.person_id) == person_id,
            col(Member.status) != MemberStatus.REMOVED.value,
            col(Tenant.status) != TenantStatus.DELETED.value,
        )
        .order_by(col(Member.created_at), col(Member.id))
        .limit(_MOST)
    )
    return [Membership(*row) for row in await db.execute(query)]


async def identities_of_all_tenants(db: AsyncSession, person_id: PersonId) -> list[Identity]:
    query = select(Identity).where(col(Identity.person_id) == person_id)
    return list((await db.execute(query.order_by(col(Identity.created_at), col(Identity.id)).limit(_MOST))).scalars())


async def add_identity_of_all_tenants(db: AsyncSession, identity: Identity) -> None:
    """Another way to log in, of a person who is there; one that is somebody's already is an IntegrityError."""
    db.add(identity)
    await db.flush()


async def change_identity_of_all_tenants(db: AsyncSession, identity_id: str, *, name: str, email: str | None) -> None:
    """What the provider called them last."""
    await db.execute(update(Identity).where(col(Identity.id) == identity_id).values(name=name, email=email))


async def change_of_all_tenants(db: AsyncSession, person_id: PersonId, now: datetime, **values: Any) -> None:
    """Set `values`, and that they logged in."""
    await db.execute(update(Person).where(col(Person.id) == person_id).values(last_login_at=now, **values))
