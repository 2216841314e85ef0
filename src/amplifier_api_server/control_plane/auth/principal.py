"""Who is calling, once that is known: what every service takes as its first argument."""

from __future__ import annotations

from dataclasses import dataclass

from amplifier_api_server.tenants.ids import KeyId, MemberId, TenantId
from amplifier_api_server.tenants.permissions import allows
from amplifier_api_server.tenants.tiers import Limits


@dataclass(frozen=True, slots=True)
class Principal:
    """A member of a tenant by one of its keys; or the operator, who belongs to no tenant."""

    key_id: KeyId
    tenant_id: TenantId  # "" for the operator
    member_id: MemberId  # the user that limits are counted for; "op_" + key id for the operator
    role: str
    grants: frozenset[str]
    tier: str
    limits: Limits  # the tier's, with every override laid over it

    @property
    def is_operator(self) -> bool:
        return self.tenant_id == ""

    def may(self, permission: str) -> bool:
        return allows(self.grants, permission)
