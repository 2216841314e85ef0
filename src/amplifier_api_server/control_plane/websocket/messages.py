"""What a client sends: every message as a model. What is no such message never gets further than `read`.

Owns the names of the messages and what is in them. The members of an operation's body are inherited from REST's own schema,
so that they can't drift apart. AsyncAPI is generated from these models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StrictBool, StrictInt, StrictStr, ValidationError

from amplifier_api_server.control_plane import wrong_fields
from amplifier_api_server.control_plane.errors import NotJson
from amplifier_api_server.control_plane.idempotency.fingerprints import MAX_KEY_CHARS
from amplifier_api_server.control_plane.request_json import parsed
from amplifier_api_server.control_plane.sessions.schemas import (
    AnswerApproval,
    CallbackRequest,
    CreateSession,
    ForkSession,
    UpdateSession,
)
from amplifier_api_server.runtime.protocol import MAX_PROMPT_CHARS
from amplifier_api_server.tenants.errors import Malformed

_MAX_NAME_CHARS = 160  # what a segment of a path may have
_MAX_CURSOR_CHARS = 512
_MAX_ID_CHARS = 128
_MAX_ERRORS = 20

MessageId = Annotated[
    Annotated[StrictStr, Field(max_length=_MAX_ID_CHARS)] | StrictInt,
    Field(description="chosen by the client; every answer to the message has it too"),
]
Name = Annotated[StrictStr, Field(min_length=1, max_length=_MAX_NAME_CHARS)]
Cursor = Annotated[StrictStr, Field(max_length=_MAX_CURSOR_CHARS)]


class Message(BaseModel):
    """What every message has."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={})

    id: MessageId | None = None


class Keyed(Message):
    """One that creates or executes: with a key, its repetition is harmless."""

    idempotency_key: Annotated[
        StrictStr | None, Field(max_length=MAX_KEY_CHARS + 2, description="as the header Idempotency-Key of REST")
    ] = None


class Authenticate(Message):
    """Say who is there: the first message, and again before a token expires."""

    type: Literal["auth"]
    token: Annotated[SecretStr, Field(max_length=16_000, description="an API key or a JWT")]


class Ping(Message):
    """Ask for a `pong`."""

    type: Literal["ping"]


class SessionCreate(Keyed, CreateSession):
    """Create a session."""

    type: Literal["session.create"]


class SessionGet(Message):
    """Read one session."""

    type: Literal["session.get"]
    session_id: Name


class SessionList(Message):
    """Read a page of the tenant's sessions, newest first."""

    type: Literal["session.list"]
    limit: Annotated[StrictInt | None, Field(ge=1)] = None
    cursor: Cursor | None = None
    order: Literal["asc", "desc"] | None = None
    status: list[Literal["active", "suspended", "closed", "failed"]] | None = None
    profile: Name | None = None
    member_id: Name | None = None


class SessionUpdate(Message, UpdateSession):
    """Give a session another title."""

    type: Literal["session.update"]
    session_id: Name


class SessionFork(Keyed, ForkSession):
    """Make a new session that goes on from where this one is, or was."""

    type: Literal["session.fork"]
    session_id: Name


class SessionClose(Message):
    """Close a session for good."""

    type: Literal["session.close"]
    session_id: Name


