"""Rows behind who a provider says somebody is: their identity, the person, and the member that they are of a tenant.

What is asked here is asked about callers before it is known whose they are, so it goes by what a verified token named.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sqlalchemy import and_, case, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from amplifier_api_server.tenants.ids import PersonId, TenantId
from amplifier_api_server.tenants.lifecycle import MemberStatus
from amplifier_api_server.tenants.models import Identity, Member, Person, Role, Tenant


class TenantFacts(NamedTuple):
    """What holds for all callers of a tenant."""

    id: str
    status: str
    tier: str
    limits: Mapping[str, Any]


class MemberFacts(NamedTuple):
    """A member by who they are elsewhere."""

    provider: str
    subject: str
    tenant_id: str
    member_id: str
    person_id: str
    status: str
    role: str
    limits: Mapping[str, Any]


async def tenants_of_all_tenants(db: AsyncSession, tenant_ids: Collection[str]) -> dict[str, TenantFacts]:
    """The tenants of these ids, whatever their status. A few hundred at once."""
    query = select(col(Tenant.id), col(Tenant.status), col(Tenant.tier), col(Tenant.limits))
    return {row[0]: TenantFacts(*row) for row in await db.execute(query.where(col(Tenant.id).in_(tenant_ids)))}


async def members_of_all_tenants(
    db: AsyncSession, wanted: Collection[tuple[str, str, str]]
) -> dict[tuple[str, str, str], MemberFacts]:
    """Members by (provider, subject, tenant). Of somebody who was removed and came back it is the one who came back."""
    query = (
        select(
            col(Identity.provider),
            col(Identity.subject),
            col(Member.tenant_id),
            col(Member.id),
            col(Identity.person_id),
            col(Member.status),
            col(Member.role),
            col(Member.limits),
        )
        .join(Member, col(Member.person_id) == col(Identity.person_id))
        .where(tuple_(col(Identity.provider), col(Identity.subject), col(Member.tenant_id)).in_(wanted))
        .order_by(case((col(Member.status) == MemberStatus.REMOVED.value, 0), else_=1))
    )
    return {(row[0], row[1], row[2]): MemberFacts(*row) for row in await db.execute(query)}


async def roles_of_all_tenants(
    db: AsyncSession, wanted: Collection[tuple[str, str]]
) -> dict[tuple[str, str], list[str]]:
    """What tenants' own roles hold, by (tenant, name)."""
    query = select(col(Role.tenant_id), col(Role.name), col(Role.permissions)).where(
        tuple_(col(Role.tenant_id), col(Role.name)).in_(wanted)
    )
    return {(row[0], row[1]): row[2] for row in await db.execute(query)}


async def member_of(db: AsyncSession, tenant_id: TenantId, person_id: PersonId) -> Member | None:
    """The member that a person is of the tenant; of somebody who was removed and came back, the one who came back."""
    query = (
        select(Member)
        .where(and_(col(Member.tenant_id) == tenant_id, col(Member.person_id) == person_id))
        .order_by(case((col(Member.status) == MemberStatus.REMOVED.value, 1), else_=0))
        .limit(1)
    )
    return (await db.execute(query)).scalar_one_or_none()


async def identity_of_all_tenants(db: AsyncSession, provider: str, subject: str) -> Identity | None:
    """How a provider knows somebody."""
    query = select(Identity).where(col(Identity.provider) == provider, col(Identity.subject) == subject)
    return (await db.execute(query)).scalar_one_or_none()


async def add_person_of_all_tenants(db: AsyncSession, person: Person, identity: Identity) -> None:
    """Somebody new, as a provider knows them; an identity that is there already is an IntegrityError."""
    if identity.person_id != person.id:
        raise ValueError(f"{identity.id} is another person's")
    db.add(person)
    await db.flush()
    db.add(identity)
    await db.flush()
