"""The sessions' endpoints that are not hot. They translate; `service` decides."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Body, Depends, Query, Response

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.edge import Call
from amplifier_api_server.control_plane.listing import NewestFirst, OldestFirst
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.pages import BY_CREATION, BY_SEQUENCE, BY_START, shown
from amplifier_api_server.control_plane.request_json import JsonRoute
from amplifier_api_server.control_plane.services import Services, call, caller, services
from amplifier_api_server.control_plane.sessions.exports import PiecesResponse, page_of
from amplifier_api_server.control_plane.sessions.import_body import ImportRoute
from amplifier_api_server.control_plane.sessions.schemas import (
    CreateSession,
    ExecutionPage,
    ForkSession,
    MessagePage,
    SessionDocument,
    SessionPage,
    SessionView,
    TurnState,
    UpdateSession,
)
from amplifier_api_server.tenants.ids import SessionId
from amplifier_api_server.tenants.models import Session
from amplifier_api_server.tenants.repository import turns
from amplifier_api_server.tenants.repository.sessions import OPEN, Wanted

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], route_class=JsonRoute)
_imports = APIRouter(route_class=ImportRoute)

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]


@router.post("", status_code=201, operation_id="createSession", responses=problems(401, 403, 404, 422, 429, 503))
async def create_session(
    body: CreateSession, principal: Caller, uses: Uses, here: Annotated[Call, Depends(call)], response: Response
) -> SessionView:
    """Create a session: a conversation with an agent, in a sandbox of your tenant's own."""
    session, here.standings = await uses.sessions.create(principal, body.profile, body.context)
    return _made(session, response)


def _made(session: Session, response: Response) -> SessionView:
    response.headers["Location"] = f"/v1/sessions/{session.id}"
    return SessionView.of(session)


@router.get("", operation_id="listSessions", responses=problems(401, 403, 422, 429))
async def list_sessions(
    principal: Caller,
    uses: Uses,
    asked: NewestFirst,
    status: Annotated[list[Literal["active", "suspended", "closed", "failed"]] | None, Query()] = None,
    profile: Annotated[str | None, Query(max_length=160, description="made with this profile")] = None,
    member_id: Annotated[str | None, Query(max_length=64, description="made by this member")] = None,
) -> SessionPage:
    """The tenant's sessions, newest first; those that are not closed, unless `status` asks for others."""
    wanted = Wanted(tuple(status) if status else OPEN, profile, member_id)
    found = await uses.sessions.page(principal.tenant_id, wanted, asked.page(BY_CREATION))
    views = shown(found[: asked.size], SessionView.of)
    return SessionPage(sessions=views, next_cursor=asked.following(found, BY_CREATION))


@router.get("/{session_id}", operation_id="getSession", responses=problems(401, 403, 404, 429))
async def get_session(session_id: str, principal: Caller, uses: Uses) -> SessionView:
    """One session."""
    return SessionView.of(await uses.sessions.get(principal.tenant_id, SessionId(session_id)))


@router.patch("/{session_id}", operation_id="updateSession", responses=problems(401, 403, 404, 422, 429))
async def update_session(session_id: str, body: UpdateSession, principal: Caller, uses: Uses) -> SessionView:
    """Give a session a title, or take it away."""
    return SessionView.of(await uses.sessions.rename(principal, SessionId(session_id), body.title))


@router.post(
    "/{session_id}/fork",
    status_code=201,
    operation_id="forkSession",
    responses=problems(401, 403, 404, 409, 422, 429, 503),
)
async def fork_session(
    session_id: str,
    principal: Caller,
    uses: Uses,
    here: Annotated[Call, Depends(call)],
    response: Response,
    body: Annotated[ForkSession | None, Body()] = None,
) -> SessionView:
    """A new session that goes on from where this one is, or was: the same configuration, transcript, state and files."""
    wish = (body or ForkSession()).wish()
    made, here.standings = await uses.copies.fork(principal, SessionId(session_id), wish)
    return _made(made, response)


@router.get(
    "/{session_id}/export",
    operation_id="exportSession",
    response_model=SessionDocument,
    responses=problems(401, 403, 404, 429),
)
async def export_session(session_id: str, principal: Caller, uses: Uses) -> Response:
    """The session and its whole transcript, as a document that can be imported again."""
    pieces = await uses.exports.open(principal, SessionId(session_id))
    return PiecesResponse(pieces)


@_imports.post(
    "/import", status_code=201, operation_id="importSession", responses=problems(401, 403, 404, 413, 422, 429, 503)
)
async def import_session(
    body: SessionDocument, principal: Caller, uses: Uses, here: Annotated[Call, Depends(call)], response: Response
) -> SessionView:
    """A new session with a transcript that was exported, of the profile that the document names as it is now."""
    about = body.session
    made, here.standings = await uses.copies.import_(
        principal, body.messages, profile=about.profile, context=about.context, title=about.title
    )
    return _made(made, response)


router.include_router(_imports)


@router.get("/{session_id}/executions", operation_id="listExecutions", responses=problems(401, 403, 404, 422, 429))
async def list_executions(
    session_id: str,
    principal: Caller,
    uses: Uses,
    asked: NewestFirst,
    status: Annotated[list[TurnState] | None, Query()] = None,
) -> ExecutionPage:
    """The session's executions, newest first; a running one among them."""
    wanted = turns.Wanted(session_id=session_id, statuses=status)
    found = await uses.sessions.executions(principal.tenant_id, wanted, asked.page(BY_START))
    views = shown(found[: asked.size], uses.sessions.execution_view)
    return ExecutionPage(executions=views, next_cursor=asked.following(found, BY_START))


@router.delete("/{session_id}", status_code=204, operation_id="closeSession", responses=problems(401, 403, 404, 429))
async def close_session(session_id: str, principal: Caller, uses: Uses) -> Response:
    """Close a session for good: a running execution is cancelled, its files are deleted, its transcript stays readable."""
    await uses.sessions.close(principal.tenant_id, SessionId(session_id), principal)
    return Response(status_code=204)


@router.get(
    "/{session_id}/messages",
    operation_id="listMessages",
    response_model=MessagePage,
    responses=problems(401, 403, 404, 422, 429),
)
async def list_messages(
    session_id: str,
    principal: Caller,
    uses: Uses,
    asked: OldestFirst,
) -> Response:
    """The transcript, oldest first, up to the last execution that ended. A page with 4 MiB ends before its `limit`."""
    page = asked.page(BY_SEQUENCE)
    found, has_more = await uses.sessions.written(principal.tenant_id, SessionId(session_id), page)
    following = BY_SEQUENCE.cursor_of(found[-1]) if has_more else None
    return Response(page_of(found, following), media_type="application/json")
