"""`GET /v1/events`. It translates; `followers` and `stream` do the work."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Response

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.openapi_events import stream_of
from amplifier_api_server.control_plane.services import Services, caller, services
from amplifier_api_server.control_plane.tenant_events.followers import START
from amplifier_api_server.control_plane.tenant_events.schemas import number_of, types_of
from amplifier_api_server.control_plane.tenant_events.stream import EventStream

router = APIRouter(prefix="/v1/events", tags=["events"])

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]


@router.get(
    "",
    operation_id="streamEvents",
    response_class=Response,
    responses={
        200: {"description": "OK", "content": stream_of("TenantEvent")},
        **problems(401, 403, 410, 422, 429, 503),
    },
)
async def stream_events(
    principal: Caller,
    uses: Uses,
    last_event_id: Annotated[str | None, Header(description="go on after this event")] = None,
    after: Annotated[str | None, Query(max_length=64, description="the same, where a header can't be set")] = None,
    begin: Annotated[
        Literal["start", "now"] | None,
        Query(alias="from", description="without a place to go on after: the oldest event that is kept, or what comes"),
    ] = None,
    types: Annotated[str | None, Query(max_length=1000, description="of these types alone, with commas")] = None,
) -> Response:
    """What happens to your tenant, as it happens."""
    place: int | None = START if begin == "start" else None
    if last_event_id:
        place = number_of(last_event_id, "Last-Event-ID")
    elif after:
        place = number_of(after, "after")
    uses.streams.require_room(principal)
    follower = await uses.followers.open(principal, place, types_of(types))
    return EventStream(follower, principal, uses.streams)
