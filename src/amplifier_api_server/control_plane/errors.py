"""Problems: the one table from the domain's errors to HTTP, and the shape that every door answers with (RFC 9457).

`docs/errors.md` lists every code; a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import orjson

from amplifier_api_server.control_plane.origin import current_origin
from amplifier_api_server.control_plane.problem_codes import CODES
from amplifier_api_server.tenants import errors


class BadRequest(errors.Malformed):
    """It can't be read at all."""


class NotJson(BadRequest):
    code = "invalid_json"


class UnsupportedMediaType(errors.Malformed):
    """A body of a type, or in a coding, that is not taken; `taken` are those that are."""

    code = "unsupported_media_type"
    header: ClassVar[bytes] = b"accept"  # what is taken is named there (RFC 9110, 15.5.16)

    def __init__(self, detail: str, taken: Sequence[str]) -> None:
        super().__init__(detail)
        self.taken = taken


class UnsupportedContentEncoding(UnsupportedMediaType):
    code = "unsupported_content_encoding"
    header = b"accept-encoding"


class MethodNotAllowed(errors.DomainError):
    code = "method_not_allowed"

    def __init__(self, detail: str, allowed: Sequence[str]) -> None:
        super().__init__(detail)
        self.allowed = allowed


class UpgradeRequired(errors.DomainError):
    code = "websocket_required"

    def __init__(self) -> None:
        super().__init__("this path is a WebSocket's: ask for an upgrade (RFC 6455)")


STATUS: Mapping[type[errors.DomainError], int] = {
    BadRequest: 400,
    UnsupportedMediaType: 415,
    MethodNotAllowed: 405,
    UpgradeRequired: 426,
    errors.Invalid: 422,
    errors.Malformed: 422,
    errors.NotFound: 404,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.Conflict: 409,
    errors.Unreadable: 409,
    errors.Closed: 410,
    errors.Gone: 410,
    errors.Refused: 429,
    errors.QuotaExceeded: 429,
    errors.TooLarge: 413,
    errors.InsufficientStorage: 507,  # RFC 4918, 11.5
    errors.Unavailable: 503,
    errors.RuntimeLost: 502,
    errors.TurnFailed: 502,
    errors.TurnCancelled: 409,
}

TITLES: Mapping[int, str] = {
    400: "Bad request",
    401: "Not authenticated",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timed out",
    409: "Conflict",
    410: "Gone",
    413: "Too large",
    414: "Address too long",
    415: "Unsupported media type",
    422: "Invalid request",
    426: "Upgrade required",
    429: "Limit reached",
    431: "Headers too large",
    500: "Internal error",
    502: "The execution failed",
    503: "Unavailable",
    504: "Timed out",
    507: "No room left",
}

# What of an execution failed, where its code says so.
_TITLES_OF_CODES: Mapping[str, str] = {
    **dict.fromkeys(
        ("provider_unavailable", "provider_auth", "provider_error", "model_failed", "model_timeout"),
        "The model's provider failed",
    ),
    **dict.fromkeys(
        ("runtime_lost", "runtime_refused", "runtime_stopping", "runtime_failed", "not_durable"), "The sandbox failed"
    ),
}

NO_SUCH_PATH = "there is nothing at this path; /docs shows what there is"
PROBLEM_TYPE = "application/problem+json"


def status_of(error: errors.DomainError) -> int:
    """The HTTP status of an error: of its class, or of the nearest class above it."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return 500


def problem(status: int, code: str, detail: str, **extra: Any) -> dict[str, Any]:
    """A problem object. `type` is the page about the code; a code of a provider or a module has that of a failed turn.

    A `request_id` among `extra` is that of the execution that the problem is about.
    """
    return {
        "type": f"/errors/{code if code in CODES else errors.TurnFailed.code}",
        "title": _TITLES_OF_CODES.get(code) or TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "code": code,
        **extra,
    }


def problem_of(error: errors.DomainError) -> dict[str, Any]:
    """The problem object of a domain error."""
    extra = dict(error.extra)
    if error.retry_after_seconds is not None:
        extra["retry_after_seconds"] = math.ceil(error.retry_after_seconds)
    return problem(status_of(error), error.stable_code, error.detail, **extra)


def our_mistake() -> str:
    """The `detail` of what nobody foresaw."""
    return f"this is our mistake; report it with {current_origin().http_request_id}, by which the log has it"


def headers_of(error: errors.DomainError) -> list[tuple[bytes, bytes]]:
    """Headers that go with an error: `Retry-After` in whole seconds, rounded up; `WWW-Authenticate` with a 401; what is
    taken instead of what was sent.
    """
    found: list[tuple[bytes, bytes]] = []
    if error.retry_after_seconds is not None:
        found.append((b"retry-after", str(max(1, math.ceil(error.retry_after_seconds))).encode()))
    if isinstance(error, errors.Unauthenticated):
        found.append((b"www-authenticate", _challenge(error).encode("ascii", "replace")))
    if isinstance(error, UnsupportedMediaType):
        found.append((error.header, ", ".join(error.taken).encode("ascii")))
    if isinstance(error, MethodNotAllowed):
        found.append((b"allow", ", ".join(error.allowed).encode("ascii")))
    if isinstance(error, UpgradeRequired):
        found.append((b"upgrade", b"websocket"))
    return found


def _challenge(error: errors.Unauthenticated) -> str:
    """What a client is asked for, and what was wrong with the token that it sent (RFC 6750, 3.1)."""
    if error.stable_code not in ("invalid_token", "token_expired"):
        return 'Bearer realm="amplifier", ApiKey realm="amplifier"'
    # The description's characters are few there, and a quote within it would end it.
    said = "".join(char if " " <= char <= "~" and char not in '"\\' else "'" for char in error.detail)
    return f'Bearer realm="amplifier", error="invalid_token", error_description="{said}", ApiKey realm="amplifier"'


def encode(body: Mapping[str, Any]) -> bytes:
    """JSON as it goes on the wire."""
    return orjson.dumps(body, option=orjson.OPT_UTC_Z)
