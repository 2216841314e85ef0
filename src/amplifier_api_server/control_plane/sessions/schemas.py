"""What the sessions' endpoints take and give."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)

from amplifier_api_server.control_plane.schemas import Body, Broken, Instant
from amplifier_api_server.control_plane.sessions.called_tools import CalledTool, shown
from amplifier_api_server.control_plane.sessions.copies import Wish
from amplifier_api_server.control_plane.sessions.tally import Spent
from amplifier_api_server.runtime.protocol import (
    MAX_APPROVAL_OPTION_CHARS,
    MAX_PROMPT_CHARS,
    ApprovalEvent,
    FinishReason,
    ToolCall,
    Usage,
)
from amplifier_api_server.tenants.ids import SessionId, TurnId
from amplifier_api_server.tenants.json_columns import spoiled_in
from amplifier_api_server.tenants.models import Message, Session, Turn, TurnCallback

_MAX_CONTEXT_BYTES = 64 * 1024


def _bounded_context(value: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(orjson.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError("should be plain JSON, not nested too deeply") from error
    if size > _MAX_CONTEXT_BYTES:
        raise ValueError(f"should be at most {_MAX_CONTEXT_BYTES} bytes of JSON; it has {size}")
    return value


class CreateSession(Body):
    """`POST /v1/sessions`."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"profile": "foundation:base", "context": {"project": "birds"}}}
    )

    profile: Annotated[
        str, Field(min_length=1, max_length=160, description="collection:profile, as GET /v1/profiles lists it")
    ]
    context: dict[str, Any] = Field({}, description="facts about the work, told to the model; at most 64 KiB of JSON")

    _context_is_bounded = field_validator("context")(_bounded_context)


Title = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")
]


class UpdateSession(Body):
    """`PATCH /v1/sessions/{session_id}`."""

    model_config = ConfigDict(json_schema_extra={"example": {"title": "Birds of the north"}})

    title: Annotated[Title | None, Field(description="for people to read; null takes it away")]


class ForkSession(Body):
    """`POST /v1/sessions/{session_id}/fork`."""

    model_config = ConfigDict(json_schema_extra={"example": {"title": "Another way", "files": True}})

    request_id: Annotated[
        str | None,
        Field(max_length=64, description="the last execution that goes over; by default all that have ended"),
    ] = None
    title: Annotated[Title | None, Field(description="by default the source's")] = None
    files: Annotated[bool, Field(description="copy the workspace, as it is now")] = True

    def wish(self) -> Wish:
        return Wish(
            at=TurnId(self.request_id) if self.request_id is not None else None, title=self.title, files=self.files
        )


class ExportedSession(BaseModel):
    """What a document says of the session. Of what is imported, profile, context and title count; all else is for readers."""

    model_config = ConfigDict(extra="forbid")

    profile: Annotated[str, Field(min_length=1, max_length=160)]
    context: dict[str, Any] = {}
    title: Title | None = None
    session_id: str | None = None
    model: str | None = None
    created_at: Instant | None = None

    _context_is_bounded = field_validator("context")(_bounded_context)


class SessionDocument(BaseModel):
    """`GET .../export`, `POST /v1/sessions/import`: a session and its transcript."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["amplifier-session/1"]
    session: ExportedSession
    messages: list[dict[str, Any]]


class CallbackRequest(Body):
    """Who is told when an execution has ended: a POST of the execution, as `GET` shows it then."""

    url: Annotated[str, Field(min_length=1, max_length=2048, description="an https:// address of the public internet")]
    secret: Annotated[
        SecretStr | None,
        Field(
            max_length=200, description="whsec_ and base64: what is sent is signed with it, as Standard Webhooks has it"
        ),
    ] = None


class Execute(Body):
    """`POST /v1/sessions/{session_id}/execute`."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"prompt": "Explain the authentication flow", "stream": False}},
    )

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
    stream: Annotated[bool, Field(description="answer with server-sent events as they are made")] = False
    background: Annotated[bool, Field(description="answer at once, with 202; the execution goes on by itself")] = False
    callback: CallbackRequest | None = None

    @model_validator(mode="after")
    def _streams_or_not(self) -> Execute:
        if self.stream and self.background:
            raise ValueError(
                "stream and background exclude each other; the events of a background execution are at its /events"
            )
        return self


