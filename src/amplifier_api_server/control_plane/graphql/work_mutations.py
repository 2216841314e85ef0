"""What can be done with sessions, and with what they are made of."""

from __future__ import annotations

from typing import Any

import strawberry
from strawberry import ID

from amplifier_api_server.control_plane.catalog.installations import Job, Order
from amplifier_api_server.control_plane.catalog.schemas import (
    CollectionView,
    ExecuteTool,
    InstallationView,
    InstallCollection,
    SetProfile,
    StoredProfile,
    ToolResult,
)
from amplifier_api_server.control_plane.graphql.context import Context, Info
from amplifier_api_server.control_plane.graphql.fields import known, parsed, root
from amplifier_api_server.control_plane.graphql.keyed_turns import KeyedTurn
from amplifier_api_server.control_plane.graphql.scalars import JSON
from amplifier_api_server.control_plane.graphql.types import (
    ApprovalType,
    CancelledType,
    CollectionType,
    ExecutionResultType,
    InstallationType,
    SessionType,
    StartedExecution,
    StoredProfileType,
    ToolResultType,
)
from amplifier_api_server.control_plane.sessions.executions import OneShot
from amplifier_api_server.control_plane.sessions.hot import error_of
from amplifier_api_server.control_plane.sessions.schemas import (
    AnswerApproval,
    ApprovalView,
    CreateSession,
    Execute,
    ExecuteOnce,
    ExecutionCancelled,
    ExecutionResult,
    ForkSession,
    SessionDocument,
    SessionView,
    UpdateSession,
)
from amplifier_api_server.runtime.protocol import TurnStatus
from amplifier_api_server.tenants.errors import Invalid
from amplifier_api_server.tenants.ids import ApprovalId, InstallationId, SessionId, TurnId


@strawberry.input(description="Who is told when an execution has ended.")
class CallbackInput:
    url: str = strawberry.field(description="an https:// address of the public internet")
    secret: str | None = strawberry.field(default=None, description="whsec_ and base64: what is sent is signed with it")


