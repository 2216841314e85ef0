"""Errors of a document, as the same problem objects that REST answers with: `extensions` of each is one.

Owns what a caller may read: a domain error's own words; what graphql-core says of a document that is wrong; of anything
else that it is our mistake, which is logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import structlog
from graphql import GraphQLError

from amplifier_api_server.control_plane.errors import our_mistake, problem, problem_of
from amplifier_api_server.control_plane.graphql.context import Context
from amplifier_api_server.control_plane.origin import current_origin
from amplifier_api_server.control_plane.routes import ClientLeft
from amplifier_api_server.tenants.errors import DomainError, Refused

log = structlog.get_logger(__name__)

INVALID: Final = "graphql_invalid"
_MAX_MESSAGE_CHARS: Final = 500


def told(errors: Sequence[GraphQLError], context: Context) -> list[dict[str, Any]]:
    """A response's `errors`, counted and logged as REST's are."""
    return [_told(one, context) for one in errors]


def refusal(error: DomainError, context: Context) -> dict[str, Any]:
    """One of `errors`, that no field is to blame for."""
    return _counted(problem_of(error), error, context)


def invalid(errors: Sequence[GraphQLError], *, status: int = 400) -> list[dict[str, Any]]:
    """The `errors` of a document that can't be carried out."""
    return [_shape(problem(status, INVALID, _cut(one.message)), one) for one in errors]


def _told(error: GraphQLError, context: Context) -> dict[str, Any]:
    cause = _cause(error)
    if isinstance(cause, DomainError):
        return _shape(_counted(problem_of(cause), cause, context), error, cause.detail)
    if cause is None or (error.path is None and isinstance(cause, ValueError | TypeError)):
        # A variable or an argument that does not fit its type; REST says 422 of such.
        found = problem(422, INVALID, _cut(error.message))
        return _shape(_counted(found, None, context), error)
    return _shape(ours(cause, context, path=error.path), error, our_mistake())


def ours(cause: Exception, context: Context, *, path: Sequence[str | int] | None = None) -> dict[str, Any]:
    """The problem of what nobody foresaw. It is logged; a client that left is nothing unforeseen."""
    if not isinstance(cause, ClientLeft):
        log.error("a field failed", **current_origin().ids, path=path, exc_info=cause)
    return _counted(problem(500, "internal", our_mistake()), None, context)


def _cause(error: GraphQLError) -> Exception | None:
    """What was raised, if something was: graphql-core wraps what it reports itself, too."""
    found: Exception | None = error.original_error
    while isinstance(found, GraphQLError):
        found = found.original_error
    return found


def _counted(found: dict[str, Any], error: DomainError | None, context: Context) -> dict[str, Any]:
    telemetry = context.services.telemetry
    if isinstance(error, Refused):
        limit = str(error.extra.get("limit", error.stable_code))
        telemetry.limit_exceeded(user_id=context.principal.member_id, limit=limit)
    telemetry.api_error(error=found["code"], status=found["status"])
    return found


def _shape(found: dict[str, Any], error: GraphQLError, message: str | None = None) -> dict[str, Any]:
    shaped: dict[str, Any] = {"message": message or _cut(error.message), "extensions": found}
    if error.locations:
        shaped["locations"] = [{"line": one.line, "column": one.column} for one in error.locations]
    if error.path is not None:
        shaped["path"] = error.path
    return shaped


def of_request(error: DomainError) -> dict[str, Any]:
    """The problem of a request that asks for nothing, with the status that HTTP has for it."""
    return problem_of(error)


def bare(found: dict[str, Any]) -> dict[str, Any]:
    """A problem as one of `errors`, that is at no place in the document."""
    return {"message": found["detail"], "extensions": found}


def _cut(message: str) -> str:
    return message if len(message) <= _MAX_MESSAGE_CHARS else message[:_MAX_MESSAGE_CHARS] + "..."