class ExecuteOnce(CreateSession, Execute):
    """`POST /v1/executions`."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"profile": "foundation:base", "prompt": "Summarise the news of today"}}
    )


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
    broken: Broken

    @classmethod
    def of(cls, session: Session) -> SessionView:
        same = session.model_dump(include=set(cls.model_fields) - {"session_id"})
        return cls(session_id=session.id, broken=spoiled_in(session), **same)


class SessionPage(BaseModel):
    sessions: list[SessionView]
    next_cursor: str | None = None


class ExecutionResult(BaseModel):
    request_id: str
    session_id: str
    response: str
    finish_reason: FinishReason
    usage: Usage
    tool_calls: list[ToolCall]


class ExecutionStarted(BaseModel):
    """The answer to `execute` with `background`: it runs; how it goes on is at `Location`."""

    request_id: str
    session_id: str
    status: Literal["running"] = "running"


class CallbackView(BaseModel):
    """How far the telling is."""

    url: str
    status: Literal["waiting", "due", "delivered", "failed"]
    attempts: int
    problem: str = ""  # of the last attempt

    @classmethod
    def of(cls, row: TurnCallback) -> CallbackView:
        return cls(**row.model_dump(include=set(cls.model_fields)))


TurnState = Literal["running", "waiting_for_approval", "completed", "failed", "cancelled"]


class ExecutionView(BaseModel):
    """`GET /v1/sessions/{session_id}/executions/{request_id}`."""

    request_id: str
    session_id: str
    status: TurnState
    response: str
    finish_reason: FinishReason
    usage: Usage
    tool_calls: list[dict[str, Any]]
    problem: dict[str, Any] | None = None
    started_at: datetime
    finished_at: datetime | None = None
    callback: CallbackView | None = None  # of one that was asked for; in `GET` of the one execution alone
    broken: Broken

    @classmethod
    def of(cls, turn: Turn, callback: TurnCallback | None = None) -> ExecutionView:
        used = Spent.of_row(turn).usage
        same = turn.model_dump(
            include={
                *("session_id", "status", "response", "finish_reason", "tool_calls", "problem"),
                *("started_at", "finished_at"),
            }
        )
        told = CallbackView.of(callback) if callback is not None else None
        return cls(request_id=turn.id, usage=used, callback=told, broken=spoiled_in(turn), **same)


class ExecutionPage(BaseModel):
    executions: list[ExecutionView]
    next_cursor: str | None = None


def _is_none(value: object) -> bool:
    return value is None


class MessageView(BaseModel):
    """One message of a transcript; further members are as the model's dialect has them."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: Any = None
    tool_calls: Annotated[
        list[CalledTool] | None, Field(exclude_if=_is_none, description="of an assistant's message that called tools")
    ] = None
    call_id: Annotated[
        str | None, Field(exclude_if=_is_none, description="of a `tool` message: the call that it is the result of")
    ] = None
    tool: Annotated[str | None, Field(exclude_if=_is_none, description="of a `tool` message: which tool's it is")] = (
        None
    )
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
        return cls.model_validate({**shown(message.body), **own})


class MessagePage(BaseModel):
    messages: list[MessageView]
    next_cursor: str | None = None


class ExecutionCancelled(BaseModel):
    """`POST .../cancel`: how the execution ended; `completed` where it had ended before."""

    request_id: str
    status: Literal["completed", "failed", "cancelled"]


class ApprovalView(BaseModel):
    """A person's consent that an execution waits for, or how that ended."""

    approval_id: str
    session_id: str
    request_id: str
    status: Literal["requested", "answered", "timed_out", "cancelled"]
    prompt: str
    options: list[str]
    default: Literal["deny"] = "deny"  # what it comes to when nobody answers
    timeout_seconds: float
    expires_at: AwareDatetime
    tool: str | None = None
    call_id: str | None = None
    choice: str | None = None
    approved: bool | None = None
    agent: str | None = None  # of one that a delegated agent asks for
    agent_session_id: str | None = None

    @classmethod
    def of(cls, session_id: SessionId, turn_id: TurnId, event: ApprovalEvent) -> ApprovalView:
        """Raises ValueError for what a sandbox says that is none."""
        return cls(session_id=session_id, request_id=turn_id, **event.model_dump())


class ApprovalPage(BaseModel):
    approvals: list[ApprovalView]
    next_cursor: str | None = None


class ApprovalList(BaseModel):
    approvals: list[ApprovalView]


class AnswerApproval(Body):
    """`POST .../approvals/{approval_id}`: exactly one of both."""

    model_config = ConfigDict(json_schema_extra={"example": {"choice": "Allow once"}})

    choice: Annotated[str | None, Field(max_length=MAX_APPROVAL_OPTION_CHARS, description="one of its options")] = None
    approved: Annotated[bool | None, Field(description="true is the option that allows once; false denies")] = None

    @model_validator(mode="after")
    def _is_one(self) -> AnswerApproval:
        if (self.choice is None) == (self.approved is None):
            raise ValueError("give choice, which is one of its options, or approved, which is true or false")
        return self
