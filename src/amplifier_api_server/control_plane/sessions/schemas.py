"""What the sessions' endpoints take and give."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from amplifier_api_server.control_plane.sessions.copies import Wish
from amplifier_api_server.control_plane.sessions.tally import Spent
from amplifier_api_server.runtime.protocol import MAX_PROMPT_CHARS, ToolCallEvent, Usage
from amplifier_api_server.tenants.ids import TurnId
from amplifier_api_server.tenants.models import Message, Session, Turn

_MAX_CONTEXT_BYTES = 64 * 1024


def _bounded_context(value: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(orjson.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError("should be plain JSON, not nested too deeply") from error
    if size > _MAX_CONTEXT_BYTES:
        raise ValueError(f"should be at most {_MAX_CONTEXT_BYTES} bytes of JSON; it has {size}")
    return value


class CreateSession(BaseModel):
    """`POST /v1/sessions`."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"profile": "foundation:base", "context": {"project": "birds"}}}
    )

    profile: Annotated[
        str, Field(min_length=1, max_length=160, description="collection:profile, as GET /v1/profiles lists it")
    ]
    context: Annotated[
        dict[str, Any], Field(description="facts about the work, told to the model; at most 64 KiB of JSON")
    ] = {}

    _context_is_bounded = field_validator("context")(_bounded_context)


class Execute(BaseModel):
    """`POST /v1/sessions/{session_id}/execute`."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"prompt": "Explain the authentication flow", "stream": False}},
    )

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
    stream: Annotated[bool, Field(description="answer with server-sent events as they are made")] = False


_Title = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$"),
    Field(description="for people to read"),
]


class UpdateSession(BaseModel):
    """`PATCH /v1/sessions/{session_id}`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"title": "Birds of the north"}})

    title: Annotated[_Title | None, Field(description="null takes it away")]


class ForkSession(BaseModel):
    """`POST /v1/sessions/{session_id}/fork`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"title": "Another way"}})

    request_id: Annotated[
        str | None,
        StringConstraints(max_length=64, pattern=r"^req_[0-9A-Za-z]+$"),
        Field(description="the last execution that goes over; all that have ended, if left out"),
    ] = None
    title: _Title | None = None
    files: Annotated[bool, Field(description="copy the workspace, as it is now")] = True

    def wish(self) -> Wish:
        return Wish(TurnId(self.request_id) if self.request_id else None, self.title, self.files)


class ExportedFacts(BaseModel):
    """Of an export, what is known of the session. Only profile, title and context are taken when it is imported."""

    model_config = ConfigDict(extra="ignore")

    session_id: str | None = None
    title: _Title | None = None
    profile: Annotated[str, Field(min_length=1, max_length=160)]
    context: dict[str, Any] = {}
    model: str | None = None
    created_at: datetime | None = None

    _context_is_bounded = field_validator("context")(_bounded_context)


class SessionDocument(BaseModel):
    """A session and its transcript: what `exportSession` answers and `importSession` takes."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["amplifier-session/1"]
    session: ExportedFacts
    messages: list[dict[str, Any]]


class SessionView(BaseModel):
    session_id: str
    title: str | None = None
    forked_from: dict[str, Any] | None = None  # {session_id, request_id} of what it was made from
    created_at: datetime
    profile: str
    status: Literal["active", "suspended", "closed", "failed"]
    model: str
    context: dict[str, Any]
    failure: dict[str, Any] | None = None  # {code, detail}, of a failed one
    last_active_at: datetime
    closed_at: datetime | None = None
    message_count: int
    turn_count: int
    member_id: str

    @classmethod
    def of(cls, session: Session) -> SessionView:
        return cls(session_id=session.id, **session.model_dump(include=set(cls.model_fields) - {"session_id"}))


class SessionPage(BaseModel):
    sessions: list[SessionView]
    next_cursor: str | None = None


class ExecutionResult(BaseModel):
    request_id: str
    response: str
    usage: Usage
    tool_calls: list[ToolCallEvent]


class ExecutionView(BaseModel):
    """`GET /v1/sessions/{session_id}/executions/{request_id}`."""

    request_id: str
    session_id: str
    status: Literal["running", "completed", "failed", "cancelled"]
    response: str
    usage: Usage
    tool_calls: list[dict[str, Any]]
    problem: dict[str, Any] | None = None
    started_at: datetime
    finished_at: datetime | None = None

    @classmethod
    def of(cls, turn: Turn) -> ExecutionView:
        used = Spent.of_row(turn).usage
        same = turn.model_dump(
            include={"session_id", "status", "response", "tool_calls", "problem", "started_at", "finished_at"}
        )
        return cls(request_id=turn.id, usage=used, **same)


class ExecutionPage(BaseModel):
    executions: list[ExecutionView]
    next_cursor: str | None = None


class MessageView(BaseModel):
    """One message of a transcript; further members are as the model's dialect has them."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: Any = None
    request_id: str
    seq: int
    created_at: datetime

    @classmethod
    def of(cls, message: Message) -> MessageView:
        own = {
            "role": message.role,
            "request_id": message.turn_id,
            "seq": message.seq,
            "created_at": message.created_at,
        }
        return cls.model_validate({**message.body, **own})


class MessagePage(BaseModel):
    messages: list[MessageView]
    next_cursor: str | None = None


class ExecutionCancelled(BaseModel):
    """`POST .../cancel`: how the execution ended; `completed` where it had ended before."""

    request_id: str
    status: Literal["completed", "failed", "cancelled"]
