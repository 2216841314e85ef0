"""The sessions' endpoints that are not hot. They translate; `service` decides."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Depends, Query, Response

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.edge import Call
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.pages import decode_cursor, decode_place, encode_cursor, encode_place, shown
from amplifier_api_server.control_plane.request_json import JsonRoute
from amplifier_api_server.control_plane.services import Services, call, caller, services
from amplifier_api_server.control_plane.sessions.exports import PiecesResponse, page_of
from amplifier_api_server.control_plane.sessions.import_body import ImportRoute
from amplifier_api_server.control_plane.sessions.schemas import (
    CreateSession,
    ExecutionPage,
    ExecutionView,
    ForkSession,
    MessagePage,
    SessionDocument,
    SessionPage,
    SessionView,
    UpdateSession,
)
from amplifier_api_server.tenants.errors import Invalid
from amplifier_api_server.tenants.ids import SessionId
from amplifier_api_server.tenants.models import Session

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], route_class=JsonRoute)
_imports = APIRouter(route_class=ImportRoute)

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]


@router.post("", status_code=201, operation_id="createSession", responses=problems(401, 403, 404, 422, 429, 503))
async def create_session(
    body: CreateSession, principal: Caller, uses: Uses, here: Annotated[Call, Depends(call)]
) -> SessionView:
    """Create a session: a conversation with an agent, in a sandbox of your tenant's own."""
    session, here.standings = await uses.sessions.create(principal, body.profile, body.context)
    return SessionView.of(session)


@router.get("", operation_id="listSessions", responses=problems(401, 403, 422, 429))
async def list_sessions(
    principal: Caller,
    uses: Uses,
    limit: Annotated[int | None, Query(ge=1)] = None,
    cursor: Annotated[str | None, Query(max_length=512)] = None,
    status: Annotated[list[Literal["active", "suspended", "closed", "failed"]] | None, Query()] = None,
) -> SessionPage:
    """The tenant's sessions, newest first; those that are not closed, unless `status` asks for others."""
    size = uses.settings.api.page_limit(limit)
    before = _before(cursor) if cursor else None
    found = await uses.sessions.page(
        principal.tenant_id, limit=size + 1, statuses=list(status) if status else None, before=before
    )
    return SessionPage(sessions=shown(found[:size], SessionView.of), next_cursor=_next(found, size))


def _before(cursor: str) -> tuple[datetime, str]:
    made, session_id = decode_cursor(cursor, 2)
    try:
        return datetime.fromisoformat(made), session_id
    except ValueError as error:
        raise Invalid("cursor should be a next_cursor of an earlier answer", code="invalid_cursor") from error


def _next(found: list[Session], size: int) -> str | None:
    if len(found) <= size:
        return None
    last = found[size - 1]
    return encode_cursor(last.created_at.isoformat(), last.id)


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
    body: Annotated[ForkSession | None, Body()] = None,
) -> SessionView:
    """A new session that goes on from where this one is, or was: the same configuration, transcript, state and files."""
    wish = (body or ForkSession()).wish()
    made, here.standings = await uses.copies.fork(principal, SessionId(session_id), wish)
    return SessionView.of(made)


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
    body: SessionDocument, principal: Caller, uses: Uses, here: Annotated[Call, Depends(call)]
) -> SessionView:
    """A new session with a transcript that was exported, of the profile that the document names as it is now."""
    about = body.session
    made, here.standings = await uses.copies.import_(
        principal, body.messages, profile=about.profile, context=about.context, title=about.title
    )
    return SessionView.of(made)


router.include_router(_imports)


@router.get("/{session_id}/executions", operation_id="listExecutions", responses=problems(401, 403, 404, 422, 429))
async def list_executions(
    session_id: str,
    principal: Caller,
    uses: Uses,
    limit: Annotated[int | None, Query(ge=1)] = None,
    cursor: Annotated[str | None, Query(max_length=512)] = None,
) -> ExecutionPage:
    """The session's executions, newest first; a running one among them."""
    size = uses.settings.api.page_limit(limit)
    found = await uses.sessions.executions(
        principal.tenant_id, SessionId(session_id), limit=size + 1, before=decode_place(cursor)
    )
    following = encode_place(found[size - 1].started_at, found[size - 1].id) if len(found) > size else None
    return ExecutionPage(executions=shown(found[:size], ExecutionView.of), next_cursor=following)


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
    limit: Annotated[int | None, Query(ge=1)] = None,
    cursor: Annotated[str | None, Query(max_length=512)] = None,
) -> Response:
    """The transcript, oldest first, up to the last execution that ended. A page with 4 MiB ends before its `limit`."""
    size = uses.settings.api.page_limit(limit)
    after = _sequence(cursor) if cursor else -1
    found, has_more = await uses.sessions.written(principal.tenant_id, SessionId(session_id), after=after, limit=size)
    following = encode_cursor(str(found[-1].seq)) if has_more else None
    return Response(page_of(found, following), media_type="application/json")


def _sequence(cursor: str) -> int:
    (number,) = decode_cursor(cursor, 1)
    if not number.isdecimal() or len(number) > 12:  # noqa: PLR2004 - more than any transcript has
        raise Invalid("cursor should be a next_cursor of an earlier answer", code="invalid_cursor")
    return int(number)