@strawberry.type
class WorkMutations:
    @root("createSession", SessionType, keeps=SessionView)
    async def create_session(self, info: Info, profile: str, context: JSON | None = None) -> SessionView:
        """Create a session: a conversation with an agent, in a sandbox of your tenant's own."""
        body = parsed(CreateSession, profile=profile, context={} if context is None else context)
        made, standings = await info.context.services.sessions.create(
            info.context.principal, body.profile, body.context
        )
        info.context.took(standings)
        return SessionView.of(made)

    @root("updateSession", SessionType)
    async def update_session(self, info: Info, session_id: ID, title: str | None) -> SessionView:
        """Give a session a title; null takes it away."""
        body = parsed(UpdateSession, title=title)
        found = await info.context.services.sessions.rename(info.context.principal, SessionId(session_id), body.title)
        return SessionView.of(found)

    @root("closeSession", bool)
    async def close_session(self, info: Info, session_id: ID) -> bool:
        """Close a session for good: what runs is cancelled, its files are deleted, its transcript stays readable."""
        who = info.context.principal
        await info.context.services.sessions.close(who.tenant_id, SessionId(session_id), who)
        return True

    @root("forkSession", SessionType, keeps=SessionView)
    async def fork_session(
        self,
        info: Info,
        session_id: ID,
        request_id: ID | None = None,
        title: str | None = None,
        files: bool | None = None,
    ) -> SessionView:
        """A new session that goes on from where this one is, or was when `requestId` ended."""
        body = parsed(ForkSession, request_id=request_id, title=title, files=True if files is None else files)
        made, standings = await info.context.services.copies.fork(
            info.context.principal, SessionId(session_id), body.wish()
        )
        info.context.took(standings)
        return SessionView.of(made)

    @root("importSession", SessionType, keeps=SessionView)
    async def import_session(self, info: Info, document: JSON) -> SessionView:
        """A new session with a transcript that was exported, of the profile that the document names as it is now."""
        if not isinstance(document, dict):
            raise Invalid("document should be what exportSession gives")
        body = parsed(SessionDocument, **{str(name): value for name, value in document.items()})
        about = body.session
        made, standings = await info.context.services.copies.import_(
            info.context.principal, body.messages, profile=about.profile, context=about.context, title=about.title
        )
        info.context.took(standings)
        return SessionView.of(made)

    @root("execute", ExecutionResultType, lasts=lambda settings: settings.sessions.turn_timeout)
    async def execute(
        self, info: Info, session_id: ID, prompt: str, idempotency_key: str | None = None
    ) -> ExecutionResult:
        """Run one prompt to its end. It runs on when you leave; `startExecution` does not wait for it."""
        body = parsed(Execute, prompt=prompt)
        return await _executed(info.context, idempotency_key, SessionId(session_id), body)

    @root("execute", StartedExecution)
    async def start_execution(
        self,
        info: Info,
        session_id: ID,
        prompt: str,
        callback: CallbackInput | None = None,
        idempotency_key: str | None = None,
    ) -> StartedExecution:
        """Begin one prompt and leave it to itself: `executionStream` follows it, `execution` tells how it ended.

        `callback` is told then, too.
        """
        body = parsed(Execute, prompt=prompt, background=True, callback=_callback(callback))
        return await _started(info.context, idempotency_key, SessionId(session_id), body)

    @root("executeOnce", ExecutionResultType, lasts=lambda settings: settings.sessions.turn_timeout)
    async def execute_once(
        self,
        info: Info,
        profile: str,
        prompt: str,
        context: JSON | None = None,
        idempotency_key: str | None = None,
    ) -> ExecutionResult:
        """Run one prompt to its end in a session of its own, which is closed then."""
        body = parsed(ExecuteOnce, profile=profile, prompt=prompt, context={} if context is None else context)
        return await _executed(info.context, idempotency_key, None, body)

    @root("executeOnce", StartedExecution)
    async def start_execution_once(
        self,
        info: Info,
        profile: str,
        prompt: str,
        context: JSON | None = None,
        callback: CallbackInput | None = None,
        idempotency_key: str | None = None,
    ) -> StartedExecution:
        """Begin one prompt in a session of its own, which is closed at its end, and leave it to itself."""
        given: dict[str, Any] = {"profile": profile, "prompt": prompt, "context": {} if context is None else context}
        body = parsed(ExecuteOnce, **given, background=True, callback=_callback(callback))
        return await _started(info.context, idempotency_key, None, body)

    @root("cancelExecution", CancelledType)
    async def cancel_execution(self, info: Info, session_id: ID, request_id: ID) -> ExecutionCancelled:
        """End a running execution; how it ended, `completed` where it had ended before."""
        status = await info.context.services.endings.cancel(
            info.context.principal.tenant_id, SessionId(session_id), TurnId(request_id)
        )
        return ExecutionCancelled.model_validate({"request_id": request_id, "status": status.value})

    @root("answerApproval", ApprovalType, keeps=ApprovalView)
    async def answer_approval(
        self,
        info: Info,
        session_id: ID,
        request_id: ID,
        approval_id: ID,
        choice: str | None = None,
        approved: bool | None = None,
    ) -> ApprovalView:
        """Answer what an execution asks for: by one of its options, or by yes and no. The first answer counts."""
        body = parsed(AnswerApproval, choice=choice, approved=approved)
        chosen = body.choice if body.choice is not None else bool(body.approved)
        return await info.context.services.approvals.answer(
            info.context.principal, SessionId(session_id), TurnId(request_id), ApprovalId(approval_id), chosen
        )

    @root("setProfile", StoredProfileType, keeps=StoredProfile)
    async def set_profile(self, info: Info, name: str, content: str) -> StoredProfile:
        """Write a profile of your own: a new version, or the current one where it has this content."""
        body = parsed(SetProfile, name=name, content=content)
        written = await info.context.services.profiles.write(info.context.principal, body.name, body.content)
        return StoredProfile.of_row(written.row, written.warnings)

    @root("deleteProfile", bool)
    async def delete_profile(self, info: Info, name: str) -> bool:
        """Remove a profile of your own; sessions that were made with it keep it."""
        await info.context.services.profiles.remove(info.context.principal, known("profile", name))
        return True

    @root(
        "installCollection",
        CollectionType,
        keeps=CollectionView,
        lasts=lambda settings: settings.collections.install_timeout,
    )
    async def install_collection(
        self,
        info: Info,
        source: str,
        name: str | None = None,
        modules: str | None = None,
        skip_missing: bool | None = None,
    ) -> CollectionView:
        """Install a collection from its address and wait until it is there; one of the same name is replaced."""
        given = {"source": source, "name": name, "modules": modules, "skip_missing": skip_missing or False}
        job = await _begun(info, given)
        await info.context.unless_left(job.ended.wait())
        if job.error is not None:
            raise job.error
        assert job.collection is not None, "a job that ended without an error has installed"
        return CollectionView.of(job.collection, job=job.id, warnings=job.warnings)

    @root("installCollection", InstallationType, keeps=InstallationView)
    async def start_installation(
        self,
        info: Info,
        source: str,
        name: str | None = None,
        modules: str | None = None,
        skip_missing: bool | None = None,
    ) -> InstallationView:
        """Begin to install a collection; `installation` tells how far it is."""
        given = {"source": source, "name": name, "modules": modules, "skip_missing": skip_missing or False}
        job = await _begun(info, given)
        found = await info.context.services.installations.get(info.context.principal.tenant_id, job.id)
        return InstallationView.of(found)

    @root("cancelInstallation", bool)
    async def cancel_installation(self, info: Info, id: ID) -> bool:  # noqa: A002 - the argument's name
        """End an installation; nothing of it is left. Nothing happens to one that has ended."""
        await info.context.services.installations.cancel(info.context.principal, InstallationId(id))
        return True

    @root("deleteCollection", bool)
    async def delete_collection(self, info: Info, name: str) -> bool:
        """Remove a collection; sessions that were made with it keep it."""
        await info.context.services.catalogue.remove(info.context.principal, known("collection", name))
        return True

    @root("executeTool", ToolResultType, keeps=ToolResult, lasts=lambda settings: settings.sessions.tool_timeout)
    async def execute_tool(self, info: Info, name: str, input: JSON) -> ToolResult:  # noqa: A002 - the argument's name
        """Run a tool in a sandbox of your tenant, without a session; its files are gone afterwards."""
        body = parsed(ExecuteTool, input=input)
        found = await info.context.services.catalogue.execute_tool(
            info.context.principal, known("tool", name), body.input
        )
        return ToolResult.model_validate(found.model_dump())


