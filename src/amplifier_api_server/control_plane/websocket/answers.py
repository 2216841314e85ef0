"""What the server sends: every message as a model, for AsyncAPI and for the tests; and how they are written.

Owns the order and the names of the members. A message has the `id` of the client's that it answers. An `error` with an
`event_id` is an execution's last event; one without is the answer to a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from amplifier_api_server.control_plane.errors import problem_of
from amplifier_api_server.control_plane.problems import Problem
from amplifier_api_server.control_plane.sessions.frames import TurnEvent
from amplifier_api_server.control_plane.sessions.schemas import (
    ApprovalList,
    ApprovalView,
    ExecutionCancelled,
    SessionPage,
    SessionView,
)
from amplifier_api_server.control_plane.tenant_events.recording import EventType
from amplifier_api_server.control_plane.tenant_events.schemas import TenantEventView
from amplifier_api_server.control_plane.websocket.messages import MessageId
from amplifier_api_server.runtime.protocol import EventName, FinishReason, ToolCall, Usage
from amplifier_api_server.tenants.errors import DomainError
from amplifier_api_server.tenants.ids import SessionId
from amplifier_api_server.tenants.models import TenantEvent


class Told(BaseModel):
    """What every message of the server has."""

    id: MessageId | None = None


class AuthOk(Told):
    """Who is there, as the server knows it; `expires_at` is when the connection ends unless `auth` is sent again."""

    type: Literal["auth.ok"]
    tenant_id: str | None
    member_id: str
    role: str
    method: Literal["api_key", "bearer", "login"]
    expires_at: datetime | None
    connection_id: str


class Pong(Told):
    """The answer to `ping`."""

    type: Literal["pong"]


class SessionCreated(Told, SessionView):
    """The session that was made."""

    type: Literal["session.created"]


class SessionTold(Told, SessionView):
    """The session that was asked for."""

    type: Literal["session"]


class SessionsTold(Told, SessionPage):
    """A page of sessions."""

    type: Literal["sessions"]


class SessionUpdated(Told, SessionView):
    """The session as it is now."""

    type: Literal["session.updated"]


class SessionForked(Told, SessionView):
    """The new session."""

    type: Literal["session.forked"]


class SessionClosed(Told):
    """It is closed."""

    type: Literal["session.closed"]
    session_id: str


class ExecutionStarted(Told):
    """It is recorded and runs; its events follow, unless it runs in the background."""

    type: Literal["execution.started"]
    session_id: str
    request_id: str
    status: Literal["running", "completed", "failed", "cancelled"]


class Cancelled(Told, ExecutionCancelled):
    """How the execution ended."""

    type: Literal["cancelled"]
    session_id: str


class Attached(Told):
    """The execution's events follow."""

    type: Literal["attached"]
    session_id: str
    request_id: str


class Detached(Told):
    """No more events of the execution follow; `attach` goes on from any of them."""

    type: Literal["detached"]
    session_id: str
    request_id: str


class ApprovalResponded(Told, ApprovalView):
    """The approval as it is now."""

    type: Literal["approval.responded"]


class ApprovalsTold(Told, ApprovalList):
    """What the execution waits for."""

    type: Literal["approvals"]
    session_id: str
    request_id: str


class EventsSubscribed(Told):
    """The tenant's events follow."""

    type: Literal["events.subscribed"]


class EventsUnsubscribed(Told):
    """No more of them follow."""

    type: Literal["events.unsubscribed"]


class Result(Told):
    """The answer to `call`: what REST answers, byte by byte."""

    type: Literal["result"]
    operation: str
    status: Annotated[int, Field(description="as REST's answer has it: 200, 201, 202, 204")]
    data: Annotated[Any, Field(description="the JSON that REST answers with; null for none")]


class OfExecution(Told):
    """An event of an execution. `id` is that of the `execute` or `attach` that asked for it."""

    session_id: str
    request_id: str
    event_id: Annotated[str, Field(description="what `attach` goes on after")]


class TokenEvent(OfExecution):
    """A piece of the answer."""

    type: Literal["token"]
    content: str


class ToolCallTold(OfExecution, ToolCall):
    """A tool call began or ended."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["tool_call"]


class ApprovalTold(OfExecution, ApprovalView):
    """The execution waits for a person's consent, or that has ended."""

    type: Literal["approval"]
    session_id: str
    request_id: str


class CompleteEvent(OfExecution):
    """The execution has ended, and is recorded."""

    type: Literal["complete"]
    usage: Usage
    response: str
    finish_reason: FinishReason
    tool_calls: list[ToolCall]


class ErrorTold(Told, Problem):
    """A problem (RFC 9457), without the member that says its type: `code` does. With `event_id`, an execution ended in it."""

    model_config = ConfigDict(extra="allow")
    type: Literal["error"]
    session_id: str | None = None
    event_id: str | None = None


class TenantEventTold(Told):
    """Something happened in the tenant. `id` is that of the `events.subscribe`."""

    type: Literal["event"]
    event_id: Annotated[str, Field(description="what `events.subscribe` goes on after")]
    event: EventType
    created_at: datetime
    data: dict[str, Any]


SERVER_MESSAGES: Final[tuple[type[Told], ...]] = (
    AuthOk,
    Pong,
    SessionCreated,
    SessionTold,
    SessionsTold,
    SessionUpdated,
    SessionForked,
    SessionClosed,
    ExecutionStarted,
    Cancelled,
    Attached,
    Detached,
    ApprovalResponded,
    ApprovalsTold,
    EventsSubscribed,
    EventsUnsubscribed,
    Result,
    TokenEvent,
    ToolCallTold,
    ApprovalTold,
    CompleteEvent,
    ErrorTold,
    TenantEventTold,
)

_ERROR: Final = EventName.ERROR.value


def type_of(kind: type[BaseModel]) -> str:
    """The `type` of a message's model."""
    name: str = kind.model_fields["type"].annotation.__args__[0]  # type: ignore[union-attr]
    return name


def written(kind: str, message_id: str | int | None, members: Mapping[str, Any]) -> bytes:
    """A message on the wire. What it is, and what it answers, come first, whatever else has those names."""
    head: dict[str, Any] = {"type": kind}
    if message_id is not None:
        head["id"] = message_id
    return orjson.dumps({**head, **members, **head}, option=orjson.OPT_UTC_Z)


def of_error(error: DomainError, message_id: str | int | None, **more: Any) -> bytes:
    """A problem as the answer to a message."""
    return written(_ERROR, message_id, more | problem_of(error))


def of_event(event: TurnEvent, session_id: SessionId, message_id: str | int | None) -> bytes:
    """An event of an execution."""
    own = {"session_id": session_id, "request_id": event.request_id, "event_id": event.id}
    return written(event.name, message_id, {**own, **event.data, **own})


def of_tenant_event(event: TenantEvent, message_id: str | int | None) -> bytes:
    view = TenantEventView.of(event)
    members = {"event_id": view.id, "event": view.type, "created_at": view.created_at, "data": view.data}
    return written("event", message_id, members)
