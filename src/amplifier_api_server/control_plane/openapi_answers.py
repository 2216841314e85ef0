"""What any operation may answer besides its own: the refusals of the edge, and the headers that every answer has.

Owns what follows from a route alone: whether it knows its caller, counts among the limits, takes a body or a key. Pure.
"""

from __future__ import annotations

from typing import Any, Final

from amplifier_api_server.control_plane.errors import PROBLEM_TYPE, TITLES
from amplifier_api_server.control_plane.operations import Admit
from amplifier_api_server.control_plane.routes import Route
from amplifier_api_server.tenants.permissions import OPERATOR_RESOURCES

_TEXT: Final = {"type": "string"}
_NUMBER: Final = {"type": "integer", "minimum": 0}

HEADERS: Final[dict[str, dict[str, Any]]] = {
    "X-Request-Id": {"description": "of this request, for its operator", "required": True, "schema": _TEXT},
    "Location": {
        "description": "the address of what was made, or of the job that goes on",
        "required": True,
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "Retry-After": {"description": "seconds until it is worth to ask again", "schema": _NUMBER},
    "WWW-Authenticate": {
        "description": 'what is asked for; of a token that is refused, error="invalid_token" and why (RFC 6750, 3)',
        "required": True,
        "schema": _TEXT,
    },
    "X-RateLimit-Limit": {"description": "requests a minute; absent where they are unlimited", "schema": _NUMBER},
    "X-RateLimit-Remaining": {"description": "requests that are left", "schema": _NUMBER},
    "X-RateLimit-Reset": {"description": "when they are whole again, in seconds since the epoch", "schema": _NUMBER},
    "Idempotent-Replayed": {
        "description": "`true`: the answer to an earlier request with this key",
        "schema": {"type": "string", "enum": ["true"]},
    },
}
_OF_LIMITS: Final = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
# Who may not ask is refused before the request counts; and so it may be where the server fails.
_UNCOUNTED: Final = frozenset({"401", "403", "500", "503"})
_MADE: Final = frozenset({"201", "202"})
_COME_BACK: Final = frozenset({"429", "502", "503", "507"})

IDEMPOTENCY_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "a text of your own, new for each thing that is to be done: a repetition is answered as the first was",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}


def problem_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses that are problems."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": TITLES[status], "content": {PROBLEM_TYPE: {"schema": schema}}} for status in statuses
    }


def complete(found: dict[str, Any], route: Route) -> None:
    """Give an OpenAPI operation what its route says."""
    responses = found["responses"]
    if route.operation.takes_key:
        found["parameters"] = [*found.get("parameters", []), IDEMPOTENCY_KEY]
    for status in statuses_of(route, has_body="requestBody" in found):
        problem = problem_answers(status)[status]
        responses.setdefault(str(status), problem)["content"] |= problem["content"]
    found["responses"] = dict(sorted(responses.items()))
    for status, response in found["responses"].items():
        headers = response.setdefault("headers", {})
        for name in _headers_of(route, status):
            headers.setdefault(name, {"$ref": f"#/components/headers/{name}"})


def statuses_of(route: Route, *, has_body: bool) -> list[int]:
    """Problems that come of what stands before the work: who calls, limits, bounds, a database that does not answer."""
    found = [500]
    if route.permission is not None:
        found += [401, 403, 503]
        if route.operation.admit is not Admit.NOBODY:
            found.append(429)
    if has_body:
        found += [400, 413, 415, 422]
    if route.operation.takes_key:
        found += [409, 422]
    if route.operation.grows:
        found.append(507)
    return found


def _is_counted(route: Route) -> bool:
    """Whether it counts among limits of its callers; operators have none."""
    resource = (route.permission or "").partition(":")[0]
    return resource not in ("", *OPERATOR_RESOURCES) and route.operation.admit is not Admit.NOBODY


def _headers_of(route: Route, status: str) -> list[str]:
    found = ["X-Request-Id"]
    if status in _MADE:
        found.append("Location")
    if status == "401" and route.permission is not None:
        found.append("WWW-Authenticate")
    if status in _COME_BACK:
        found.append("Retry-After")
    if _is_counted(route) and status not in _UNCOUNTED:
        found += _OF_LIMITS
    if route.operation.takes_key:
        found.append("Idempotent-Replayed")
    return found