class Execute(Keyed):
    """Run one prompt: its events follow, unless it is to run in the background."""

    type: Literal["execute"]
    session_id: Name
    prompt: Annotated[StrictStr, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
    background: Annotated[StrictBool, Field(description="send none of its events; `attach` does")] = False
    callback: CallbackRequest | None = None


class ExecuteOnce(Keyed, CreateSession):
    """Run one prompt in a session of its own, which is closed at its end; its events follow, as those of `execute`."""

    type: Literal["execute.once"]
    prompt: Annotated[StrictStr, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
    background: Annotated[StrictBool, Field(description="send none of its events; `attach` does")] = False
    callback: CallbackRequest | None = None


class Cancel(Message):
    """End a running execution."""

    type: Literal["cancel"]
    session_id: Name
    request_id: Name


class Attach(Message):
    """Follow an execution, whichever door it was begun on, from its first event or from the one after `after`."""

    type: Literal["attach"]
    session_id: Name
    request_id: Name
    after: Annotated[StrictStr | None, Field(max_length=_MAX_NAME_CHARS, description="an event_id")] = None


class Detach(Message):
    """Send no more events of an execution; it runs on."""

    type: Literal["detach"]
    request_id: Name


class ApprovalRespond(Keyed, AnswerApproval):
    """Answer what an execution waits for."""

    type: Literal["approval.respond"]
    session_id: Name
    request_id: Name
    approval_id: Name


class ApprovalsList(Message):
    """Read what an execution waits for."""

    type: Literal["approvals.list"]
    session_id: Name
    request_id: Name


class EventsSubscribe(Message):
    """Follow what happens in the tenant: from now on, from the oldest that is kept, or from the event after `after`."""

    type: Literal["events.subscribe"]
    after: Annotated[StrictStr | None, Field(max_length=64, description="an event_id")] = None
    start: Annotated[StrictBool, Field(description="begin with the oldest event that is kept")] = False
    types: Annotated[list[Name] | None, Field(max_length=100, description="these alone")] = None


class EventsUnsubscribe(Message):
    """Send no more of them."""

    type: Literal["events.unsubscribe"]


class Ask(Keyed):
    """Any other operation of the API, by the name that it has in the OpenAPI document."""

    type: Literal["call"]
    operation: Name
    params: Annotated[
        dict[Name, Any], Field(description="the parameters of its path and its query, by their names", max_length=50)
    ] = {}
    body: Annotated[Any, Field(description="the JSON of its body, if it has one")] = None


CLIENT_MESSAGES: Final[Mapping[str, type[Message]]] = {
    kind.model_fields["type"].annotation.__args__[0]: kind  # type: ignore[union-attr]
    for kind in (
        Authenticate,
        Ping,
        SessionCreate,
        SessionGet,
        SessionList,
        SessionUpdate,
        SessionFork,
        SessionClose,
        Execute,
        ExecuteOnce,
        Cancel,
        Attach,
        Detach,
        ApprovalRespond,
        ApprovalsList,
        EventsSubscribe,
        EventsUnsubscribe,
        Ask,
    )
}


class Unreadable(Malformed):
    """No message; `message_id` is its id, where it has one that can be told."""

    def __init__(self, detail: str, *, code: str, message_id: str | int | None = None, **more: Any) -> None:
        super().__init__(detail, code=code, **more)
        self.message_id = message_id


class NoMessage(Unreadable, NotJson):
    """It is no JSON object."""


def read(text: str) -> tuple[Message, dict[str, Any]]:
    """The message in a text frame, and its members as they were sent. Raises Unreadable."""
    try:
        found = parsed(text.encode(), whole="a message")
    except NotJson as error:
        raise NoMessage(error.detail, code=error.stable_code) from error
    except Malformed as error:
        raise Unreadable(error.detail, code=error.stable_code, **error.extra) from error
    except UnicodeEncodeError as error:
        raise NoMessage("a message should be Unicode", code="invalid_json") from error
    if not isinstance(found, dict):
        raise NoMessage("a message should be a JSON object", code="invalid_json")
    message_id = _id_of(found)
    name = found.get("type")
    kind = CLIENT_MESSAGES.get(name) if isinstance(name, str) else None
    if kind is None:
        raise Unreadable(
            f"type should be one of {', '.join(CLIENT_MESSAGES)}", code="unknown_message", message_id=message_id
        )
    try:
        return kind.model_validate(found), found
    except (ValidationError, RecursionError) as error:
        raise _invalid(error, message_id) from error


def _id_of(found: dict[str, Any]) -> str | int | None:
    given = found.get("id")
    if isinstance(given, str):
        return given if len(given) <= _MAX_ID_CHARS else None
    return given if isinstance(given, int) and not isinstance(given, bool) else None


def _invalid(error: Exception, message_id: str | int | None) -> Unreadable:
    if not isinstance(error, ValidationError):
        return Unreadable("the message is nested too deeply", code="invalid_request", message_id=message_id)
    told = error.errors(include_url=False, include_input=False, include_context=False)
    wrong = wrong_fields.told(told[:_MAX_ERRORS], whole="message")
    return Unreadable(
        wrong_fields.detail(wrong, len(told)), code="invalid_request", message_id=message_id, errors=wrong
    )
