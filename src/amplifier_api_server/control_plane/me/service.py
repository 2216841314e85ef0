"""Who is calling, as they are known here: for people and programs that want to know what they hold."""

from __future__ import annotations

from dataclasses import dataclass

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.tenants.errors import Unauthenticated
from amplifier_api_server.tenants.models import Member, Tenant
from amplifier_api_server.tenants.permissions import EVERYBODY
from amplifier_api_server.tenants.repository import members, tenants


@dataclass(frozen=True, slots=True)
class Me:
    """A caller; the operator has neither tenant nor member."""

    principal: Principal
    tenant: Tenant | None
    member: Member | None

    @property
    def grants(self) -> list[str]:
        """What the caller holds, what everybody does among it."""
        return sorted(self.principal.grants | EVERYBODY)


async def who(services: Management, principal: Principal) -> Me:
    """The caller with their rows. Raises Unauthenticated where those are gone since they were let in."""
    if principal.is_operator:
        return Me(principal, None, None)
    async with services.database.read() as db:
        tenant = await tenants.find(db, principal.tenant_id)
        member = await members.find(db, principal.tenant_id, principal.member_id)
    if tenant is None or member is None:
        raise Unauthenticated("the caller is not known here any more")
    return Me(principal, tenant, member)
