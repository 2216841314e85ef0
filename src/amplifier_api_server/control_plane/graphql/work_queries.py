"""What can be asked of sessions and of what they are made of; `sessions`, `profiles` and `tools` have no pages."""

from __future__ import annotations

from enum import Enum
from typing import Any

import strawberry
from strawberry import ID

from amplifier_api_server.control_plane.catalog.schemas import (
    CollectionView,
    InstallationView,
    ProfilePlan,
    ProfileView,
)
from amplifier_api_server.control_plane.graphql.context import Info
from amplifier_api_server.control_plane.graphql.fields import known, root
from amplifier_api_server.control_plane.graphql.mirror import mirror
from amplifier_api_server.control_plane.graphql.pages import Connection, Order, asked, many, page, pages_of
from amplifier_api_server.control_plane.graphql.scalars import JSON
from amplifier_api_server.control_plane.graphql.types import (
    ApprovalConnection,
    ApprovalType,
    CollectionType,
    ExecutionConnection,
    ExecutionType,
    InstallationType,
    MessageConnection,
    ProfilePlanType,
    ProfileType,
    SessionConnection,
    SessionType,
    ToolType,
)
from amplifier_api_server.control_plane.models.schemas import ModelView
from amplifier_api_server.control_plane.pages import BY_CREATION, BY_NAME, BY_SEQUENCE, BY_START, shown
from amplifier_api_server.control_plane.sessions.approvals import BY_EXPIRY
from amplifier_api_server.control_plane.sessions.schemas import (
    ApprovalView,
    ExecutionView,
    MessageView,
    SessionDocument,
    SessionView,
)
from amplifier_api_server.runtime.protocol import ToolSpec
from amplifier_api_server.tenants.errors import Invalid
from amplifier_api_server.tenants.ids import InstallationId, SessionId, TurnId
from amplifier_api_server.tenants.lifecycle import SessionStatus
from amplifier_api_server.tenants.repository import turns
from amplifier_api_server.tenants.repository.pages import Page
from amplifier_api_server.tenants.repository.sessions import OPEN, Wanted

NEWEST = 100  # of `sessions`, which has no pages
_MOST_COLLECTIONS = 1000


@strawberry.enum(name="ExecutionStatus", description="How far an execution is.")
class ExecutionStatus(Enum):
    RUNNING = "running"
    WAITING_FOR_APPROVAL = "waiting_for_approval"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


ModelType = mirror(ModelView, "Model")


