"""Streams of server-sent events in the OpenAPI document: the schema of one event, by its name.

In OpenAPI 3.1 a schema is that of a whole body, and the whole of a stream is text. What is in the text is said by
`contentSchema`: events, whose `data` is again JSON in a text (JSON Schema 2020-12, Validation 8.4 and 8.5).
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from amplifier_api_server.control_plane.problems import Problem
from amplifier_api_server.control_plane.tenant_events.recording import EventType
from amplifier_api_server.control_plane.tenant_events.schemas import TenantEventView
from amplifier_api_server.runtime.protocol import ApprovalEvent, EventName, FinishReason, ToolCall, Usage

Schema = dict[str, Any]

_REF: Final = "#/components/schemas/"


class TokenData(BaseModel):
    """`data` of a `token` event: a piece of the answer."""

    content: str


class CompleteData(BaseModel):
    """`data` of a `complete` event: the execution has ended, and is recorded."""

    request_id: str
    session_id: str
    usage: Usage
    response: str
    finish_reason: FinishReason
    tool_calls: list[ToolCall]


MODELS: Final[tuple[type[BaseModel], ...]] = (
    Problem,
    TokenData,
    ToolCall,
    ApprovalEvent,
    CompleteData,
    TenantEventView,
)


def _event(names: list[str], data: Schema, *, has_id: bool = True, needs_data: bool = True) -> Schema:
    """One event, whose `data` is JSON of that schema."""
    return {
        "type": "object",
        "properties": {
            "event": {"type": "string", "enum": names, "description": "what happened"},
            **({"id": {"type": "string", "description": "for Last-Event-ID"}} if has_id else {}),
            "data": {"type": "string", **data},
        },
        "required": ["event", *(["id"] if has_id else []), *(["data"] if needs_data else [])],
    }


def _json_of(component: str) -> Schema:
    return {
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": _REF + component},
        "description": f"the JSON of a {component}",
    }


def _one_of(description: str, events: dict[str, Schema]) -> dict[str, Schema]:
    """The components of a stream: each event by its name, and the first name in `events` for any of them."""
    whole, *named = events
    return {
        whole: {"description": description, "oneOf": [{"$ref": _REF + name} for name in named]},
        **{name: events[name] for name in named},
    }


COMPONENTS: Final[dict[str, Schema]] = {
    **_one_of(
        "One event of an execution. `complete` and `error` are the last.",
        {
            "ExecutionEvent": {},
            "ExecutionTokenEvent": _event([EventName.TOKEN.value], _json_of(TokenData.__name__)),
            "ExecutionToolCallEvent": _event([EventName.TOOL_CALL.value], _json_of(ToolCall.__name__)),
            "ExecutionApprovalEvent": _event([EventName.APPROVAL.value], _json_of(ApprovalEvent.__name__)),
            "ExecutionCompleteEvent": _event([EventName.COMPLETE.value], _json_of(CompleteData.__name__)),
            "ExecutionErrorEvent": _event([EventName.ERROR.value], _json_of(Problem.__name__)),
        },
    ),
    **_one_of(
        "One event of a tenant; `error` when the stream can't go on.",
        {
            "TenantEvent": {},
            "TenantChangeEvent": _event([kind.value for kind in EventType], _json_of(TenantEventView.__name__)),
            "TenantErrorEvent": _event(["error"], _json_of(Problem.__name__), has_id=False),
        },
    ),
    **_one_of(
        "`next` has a response in its data; after `complete`, whose data is empty, there are none.",
        {
            "GraphqlEvent": {},
            "GraphqlNextEvent": _event(["next"], _json_of("GraphqlResponse"), has_id=False),
            "GraphqlCompleteEvent": _event(["complete"], {"description": "empty"}, has_id=False, needs_data=False),
        },
    ),
}


def stream_of(component: str) -> dict[str, Any]:
    """The `content` of an answer that is a stream of these events."""
    schema = {
        "type": "string",
        "description": f"server-sent events (WHATWG HTML, 9.2), each a {component}",
        "contentMediaType": "text/event-stream",
        "contentSchema": {"type": "array", "items": {"$ref": _REF + component}},
    }
    return {"text/event-stream": {"schema": schema}}
