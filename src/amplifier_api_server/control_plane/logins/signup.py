"""A tenant for somebody who logs in and is a member of none, where the method's `signup` is `tenant`."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.audit.recording import differences, record
from amplifier_api_server.control_plane.auth_settings import OAuth2Auth
from amplifier_api_server.control_plane.members import service as members_service
from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.tenants.ids import TenantId, new_member_id, new_tenant_id
from amplifier_api_server.tenants.lifecycle import MemberStatus, TenantStatus
from amplifier_api_server.tenants.models import Member, Person, Tenant
from amplifier_api_server.tenants.permissions import Role
from amplifier_api_server.tenants.repository import tenants
from amplifier_api_server.tenants.repository.people import Membership


async def signed_up(services: Management, db: AsyncSession, method: OAuth2Auth, person: Person) -> Membership:
    """Their own tenant with them as its admin, in a transaction that the caller commits."""
    now = services.clock.now()
    tenant = Tenant(
        id=new_tenant_id(),
        name=person.name,
        tier=method.signup_tier,
        status=TenantStatus.ACTIVE.value,
        limits={},
        web={},
        created_at=now,
        updated_at=now,
    )
    tenant_id = TenantId(tenant.id)
    await tenants.add(db, tenant_id, tenant)
    member = Member(
        id=new_member_id(),
        tenant_id=tenant_id,
        name=person.name,
        role=Role.ADMIN.value,
        kind="person",
        person_id=person.id,
        email=person.email,
        limits={},
        created_at=now,
    )
    await members_service.add(services, db, member)
    changes = differences({}, {"name": tenant.name, "tier": tenant.tier, "member_id": member.id})
    await record(db, services.clock, "system", "createTenant", tenant_id=tenant_id, target=tenant_id, changes=changes)
    return Membership(tenant.id, tenant.name, tenant.status, member.id, member.role, MemberStatus.ACTIVE.value)
