"""The problem object as a schema, for the documents: what every refusal on every door is (RFC 9457).

`errors.problem` makes them. Owns the members that a problem may have beside the five that it always has: a member is left out
where it has nothing to say.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from amplifier_api_server.runtime.protocol import Usage


class WrongField(BaseModel):
    """What is wrong with one field, parameter or header of a request."""

    field: Annotated[str, Field(description="its name; within an object or a list, the names on the way, with dots")]
    message: Annotated[str, Field(description="what it should be")]


class Problem(BaseModel):
    """Why a request was refused, or how an execution failed (RFC 9457). The documentation of errors lists every `code`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """The address, on this server, of the page about `code`."""
    title: str
    """What the status means, for people."""
    status: int
    """The HTTP status."""
    detail: str
    """What was wrong, and what to do about it, for people."""
    code: str
    """What to program against: it is stable."""
    request_id: str | None = None
    """The id of the execution that it is about."""
    session_id: str | None = None
    """The id of the session that this execution ran in."""
    usage: Usage | None = None
    """What an execution used before it failed."""
    errors: list[WrongField] | None = None
    """Each field that is wrong."""
    retry_after_seconds: int | None = None
    """When it is worth trying again, as in `Retry-After`."""
    permission: str | None = None
    """The permission that the caller lacks."""
    permissions: list[str] | None = None
    """The permissions that the caller lacks, and so can't give to others."""
    limit: str | None = None
    """The name of the limit that was reached, as `GET /v1/limits` lists it or a setting is called."""
    limit_value: int | None = None
    """How much that limit allows."""
    used: int | None = None
    """How much of the limit is taken."""
    reserved: int | None = None
    """How many tokens running executions have reserved of it."""
    holders: list[str] | None = None
    """The sessions that hold the places of the limit."""
    limit_bytes: int | None = None
    """How many bytes are taken at most."""
    installations: list[str] | None = None
    """The installations that have not ended yet."""
    members: int | None = None
    """How many members have the role."""
    keys: int | None = None
    """How many keys have the role."""
    invitations: int | None = None
    """How many open invitations have the role."""
