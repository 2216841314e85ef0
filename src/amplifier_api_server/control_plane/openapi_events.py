"""Streams of server-sent events in the OpenAPI document: the schema of one event, by its name.

As generators of clients and checkers read OpenAPI 3.1, the schema of `text/event-stream` is that of each event (3.2 calls it
`itemSchema`), whose `data` is JSON in a text (JSON Schema 2020-12, Validation 8.4 and 8.5).
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from amplifier_api_server.control_plane.tenant_events.recording import EventType
from amplifier_api_server.control_plane.tenant_events.schemas import TenantEventView
from amplifier_api_server.runtime.protocol import ApprovalEvent, EventName, ToolCallEvent, Usage

Schema = dict[str, Any]

_REF: Final = "#/components/schemas/"
_PROBLEM: Final = "Problem"


class TokenData(BaseModel):
    """`data` of a `token` event: a piece of the answer."""

    content: str


class CompleteData(BaseModel):
    """`data` of a `complete` event: the execution has ended, and is recorded."""

    request_id: str
    usage: Usage
    response: str
    tool_calls: list[ToolCallEvent]


MODELS: Final[tuple[type[BaseModel], ...]] = (TokenData, ToolCallEvent, ApprovalEvent, CompleteData, TenantEventView)

_OF_EXECUTIONS: Final = {
    EventName.TOKEN: TokenData.__name__,
    EventName.TOOL_CALL: ToolCallEvent.__name__,
    EventName.APPROVAL: ApprovalEvent.__name__,
    EventName.COMPLETE: CompleteData.__name__,
    EventName.ERROR: _PROBLEM,
}


def event(names: list[str], data: str, *, has_id: bool = True) -> Schema:
    """One event, whose `data` is the JSON of the component `data`."""
    return {
        "type": "object",
        "properties": {
            "event": {"type": "string", "enum": names},
            "id": {"type": "string", "description": "for Last-Event-ID"},
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"$ref": _REF + data},
            },
        },
        "required": ["event", "data", "id"] if has_id else ["event", "data"],
    }


COMPONENTS: Final[dict[str, Schema]] = {
    "ExecutionEvent": {
        "description": "one event of an execution, as docs/protocol.md says",
        "oneOf": [event([name.value], data) for name, data in _OF_EXECUTIONS.items()],
    },
    "TenantEvent": {
        "description": "one event of a tenant, as docs/events.md says; `error` when the stream can't go on",
        "oneOf": [
            event([kind.value for kind in EventType], TenantEventView.__name__),
            event(["error"], _PROBLEM, has_id=False),
        ],
    },
    "GraphqlEvent": {
        "description": "`next` has a response in its data; after `complete`, whose data is empty, there are none",
        "oneOf": [
            event(["next"], "GraphqlResponse", has_id=False),
            {
                "type": "object",
                "properties": {"event": {"type": "string", "enum": ["complete"]}, "data": {"type": "string"}},
                "required": ["event"],
            },
        ],
    },
}


def stream_of(component: str) -> dict[str, Any]:
    """The `content` of an answer that is a stream of these events."""
    return {"text/event-stream": {"schema": {"$ref": _REF + component}}}