@strawberry.type
class WorkQueries:
    @root("listSessions", many(SessionType))
    async def sessions(self, info: Info) -> list[SessionView]:
        """The newest hundred sessions that are not closed; `sessionsConnection` has them all."""
        uses, who = info.context.services, info.context.principal
        found = await uses.sessions.page(who.tenant_id, Wanted(), Page(NEWEST))
        return shown(found, SessionView.of)

    @root("listSessions", SessionConnection)
    async def sessions_connection(
        self,
        info: Info,
        first: int | None = None,
        after: str | None = None,
        order: Order | None = None,
        status: list[SessionStatus] | None = None,
        profile: str | None = None,
        member_id: ID | None = None,
    ) -> Connection[Any]:
        """Sessions by pages, newest first; those that are not closed, unless `status` asks for others."""
        uses, who = info.context.services, info.context.principal
        wanted = asked(info, first, after, order)
        which = Wanted(tuple(one.value for one in status) if status else OPEN, profile, member_id)
        found = await uses.sessions.page(who.tenant_id, which, wanted.page(BY_CREATION))
        return page(found, wanted, BY_CREATION, SessionView.of)

    @root("getSession", SessionType | None)
    async def session(self, info: Info, id: ID) -> SessionView:  # noqa: A002 - the argument's name
        """One session; null where there is none."""
        uses, who = info.context.services, info.context.principal
        return SessionView.of(await uses.sessions.get(who.tenant_id, SessionId(id)))

    @root("getExecution", ExecutionType | None)
    async def execution(self, info: Info, session_id: ID, request_id: ID) -> ExecutionView:
        """One execution; null where there is none."""
        uses, who = info.context.services, info.context.principal
        asked = who.tenant_id, SessionId(session_id), TurnId(request_id)
        row, callback = await uses.sessions.execution(*asked), await uses.callbacks.of_turn(*asked)
        return uses.sessions.execution_view(row, callback)

    @root("listExecutions", ExecutionConnection)
    async def executions(
        self,
        info: Info,
        session_id: ID,
        first: int | None = None,
        after: str | None = None,
        order: Order | None = None,
        status: list[ExecutionStatus] | None = None,
    ) -> Connection[Any]:
        """A session's executions, newest first; a running one among them."""
        uses, who = info.context.services, info.context.principal
        wanted = asked(info, first, after, order)
        which = turns.Wanted(session_id, [one.value for one in status] if status else None)
        found = await uses.sessions.executions(who.tenant_id, which, wanted.page(BY_START))
        return page(found, wanted, BY_START, uses.sessions.execution_view)

    @root("listTenantExecutions", ExecutionConnection)
    async def tenant_executions(
        self,
        info: Info,
        first: int | None = None,
        after: str | None = None,
        order: Order | None = None,
        status: list[ExecutionStatus] | None = None,
        member_id: ID | None = None,
    ) -> Connection[Any]:
        """The executions of all of the tenant's sessions, newest first."""
        uses, who = info.context.services, info.context.principal
        wanted = asked(info, first, after, order)
        which = turns.Wanted(statuses=[one.value for one in status] if status else None, member_id=member_id)
        found = await uses.sessions.executions(who.tenant_id, which, wanted.page(BY_START))
        return page(found, wanted, BY_START, uses.sessions.execution_view)

    @root("listTenantApprovals", ApprovalConnection)
    async def tenant_approvals(
        self, info: Info, first: int | None = None, after: str | None = None, order: Order | None = None
    ) -> Connection[Any]:
        """What any of the tenant's executions waits for a person's word on, the most urgent first."""
        uses, who = info.context.services, info.context.principal
        wanted = asked(info, first, after, order, newest_first=False)
        found = uses.approvals.waiting(who.tenant_id, None, wanted.page(BY_EXPIRY))
        return page(found, wanted, BY_EXPIRY, lambda one: one)

    @root("listMessages", MessageConnection)
    async def messages(
        self,
        info: Info,
        session_id: ID,
        first: int | None = None,
        after: str | None = None,
        order: Order | None = None,
    ) -> Connection[Any]:
        """A session's transcript, oldest first, up to the last execution that ended."""
        uses, who = info.context.services, info.context.principal
        wanted = asked(info, first, after, order, newest_first=False)
        found, has_more = await uses.sessions.messages(who.tenant_id, SessionId(session_id), wanted.page(BY_SEQUENCE))
        shown = page(found, wanted, BY_SEQUENCE, MessageView.of)
        shown.page_info.has_next_page = has_more
        return shown

    @root("listApprovals", many(ApprovalType))
    async def approvals(self, info: Info, session_id: ID, request_id: ID) -> list[ApprovalView]:
        """What an execution waits for a person's word on, now."""
        uses, who = info.context.services, info.context.principal
        return await uses.approvals.pending(who.tenant_id, SessionId(session_id), TurnId(request_id))

    @root("exportSession", JSON)
    async def export_session(self, info: Info, session_id: ID) -> Any:
        """The session and its whole transcript, as a document that `importSession` takes."""
        uses, who = info.context.services, info.context.principal
        found = SessionDocument.model_validate(await uses.copies.export(who.tenant_id, SessionId(session_id)))
        return found.model_dump(mode="json")

    @root("listProfiles", many(ProfileType))
    async def profiles(self, info: Info) -> list[ProfileView]:
        """What a session can be made of: bundled profiles, those of collections, and your own."""
        found = await info.context.services.catalogue.profiles(info.context.principal.tenant_id)
        return [ProfileView.model_validate(one, from_attributes=True) for one in found]

    @root("getProfile", ProfilePlanType | None)
    async def profile(self, info: Info, name: str, version: int | None = None) -> ProfilePlan:
        """A profile, compiled as a session of it would be made now; of your own also an earlier `version`.

        Null where there is none.
        """
        uses, who = info.context.services, info.context.principal
        if version is not None and version < 1:
            raise Invalid("version should be at least 1", errors=[{"field": "version", "message": "at least 1"}])
        if ":" not in known("profile", name):
            row = await uses.profiles.get(who.tenant_id, name, version)
            return ProfilePlan.of_own(row, await uses.profiles.compiled(who, row))
        if version is not None:
            message = "only profiles of your own have versions here; leave it out"
            raise Invalid(f"version: {message}", errors=[{"field": "version", "message": message}])
        choice = await uses.catalogue.choose(who.tenant_id, name)
        return ProfilePlan.of("collection" if choice.images else "bundled", await uses.catalogue.compiled(who, name))

    @root("listCollections", many(CollectionType))
    async def collections(self, info: Info) -> list[CollectionView]:
        """Your tenant's installed collections, by name; the first thousand."""
        uses, who = info.context.services, info.context.principal
        found = await uses.catalogue.collections(who.tenant_id, Page(_MOST_COLLECTIONS, descending=False))
        return shown(found, CollectionView.of)

    @root("listCollections", pages_of(CollectionType))
    async def collections_connection(
        self, info: Info, first: int | None = None, after: str | None = None, order: Order | None = None
    ) -> Connection[Any]:
        """Your tenant's installed collections by pages, by name."""
        uses, who = info.context.services, info.context.principal
        wanted = asked(info, first, after, order, newest_first=False)
        found = await uses.catalogue.collections(who.tenant_id, wanted.page(BY_NAME))
        return page(found, wanted, BY_NAME, CollectionView.of)

    @root("getCollection", CollectionType | None)
    async def collection(self, info: Info, name: str) -> CollectionView:
        """One installed collection; null where there is none."""
        uses, who = info.context.services, info.context.principal
        return CollectionView.of(await uses.catalogue.collection(who.tenant_id, known("collection", name)))

    @root("listInstallations", pages_of(InstallationType))
    async def installations(
        self, info: Info, first: int | None = None, after: str | None = None, order: Order | None = None
    ) -> Connection[Any]:
        """Installations, newest first: those that go on, and how the last ones ended."""
        uses, who = info.context.services, info.context.principal
        wanted = asked(info, first, after, order)
        found = await uses.installations.page(who.tenant_id, wanted.page(BY_CREATION))
        return page(found, wanted, BY_CREATION, InstallationView.of)

    @root("getInstallation", InstallationType | None)
    async def installation(self, info: Info, id: ID) -> InstallationView:  # noqa: A002 - the argument's name
        """How far an installation is, or how it ended; null where there is none."""
        uses, who = info.context.services, info.context.principal
        return InstallationView.of(await uses.installations.get(who.tenant_id, InstallationId(id)))

    @root("listTools", many(ToolType))
    async def tools(self, info: Info) -> list[ToolSpec]:
        """Tools that can be run without a session."""
        return list(await info.context.services.catalogue.tools())

    @root("listModels", many(ModelType))
    async def models(self, info: Info) -> list[ModelView]:
        """The models that your tenant's tier may ask for, what is known of them, and what they cost."""
        uses, who = info.context.services, info.context.principal
        found = await uses.gateway.providers.models(tenant_id=who.tenant_id, tier=who.tier)
        return shown(found, ModelView.of)
