"""What can be asked of a tenant: its keys, people and limits, what it used; and what the operator asks."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Any

import strawberry
from strawberry import ID

from amplifier_api_server.control_plane.accounts import service as accounts
from amplifier_api_server.control_plane.accounts.schemas import TenantView
from amplifier_api_server.control_plane.audit.schemas import AuditEntryView
from amplifier_api_server.control_plane.graphql.context import Info
from amplifier_api_server.control_plane.graphql.fields import known, root
from amplifier_api_server.control_plane.graphql.mirror import mirror, mirrored
from amplifier_api_server.control_plane.graphql.pages import Connection, Order, asked, many, page, pages_of
from amplifier_api_server.control_plane.invitations import service as invitations
from amplifier_api_server.control_plane.invitations.schemas import InvitationView
from amplifier_api_server.control_plane.keys import service as keys
from amplifier_api_server.control_plane.keys.schemas import KeyView
from amplifier_api_server.control_plane.limits.explanation import explain
from amplifier_api_server.control_plane.limits.schemas import LimitsExplained
from amplifier_api_server.control_plane.me import service as me_service
from amplifier_api_server.control_plane.me.schemas import MeView
from amplifier_api_server.control_plane.members import service as members
from amplifier_api_server.control_plane.members.schemas import MemberView
from amplifier_api_server.control_plane.pages import BY_CREATION, BY_NUMBER, decode_cursor, encode_cursor, shown
from amplifier_api_server.control_plane.provider_keys.schemas import ProviderKeyPage, ProviderKeyView, TakingProvider
from amplifier_api_server.control_plane.roles import service as roles
from amplifier_api_server.control_plane.roles.schemas import RoleView
from amplifier_api_server.control_plane.usage import service as usage
from amplifier_api_server.control_plane.usage.schemas import UsageReport
from amplifier_api_server.control_plane.web import service as web
from amplifier_api_server.control_plane.web.schemas import WebPolicyView
from amplifier_api_server.tenants.errors import Invalid
from amplifier_api_server.tenants.ids import InvitationId, KeyId, MemberId, TenantId
from amplifier_api_server.tenants.lifecycle import MemberStatus
from amplifier_api_server.tenants.repository.audit import Wanted

_MAX_TIME_CHARS = 64
_MAX_FILTER_CHARS = 200

KeyType = mirror(KeyView, "Key", is_node=True)
TenantType = mirror(TenantView, "Tenant", is_node=True)
LimitsType = mirror(LimitsExplained, "Limits")
ProviderKeysType = mirror(ProviderKeyPage, "ProviderKeys", renamed={"provider_keys": "nodes"}, without=("next_cursor",))
UsageReportType = mirror(UsageReport, "UsageReport", renamed={"usage": "nodes"})
WebPolicyType = mirror(WebPolicyView, "WebPolicy")
MemberType = mirror(MemberView, "Member", is_node=True)
InvitationType = mirror(InvitationView, "Invitation")
RoleType = mirror(RoleView, "Role")
MeType = mirror(MeView, "Me")
AuditEntryType = mirror(AuditEntryView, "AuditEntry")
strawberry.enum(MemberStatus, name="MemberStatus")


@strawberry.enum(name="UsageGroupBy", description="What there is a row of usage for each of.")
class GroupBy(Enum):
    SESSION = "session"
    DAY = "day"
    MODEL = "model"
    MEMBER = "member"


@strawberry.enum(name="MemberKind", description="A person logs in; a service has keys alone.")
class MemberKind(Enum):
    PERSON = "person"
    SERVICE = "service"


@strawberry.input(description="Which entries of the audit log; what is left out is any.")
class AuditFilter:
    actor: str | None = strawberry.field(default=None, description="a member's id")
    action: str | None = strawberry.field(default=None, description="an operation's name, such as createKey")
    target: str | None = strawberry.field(default=None, description="the id or name of what was changed")
    since: datetime | None = strawberry.field(default=None, description="inclusive")
    until: datetime | None = strawberry.field(default=None, description="exclusive")

    def wanted(self) -> Wanted:
        """Raises Invalid for a text that is longer than anything it could be."""
        texts = (self.actor, self.action, self.target)
        if any(one is not None and len(one) > _MAX_FILTER_CHARS for one in texts):
            raise Invalid(f"filter: a text should have at most {_MAX_FILTER_CHARS} characters")
        return Wanted(self.actor, self.action, self.target, self.since, self.until)


@strawberry.type
class TenantQueries:
    @root("listKeys", pages_of(KeyType))
    async def keys(
        self, info: Info, first: int | None = None, after: str | None = None, order: Order | None = None
    ) -> Connection[Any]:
        """Your tenant's keys that are not revoked, newest first."""
        uses, who = info.context.services, info.context.principal
        wanted = asked(info, first, after, order)
        found = await keys.page(uses, who.tenant_id, wanted.page(BY_CREATION))
        return page(found, wanted, BY_CREATION, KeyView.of)

    @root("getKey", KeyType | None)
    async def key(self, info: Info, id: ID) -> KeyView:  # noqa: A002 - the argument's name
        """One key; null where there is none."""
        uses, who = info.context.services, info.context.principal
        return KeyView.of(await keys.find(uses, who.tenant_id, KeyId(id)))

    @root("listProviderKeys", ProviderKeysType)
    async def provider_keys(self, info: Info) -> ProviderKeyPage:
        """Your tenant's own keys for model providers: that they are there, not what they are."""
        mine = info.context.services.provider_keys
        found = await mine.all_of(info.context.principal.tenant_id)
        taking = [TakingProvider(provider=one.name, is_required=one.tenant_keys == "required") for one in mine.taking()]
        views = shown(found, lambda one: ProviderKeyView.of(one, is_readable=mine.is_readable(one)))
        return ProviderKeyPage(provider_keys=views, providers=taking)

    @root("getProviderKey", mirrored(ProviderKeyView) | None)
    async def provider_key(self, info: Info, provider: str) -> ProviderKeyView:
        """Your tenant's own key for a model provider: that it is there, not what it is; null where there is none."""
        mine = info.context.services.provider_keys
        row = await mine.find(info.context.principal.tenant_id, known("provider_key", provider))
        return ProviderKeyView.of(row, is_readable=mine.is_readable(row))

    @root("getWebPolicy", WebPolicyType)
    async def web_policy(self, info: Info) -> WebPolicyView:
        """Which hosts your tenant's tools may fetch pages from, of those that the operator allows."""
        uses, who = info.context.services, info.context.principal
        return WebPolicyView.of(await web.find(uses, who.tenant_id), is_enabled=uses.settings.web.enabled)

    @root("getUsage", UsageReportType)
    async def usage(
        self,
        info: Info,
        group_by: GroupBy | None = None,
        begins: str | None = None,
        ends: str | None = None,
        first: int | None = None,
        after: str | None = None,
    ) -> UsageReport:
        """What your tenant used, by day, session, model or member; `begins` inclusive, `ends` exclusive: dates or times."""
        uses, who = info.context.services, info.context.principal
        wanted = asked(info, first, after, None, newest_first=False)
        start = decode_cursor(after, 1)[0] if after else None
        span = usage.span_of(_short(begins), _short(ends))
        found = await usage.report(
            uses, who.tenant_id, group_by.value if group_by else "day", span, after=start, limit=wanted.size
        )
        return UsageReport.of_report(found, encode_cursor(found.next_key) if found.next_key is not None else None)

    @root("getLimits", LimitsType)
    async def limits(self, info: Info) -> LimitsExplained:
        """Each of your limits, what is used and held of it, when it frees, and why you were refused last."""
        return await explain(info.context.services.admission, info.context.principal)

    @root("listMembers", pages_of(MemberType))
    async def members(
        self,
        info: Info,
        first: int | None = None,
        after: str | None = None,
        order: Order | None = None,
        kind: MemberKind | None = None,
        status: list[MemberStatus] | None = None,
    ) -> Connection[Any]:
        """Your tenant's members, newest first; those who are not removed, unless `status` asks for others."""
        uses, who = info.context.services, info.context.principal
        wanted = asked(info, first, after, order)
        found = await members.page(
            uses,
            who.tenant_id,
            wanted.page(BY_CREATION),
            statuses=tuple(one.value for one in status) if status else members.THERE,
            kind=kind.value if kind else None,
        )
        return page(found, wanted, BY_CREATION, MemberView.of)

    @root("getMember", MemberType | None)
    async def member(self, info: Info, id: ID) -> MemberView:  # noqa: A002 - the argument's name
        """One member, removed or not; null where there is none."""
        uses, who = info.context.services, info.context.principal
        return MemberView.of(await members.find(uses, who.tenant_id, MemberId(id)))

    @root("listInvitations", pages_of(InvitationType))
    async def invitations(
        self, info: Info, first: int | None = None, after: str | None = None, order: Order | None = None
    ) -> Connection[Any]:
        """Your tenant's invitations, newest first, whatever became of them."""
        uses, who = info.context.services, info.context.principal
        wanted = asked(info, first, after, order)
        now = uses.clock.now()
        found = await invitations.page(uses, who.tenant_id, wanted.page(BY_CREATION))
        return page(found, wanted, BY_CREATION, lambda one: InvitationView.of(one, now))

    @root("getInvitation", InvitationType | None)
    async def invitation(self, info: Info, id: ID) -> InvitationView:  # noqa: A002 - the argument's name
        """One invitation, whatever became of it; null where there is none."""
        uses, who = info.context.services, info.context.principal
        return InvitationView.of(await invitations.find(uses, who.tenant_id, InvitationId(id)), uses.clock.now())

    @root("listRoles", many(RoleType))
    async def roles(self, info: Info) -> list[RoleView]:
        """The roles that can be given: the built-in ones, then your tenant's own."""
        found = await roles.all_of(info.context.services, info.context.principal.tenant_id)
        return shown(found, RoleView.of)

    @root("getRole", RoleType | None)
    async def role(self, info: Info, name: str) -> RoleView:
        """One role; null where there is none."""
        return RoleView.of(
            await roles.find(info.context.services, info.context.principal.tenant_id, known("role", name))
        )

    @root("getMe", MeType)
    async def me(self, info: Info) -> MeView:
        """Who you are here: your tenant, your member, what your credential holds and until when."""
        return MeView.of(await me_service.who(info.context.services, info.context.principal))

    @root("listAuditEntries", pages_of(AuditEntryType))
    async def audit_entries(
        self,
        info: Info,
        first: int | None = None,
        after: str | None = None,
        order: Order | None = None,
        filter: AuditFilter | None = None,  # noqa: A002 - the argument's name
        tenant_id: ID | None = None,
    ) -> Connection[Any]:
        """Who changed what, newest first. The operator names a tenant by `tenantId`."""
        uses, who = info.context.services, info.context.principal
        wanted = asked(info, first, after, order)
        log = await uses.audit.log_of(who, tenant_id)
        entries = Wanted() if filter is None else filter.wanted()
        found = await uses.audit.page(log, entries, wanted.page(BY_NUMBER))
        return page(found, wanted, BY_NUMBER, AuditEntryView.of)

    @root("listTenants", pages_of(TenantType))
    async def tenants(
        self, info: Info, first: int | None = None, after: str | None = None, order: Order | None = None
    ) -> Connection[Any]:
        """The operator's: tenants that are not deleted, newest first."""
        uses = info.context.services
        wanted = asked(info, first, after, order)
        found = await accounts.page(uses, wanted.page(BY_CREATION))
        return page(found, wanted, BY_CREATION, TenantView.of)

    @root("getTenant", TenantType | None)
    async def tenant(self, info: Info, id: ID) -> TenantView:  # noqa: A002 - the argument's name
        """The operator's: one tenant; null where there is none."""
        return TenantView.of(await accounts.find(info.context.services, TenantId(id)))


def _short(text: str | None) -> str | None:
    return text[:_MAX_TIME_CHARS] if text is not None else None