def _callback(given: CallbackInput | None) -> dict[str, Any] | None:
    return {"url": given.url, "secret": given.secret} if given is not None else None


def _session_of(turn: KeyedTurn, body: Execute) -> SessionId | OneShot:
    if isinstance(body, ExecuteOnce):
        return OneShot(turn.session_id, body.profile, body.context)
    return turn.session_id


async def _executed(context: Context, key: str | None, session_id: SessionId | None, body: Execute) -> ExecutionResult:
    executions = context.services.executions
    async with KeyedTurn(context, key, session_id, body) as turn:
        if turn.repeated is None:
            begun = await executions.begin(context.principal, _session_of(turn, body), turn.id)
            context.took(begun.standings)
            result = await context.unless_left(executions.run(begun, body.prompt))
        else:
            result = await turn.result()
    if result.status is not TurnStatus.COMPLETED:
        raise error_of(result, turn.session_id)
    return ExecutionResult(
        request_id=result.request_id,
        session_id=turn.session_id,
        response=result.response,
        finish_reason=result.finish_reason,
        usage=result.usage,
        tool_calls=list(result.tool_calls),
    )


async def _started(context: Context, key: str | None, session_id: SessionId | None, body: Execute) -> StartedExecution:
    uses = context.services
    wanted = uses.callbacks.wanted(body.callback.url, body.callback.secret) if body.callback is not None else None
    async with KeyedTurn(context, key, session_id, body) as turn:
        request_id = turn.repeated
        if request_id is None:
            session = _session_of(turn, body)
            begun = await uses.executions.start(context.principal, session, body.prompt, turn.id, callback=wanted)
            context.took(begun.standings)
            request_id = begun.turn.id
    return StartedExecution(request_id=ID(request_id), session_id=ID(turn.session_id))


async def _begun(info: Info, given: dict[str, Any]) -> Job:
    """A job that installs what is asked for. Raises Invalid, Conflict, Unavailable."""
    uses = info.context.services
    asked = parsed(InstallCollection, **given)
    order = Order.of_address(
        asked.source,
        modules=asked.modules or uses.settings.collections.modules,
        name=asked.name,
        skip_missing=asked.skip_missing,
    )
    return await uses.installations.begin(info.context.principal, order)
