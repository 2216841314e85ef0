"""What can be followed: the events of one execution, and what happens to a tenant."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Collection
from typing import Any

import strawberry
from strawberry import ID

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.graphql.context import Info
from amplifier_api_server.control_plane.graphql.fields import stream
from amplifier_api_server.control_plane.graphql.mirror import mirror
from amplifier_api_server.control_plane.graphql.types import StreamEvent, stream_event
from amplifier_api_server.control_plane.tenant_events.followers import START, Followers
from amplifier_api_server.control_plane.tenant_events.schemas import TenantEventView, number_of, types_of
from amplifier_api_server.tenants.errors import Invalid
from amplifier_api_server.tenants.ids import SessionId, TurnId

_SILENCE_SECONDS = 60.0  # a reader looks by itself so often, whatever it was told
_MAX_DIGITS = 9  # of an event's number: more than any execution has

TenantEventType = mirror(TenantEventView, "TenantEvent")


@strawberry.type(description="What can be followed.")
class Subscription:
    @stream("streamExecution", StreamEvent)
    async def execution_stream(
        self, info: Info, session_id: ID, request_id: ID, after: ID | None = None
    ) -> AsyncGenerator[StreamEvent, None]:
        """The events of an execution that runs or has run, from the first, or from the one after `after`, to its end."""
        uses, who = info.context.services, info.context.principal
        session, turn, number = SessionId(session_id), TurnId(request_id), _number(after, request_id)
        if uses.executions.live(who.tenant_id, session, turn) is None:
            await uses.sessions.execution(who.tenant_id, session, turn)  # there is none: said before anything is told
        return _told(uses.executions.watch(who, session, turn, number))

    @stream("streamEvents", TenantEventType)
    async def events(
        self, info: Info, after: ID | None = None, types: list[str] | None = None, from_start: bool | None = None
    ) -> AsyncGenerator[TenantEventView, None]:
        """What happens to your tenant, as it happens: from now on, or from the event after `after`.

        `fromStart` begins with the oldest event that is kept; `types` leaves all others out.
        """
        place = START if from_start else None
        if after is not None:
            place = number_of(after, "after")
        chosen = types_of(",".join(types)) if types else None
        return _happening(info.context.services.followers, info.context.principal, place, chosen)


async def _happening(
    followers: Followers, principal: Principal, place: int | None, types: Collection[str] | None
) -> AsyncGenerator[TenantEventView, None]:
    follower = await followers.open(principal, place, types)
    try:
        while (events := await follower.next(_SILENCE_SECONDS)) is not None:
            for event in events:
                yield TenantEventView.of(event)
    finally:
        follower.close()


async def _told(events: Any) -> AsyncGenerator[StreamEvent, None]:
    async with contextlib.aclosing(events):
        async for event in events:
            yield stream_event(event)


def _number(after: str | None, request_id: str) -> int:
    """The number in an event's id, which is this execution's. Raises Invalid."""
    if after is None:
        return 0
    owner, _, number = after.rpartition(":")
    if owner != request_id or not number.isdecimal() or len(number) > _MAX_DIGITS:
        raise Invalid(f"after should be {request_id}:N, an event's id", code="invalid_event_id")
    return int(number)
