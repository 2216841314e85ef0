"""The types of sessions and of what runs in them, and the other ones that are more than mirrors of REST's answers.

A field that shows another resource than its root field's checks that resource's permission by itself.
"""

from __future__ import annotations

from typing import Any, Final

import strawberry
from pydantic import ValidationError
from strawberry import ID

from amplifier_api_server.control_plane.catalog.schemas import (
    CollectionView,
    InstallationView,
    ProfilePlan,
    ProfileView,
    StoredProfile,
    ToolResult,
)
from amplifier_api_server.control_plane.graphql.context import Info
from amplifier_api_server.control_plane.graphql.fields import signature_of
from amplifier_api_server.control_plane.graphql.loaders import NEWEST_MESSAGES, Messages, Turns
from amplifier_api_server.control_plane.graphql.mirror import mirror
from amplifier_api_server.control_plane.graphql.pages import Connection, asked, many, page, pages_of
from amplifier_api_server.control_plane.graphql.scalars import JSON
from amplifier_api_server.control_plane.pages import BY_SEQUENCE, BY_START, shown
from amplifier_api_server.control_plane.sessions.frames import TurnEvent
from amplifier_api_server.control_plane.sessions.schemas import (
    ApprovalView,
    ExecutionCancelled,
    ExecutionResult,
    ExecutionView,
    MessageView,
    SessionView,
)
from amplifier_api_server.runtime.protocol import (
    FINISH_REASON,
    EventName,
    ToolCall,
    ToolSpec,
    Usage,
    finish_reason_of,
)
from amplifier_api_server.tenants.lifecycle import SessionStatus

_READ: Final = "sessions:read"

strawberry.enum(SessionStatus, name="SessionStatus", description="What a session is.")
strawberry.enum(EventName, name="EventType", description="What an event of an execution tells.")

UsageType = mirror(Usage, "Usage")
ToolCallType = mirror(ToolCall, "ToolCall")


def _calls(self: ExecutionView, info: Info) -> list[ToolCall]:
    info.context.spend(info, len(self.tool_calls))
    return [one for one in (tool_call(given) for given in self.tool_calls) if one is not None]


def tool_call(given: object) -> ToolCall | None:
    """A tool call as a sandbox told of it; None for what is none."""
    try:
        return ToolCall.model_validate(given)
    except ValidationError:
        return None


def _text(self: MessageView) -> str:
    """What a person would read of it."""
    if isinstance(self.content, str):
        return self.content
    parts = self.content if isinstance(self.content, list) else []
    texts = (one.get("text") for one in parts if isinstance(one, dict))
    return "".join(one for one in texts if isinstance(one, str))


def _body(self: MessageView) -> Any:
    return self.model_dump(mode="json", exclude={"request_id", "seq", "created_at"})


MessageType = mirror(
    MessageView,
    "Message",
    more={
        "text": strawberry.field(
            resolver=_text, graphql_type=str, description="Its text alone; empty where it has none."
        ),
        "body": strawberry.field(
            resolver=_body, graphql_type=JSON, description="All that it is made of, as the model's dialect has it."
        ),
    },
)
ExecutionResultType = mirror(ExecutionResult, "ExecutionResult")
ExecutionType = mirror(
    ExecutionView,
    "Execution",
    more={"tool_calls": strawberry.field(resolver=_calls, graphql_type=many(ToolCallType))},
)
ApprovalType = mirror(ApprovalView, "Approval", renamed={"approval_id": "id"})
CancelledType = mirror(ExecutionCancelled, "CancelledExecution")

ApprovalConnection = pages_of(ApprovalType)
MessageConnection = pages_of(MessageType)
ExecutionConnection = pages_of(ExecutionType)


def _status(self: SessionView) -> SessionStatus:
    return SessionStatus(self.status)


async def _messages(self: SessionView, info: Info) -> list[MessageView]:
    """The transcript, oldest first; of a long one its newest thousand messages."""
    info.context.demand(_READ)
    found = await info.context.loaders.messages.load(Messages(self.session_id, NEWEST_MESSAGES))
    info.context.spend(info, len(found))
    return shown(found, MessageView.of)


