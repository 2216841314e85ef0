"""What a role holds, what a caller holds, and that nobody gives more than that.

Owns the one rule against escalation, for roles, members, keys and invitations alike. What the caller holds is read again in
the transaction of the change: rights that were taken from somebody a moment ago can't be given on any more.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.audit.recording import By
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.tenants.errors import Forbidden, Invalid
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.lifecycle import MemberStatus
from amplifier_api_server.tenants.permissions import GRANTS, TENANT_ROLES, Role, beyond, both, is_grant
from amplifier_api_server.tenants.repository import members, roles

_EVERYTHING = frozenset({"*"})
_NAMED = 20  # permissions, in one refusal


async def grants_of(db: AsyncSession, tenant_id: TenantId, role_name: str) -> frozenset[str]:
    """What the tenant's role of this name holds, built in or its own; nothing for a name that is no role's."""
    return await _found(db, tenant_id, role_name) or frozenset()


async def given(db: AsyncSession, tenant_id: TenantId, role_name: str, by: By) -> frozenset[str]:
    """What a role holds that `by` is about to give. Raises Invalid for one that is not there, Forbidden."""
    grants = await _found(db, tenant_id, role_name)
    if grants is None:
        message = f"should be {', '.join(TENANT_ROLES)} or a role of the tenant's own; GET /v1/roles lists them"
        raise Invalid(f"role is {role_name[:80]!r}; it {message}", errors=[{"field": "role", "message": message}])
    await require_held(db, by, grants, f"the role {role_name}")
    return grants


async def _found(db: AsyncSession, tenant_id: TenantId, role_name: str) -> frozenset[str] | None:
    if role_name in TENANT_ROLES:
        return GRANTS[Role(role_name)]
    row = await roles.find(db, tenant_id, role_name)
    # What this version does not know, it does not grant: a later one may have written it.
    return frozenset(one for one in row.permissions if is_grant(one)) if row is not None else None


async def held_by(db: AsyncSession, by: By) -> frozenset[str]:
    """What `by` may give now. Raises Forbidden for a member who is active no more.

    Where the server runs, and for its operator, that is all of a tenant's: whether they may ask at all was decided before.
    """
    if not isinstance(by, Principal) or by.is_operator:
        return _EVERYTHING
    row = await members.find(db, by.tenant_id, by.member_id)
    if row is None or row.status != MemberStatus.ACTIVE:
        raise Forbidden("you are no active member of this tenant any more", code="member_disabled")
    # Of a token, its issuer may decide the roles, joined by +: the member's own says nothing then.
    names = by.role.split("+") if by.method == "bearer" else [row.role]
    now = frozenset[str]().union(*[await grants_of(db, by.tenant_id, name) for name in names])
    return both(by.grants, now)


async def require_held(db: AsyncSession, by: By, grants: Iterable[str], what: str) -> None:
    """Raise Forbidden where `grants` are more than `by` holds."""
    missing = beyond(grants, await held_by(db, by))
    if missing:
        raise Forbidden(
            f"{what} holds more than you do: {', '.join(missing[:_NAMED])}",
            code="exceeds_own_permissions",
            permissions=missing[:_NAMED],
        )
