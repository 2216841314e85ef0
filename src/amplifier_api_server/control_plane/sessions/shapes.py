"""What is in JSON columns of sessions and executions, as schemas for the OpenAPI document.

The views of rows give these members as they are stored, so that one that can't be read fails nobody's list; the document says
what they are.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

_REF: Final = "#/components/schemas/"


class SessionOrigin(BaseModel):
    """The session that another one was forked from."""

    session_id: str
    request_id: Annotated[str | None, Field(description="the last execution that went over; null: all that had ended")]


class SessionFailure(BaseModel):
    """Why a session failed."""

    code: str
    detail: str


class TranscriptCall(BaseModel):
    """A tool call in a message of a transcript, in the form that is exported; an import takes others as well."""

    id: Annotated[str, Field(description="the call's id, which its result names")]
    tool: str | None = None
    arguments: Annotated[Any, Field(description="what the tool is called with")] = None


class TranscriptMessage(BaseModel):
    """A message of a transcript that is exported or imported; it may have further members."""

    role: Annotated[str, Field(description="user, assistant or tool")]
    content: Annotated[str | list[dict[str, Any]], Field(description="a text, or a list of blocks")]
    tool_calls: Annotated[list[TranscriptCall] | None, Field(description="of an assistant's message")] = None
    tool_call_id: Annotated[str | None, Field(description="of a tool's message: the call that it is the result of")] = (
        None
    )
    request_id: Annotated[str | None, Field(description="the execution that it came of")] = None
    seq: int | None = None
    created_at: datetime | None = None


MODELS: Final[tuple[type[BaseModel], ...]] = (SessionOrigin, SessionFailure, TranscriptMessage)


def _or_null(name: str) -> dict[str, Any]:
    return {"anyOf": [{"$ref": _REF + name}, {"type": "null"}]}


def _list_of(name: str) -> dict[str, Any]:
    return {"type": "array", "items": {"$ref": _REF + name}}


TYPED: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("SessionView", "forked_from"): _or_null("SessionOrigin"),
    ("SessionView", "failure"): _or_null("SessionFailure"),
    ("ExecutionView", "tool_calls"): _list_of("ToolCall"),
    ("ExecutionView", "problem"): _or_null("Problem"),
    ("SessionDocument", "messages"): _list_of("TranscriptMessage"),
}