async def _messages_connection(
    self: SessionView, info: Info, first: int | None = None, after: str | None = None
) -> Connection[Any]:
    """The transcript by pages, oldest first."""
    info.context.demand(_READ)
    wanted = asked(info, first, after, None, newest_first=False)
    (number,) = BY_SEQUENCE.after(after) or (-1,)
    found = await info.context.loaders.messages.load(Messages(self.session_id, wanted.size + 1, number))
    return page(found, wanted, BY_SEQUENCE, MessageView.of)


async def _executions(
    self: SessionView, info: Info, first: int | None = None, after: str | None = None
) -> Connection[Any]:
    """What ran in it, newest first; a running one among them."""
    info.context.demand(_READ)
    wanted = asked(info, first, after, None)
    found = await info.context.loaders.turns.load(Turns(self.session_id, wanted.size + 1, BY_START.after(after)))
    return page(found, wanted, BY_START, info.context.services.sessions.execution_view)


def _field(resolver: Any, kind: Any) -> Any:
    resolver.__signature__ = signature_of(resolver)
    return strawberry.field(
        resolver=resolver, graphql_type=kind, description=" ".join((resolver.__doc__ or "").split())
    )


SessionType = mirror(
    SessionView,
    "Session",
    renamed={"session_id": "id"},
    is_node=True,
    more={
        "status": strawberry.field(resolver=_status, graphql_type=SessionStatus),
        "messages": _field(_messages, many(MessageType)),
        "messages_connection": _field(_messages_connection, MessageConnection),
        "executions": _field(_executions, ExecutionConnection),
    },
)
SessionConnection = pages_of(SessionType)

ProfileType = mirror(ProfileView, "Profile")
ProfilePlanType = mirror(ProfilePlan, "ProfilePlan")
StoredProfileType = mirror(StoredProfile, "StoredProfile")
ToolType = mirror(ToolSpec, "Tool")
ToolResultType = mirror(ToolResult, "ToolResult")
CollectionType = mirror(CollectionView, "Collection")
InstallationType = mirror(InstallationView, "Installation", renamed={"installation_id": "id"}, is_node=True)


@strawberry.type(description="An execution that runs by itself: follow it, or ask for it later.")
class StartedExecution:
    request_id: ID
    session_id: ID


@strawberry.type(description="One event of an execution. `COMPLETE` and `ERROR` are last.")
class StreamEvent:
    type: EventName
    content: str | None = strawberry.field(default=None, description="A piece of the answer; at the end, all of it.")
    tool_call: ToolCall | None = strawberry.field(default=None, graphql_type=ToolCallType | None)
    usage: Usage | None = strawberry.field(default=None, graphql_type=UsageType | None)
    id: ID = strawberry.field(default=ID(""), description="What a reader goes on after: `after`.")
    request_id: ID = ID("")
    tool_calls: list[ToolCall] | None = strawberry.field(
        default=None, graphql_type=many(ToolCallType) | None, description="All of them, at the end."
    )
    finish_reason: str | None = strawberry.field(default=None, description=f"At the end: {FINISH_REASON}.")
    approval: JSON | None = strawberry.field(default=None, description="What a person is asked to decide.")
    problem: JSON | None = strawberry.field(default=None, description="Why it ended in an error.")


def stream_event(event: TurnEvent) -> StreamEvent:
    """An event as it is told here. A sandbox made its data: what has another shape than it should is left out."""
    data, name = event.data, EventName(event.name)
    told = StreamEvent(type=name, id=ID(event.id), request_id=ID(event.request_id))
    text = data.get("content") if name is EventName.TOKEN else data.get("response")
    if name in (EventName.TOKEN, EventName.COMPLETE) and isinstance(text, str):
        told.content = text
    if name is EventName.TOOL_CALL:
        told.tool_call = tool_call(data)
    elif name is EventName.APPROVAL:
        told.approval = JSON(data)
    elif name is EventName.ERROR:
        told.problem = JSON(data)
    if name in (EventName.COMPLETE, EventName.ERROR):
        told.usage = _usage(data.get("usage"))
    if name is EventName.COMPLETE:
        told.finish_reason = finish_reason_of(data.get("finish_reason"))
    if name is EventName.COMPLETE and isinstance(data.get("tool_calls"), list):
        told.tool_calls = [one for one in map(tool_call, data["tool_calls"]) if one is not None]
    return told


def _usage(given: object) -> Usage | None:
    try:
        return Usage.model_validate(given)
    except ValidationError:
        return None
