"""Who is calling, once that is known: what every service takes as its first argument."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal

from amplifier_api_server.tenants.ids import CredentialId, MemberId, PersonId, TenantId
from amplifier_api_server.tenants.permissions import allows
from amplifier_api_server.tenants.tiers import Limits

Method = Literal["api_key", "bearer", "login"]


@dataclass(frozen=True, slots=True)
class Principal:
    """A member of a tenant by one of its credentials; or the operator, who belongs to no tenant."""

    credential_id: (
        CredentialId  # what was shown: "key_...", "login_...", or "jwt_" and a hash of its issuer and subject
    )
    tenant_id: TenantId  # "" for the operator
    member_id: MemberId  # the user that limits are counted for; "op_" + key id for the operator
    role: str
    grants: frozenset[str]
    tier: str
    limits: Limits  # the tier's, with every override laid over it
    method: Method = "api_key"
    expires_at: float | None = None  # seconds since the epoch: what it opened ends then
    person_id: PersonId | None = None  # of a login, and of a token of somebody who also logs in
    # What its verdict is looked up by again; only `auth` reads it. Nothing that would let anybody in.
    proof: Hashable | None = field(default=None, compare=False, repr=False)

    @property
    def is_operator(self) -> bool:
        return self.tenant_id == ""

    def may(self, permission: str) -> bool:
        return allows(self.grants, permission)
