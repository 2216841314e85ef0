"""What can be done with a tenant: its keys, people and roles; and what the operator does."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import strawberry
from strawberry import ID, UNSET

from amplifier_api_server.control_plane.accounts import service as accounts
from amplifier_api_server.control_plane.accounts.schemas import CreatedTenant, CreateTenant, TenantView, UpdateTenant
from amplifier_api_server.control_plane.graphql.context import Info
from amplifier_api_server.control_plane.graphql.fields import known, parsed, root
from amplifier_api_server.control_plane.graphql.mirror import mirror, mirrored
from amplifier_api_server.control_plane.graphql.scalars import JSON
from amplifier_api_server.control_plane.graphql.tenant_queries import (
    MemberType,
    RoleType,
    TenantType,
    WebPolicyType,
)
from amplifier_api_server.control_plane.invitations import service as invitations
from amplifier_api_server.control_plane.invitations.schemas import CreatedInvitation, CreateInvitation
from amplifier_api_server.control_plane.keys import service as keys
from amplifier_api_server.control_plane.keys.schemas import CreatedKey, CreateKey, RotateKey
from amplifier_api_server.control_plane.members import service as members
from amplifier_api_server.control_plane.members.schemas import CreateMember, MemberView, UpdateMember
from amplifier_api_server.control_plane.provider_keys.schemas import ProviderKeyView, SetProviderKey
from amplifier_api_server.control_plane.roles import service as roles
from amplifier_api_server.control_plane.roles.schemas import CreateRole, RoleView, UpdateRole
from amplifier_api_server.control_plane.web import service as web
from amplifier_api_server.control_plane.web.policy import policy_of
from amplifier_api_server.control_plane.web.schemas import SetWebPolicy, WebPolicyView
from amplifier_api_server.tenants.ids import InvitationId, KeyId, MemberId, TenantId
from amplifier_api_server.tenants.lifecycle import MemberStatus, TenantStatus

CreatedKeyType = mirror(CreatedKey, "CreatedKey")
CreatedInvitationType = mirror(CreatedInvitation, "CreatedInvitation")
CreatedTenantType = mirror(CreatedTenant, "CreatedTenant")
ProviderKeyType = mirrored(ProviderKeyView)


def _given(**values: Any) -> dict[str, Any]:
    """What the caller gave: an argument that was left out stays out."""
    return {name: value for name, value in values.items() if value is not UNSET and value is not None}


@strawberry.type
class TenantMutations:
    @root("createKey", CreatedKeyType, keeps=CreatedKey)
    async def create_key(
        self,
        info: Info,
        name: str,
        role: str,
        expires_at: datetime | None = None,
        member_id: ID | None = None,
        limits: JSON | None = None,
    ) -> CreatedKey:
        """Create a key of your tenant. The answer holds it, once."""
        who = info.context.principal
        body = parsed(
            CreateKey, **_given(name=name, role=role, expires_at=expires_at, member_id=member_id, limits=limits)
        )
        return CreatedKey.of_new(await keys.create(info.context.services, who.tenant_id, body.wish(), who))

    @root("revokeKey", bool)
    async def revoke_key(self, info: Info, id: ID) -> bool:  # noqa: A002 - the argument's name
        """Revoke a key: it is refused from now on, and streams that were opened with it end."""
        who = info.context.principal
        await keys.revoke(info.context.services, who.tenant_id, KeyId(id), who)
        return True

    @root("rotateKey", CreatedKeyType, keeps=CreatedKey)
    async def rotate_key(self, info: Info, id: ID, overlap: int | None = None) -> CreatedKey:  # noqa: A002
        """Replace a key by a new one of the same member; the old one works on for `overlap` seconds."""
        who = info.context.principal
        body = parsed(RotateKey, **_given(overlap=overlap))
        made = await keys.rotate(info.context.services, who.tenant_id, KeyId(id), who, overlap_seconds=body.overlap)
        return CreatedKey.of_new(made)

    @root("setProviderKey", ProviderKeyType, keeps=ProviderKeyView)
    async def set_provider_key(self, info: Info, provider: str, api_key: str) -> ProviderKeyView:
        """Set your tenant's own key for a model provider, in the place of the one that it has."""
        body = parsed(SetProviderKey, provider=provider, api_key=api_key)
        row = await info.context.services.provider_keys.put(info.context.principal, body.provider, body.api_key)
        return ProviderKeyView.of(row)

    @root("deleteProviderKey", bool)
    async def delete_provider_key(self, info: Info, provider: str) -> bool:
        """Forget a key. Calls go out with the operator's from then on, where the operator allows that."""
        await info.context.services.provider_keys.remove(info.context.principal, known("provider_key", provider))
        return True

    @root("setWebPolicy", WebPolicyType)
    async def set_web_policy(
        self, info: Info, allow: list[str] | None = None, deny: list[str] | None = None
    ) -> WebPolicyView:
        """Replace both lists. They narrow what the operator allows, and hold from the next fetch on."""
        uses, who = info.context.services, info.context.principal
        body = parsed(SetWebPolicy, **_given(allow=allow, deny=deny))
        changed = await web.replace(uses, who.tenant_id, policy_of(body.allow, body.deny), who)
        return WebPolicyView.of(changed, is_enabled=uses.settings.web.enabled)

    @root("createMember", MemberType, keeps=MemberView)
    async def create_member(self, info: Info, name: str, role: str, limits: JSON | None = None) -> MemberView:
        """Create a service: a member without a login. `createKey` with its `memberId` gives it a key."""
        who = info.context.principal
        body = parsed(CreateMember, **_given(name=name, role=role, limits=limits))
        made = await members.create(
            info.context.services, who.tenant_id, who, name=body.name, role=body.role, limits=body.limits
        )
        return MemberView.of(made)

    @root("updateMember", MemberType)
    async def update_member(
        self,
        info: Info,
        id: ID,  # noqa: A002 - the argument's name
        name: str | None = None,
        role: str | None = None,
        status: MemberStatus | None = None,
        limits: JSON | None = None,
    ) -> MemberView:
        """Rename, give another role, disable, enable, or set limits; of nobody who holds more than you do."""
        who = info.context.principal
        body = parsed(
            UpdateMember,
            **_given(name=name, role=role, status=status.value if status is not None else None, limits=limits),
        )
        changed = await members.change(info.context.services, who.tenant_id, who, MemberId(id), body.wish())
        return MemberView.of(changed)

    @root("deleteMember", bool)
    async def delete_member(self, info: Info, id: ID) -> bool:  # noqa: A002 - the argument's name
        """Remove a member for good: keys are revoked, logins and open streams end. What they made stays."""
        who = info.context.principal
        await members.remove(info.context.services, who.tenant_id, who, MemberId(id))
        return True

    @root("createInvitation", CreatedInvitationType, keeps=CreatedInvitation)
    async def create_invitation(
        self, info: Info, email: str, role: str, expires_in: int | None = None, any_email: bool | None = None
    ) -> CreatedInvitation:
        """Invite somebody to become a member. The answer holds the token, once; sending it is yours."""
        uses, who = info.context.services, info.context.principal
        body = parsed(CreateInvitation, **_given(email=email, role=role, expires_in=expires_in, any_email=any_email))
        made = await invitations.create(uses, who.tenant_id, who, body.wish())
        return CreatedInvitation.of_new(made, uses.settings, uses.clock.now())

    @root("revokeInvitation", bool)
    async def revoke_invitation(self, info: Info, id: ID) -> bool:  # noqa: A002 - the argument's name
        """Revoke an invitation that nobody has taken yet."""
        who = info.context.principal
        await invitations.revoke(info.context.services, who.tenant_id, who, InvitationId(id))
        return True

    @root("createRole", RoleType, keeps=RoleView)
    async def create_role(
        self, info: Info, name: str, permissions: list[str], description: str | None = None
    ) -> RoleView:
        """Create a role of your tenant's own. It can hold no more than you do."""
        body = parsed(CreateRole, **_given(name=name, permissions=permissions, description=description))
        made = await roles.create(
            info.context.services, info.context.principal, body.name, body.permissions, body.description
        )
        return RoleView.of(made)

    @root("updateRole", RoleType)
    async def update_role(
        self, info: Info, name: str, permissions: list[str] | None = None, description: str | None = None
    ) -> RoleView:
        """Change what a role holds: that is so for everybody who has it, from their next request on."""
        body = parsed(UpdateRole, **_given(permissions=permissions, description=description))
        changed = await roles.change(
            info.context.services,
            info.context.principal,
            known("role", name),
            grants=body.permissions,
            description=body.description,
        )
        return RoleView.of(changed)

    @root("deleteRole", bool)
    async def delete_role(self, info: Info, name: str) -> bool:
        """Remove a role that nobody has any more."""
        await roles.remove(info.context.services, info.context.principal, known("role", name))
        return True

    @root("createTenant", CreatedTenantType, keeps=CreatedTenant)
    async def create_tenant(
        self, info: Info, name: str, tier: str | None = None, limits: JSON | None = None
    ) -> CreatedTenant:
        """The operator's: create a tenant. The answer holds its first admin key, once."""
        body = parsed(CreateTenant, **_given(name=name, tier=tier, limits=limits))
        made = await accounts.create(
            info.context.services, info.context.principal, name=body.name, tier=body.tier, limits=body.limits
        )
        return CreatedTenant.of_new(made)

    @root("updateTenant", TenantType)
    async def update_tenant(
        self,
        info: Info,
        id: ID,  # noqa: A002 - the argument's name
        name: str | None = None,
        tier: str | None = None,
        status: str | None = None,
        limits: JSON | None = None,
    ) -> TenantView:
        """The operator's: rename, move to another tier, suspend, restore, or set limits."""
        body = parsed(UpdateTenant, **_given(name=name, tier=tier, status=status, limits=limits))
        changed = await accounts.change(
            info.context.services,
            TenantId(id),
            info.context.principal,
            name=body.name,
            tier=body.tier,
            status=TenantStatus(body.status) if body.status is not None else None,
            limits=body.limits,
        )
        return TenantView.of(changed)

    @root("deleteTenant", bool)
    async def delete_tenant(self, info: Info, id: ID) -> bool:  # noqa: A002 - the argument's name
        """The operator's: delete a tenant: its keys are revoked for good, and what it runs ends."""
        await accounts.delete(info.context.services, TenantId(id), info.context.principal)
        return True
