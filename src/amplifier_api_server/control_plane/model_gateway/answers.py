"""What the gateway says in its own words: errors that vendors' SDKs and our own runtime both understand.

Owns the codes and shapes of errors on the model paths. `error` is what a vendor's SDKs read, in that vendor's shape; `code`
and `detail` beside it are what `protocol.Failure` has. No error says more about a provider than its name.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import orjson

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_TYPES: Mapping[int, str] = {
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES: Mapping[int, str] = {
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_FIRST_SERVER_ERROR = 500


class Refusal(Exception):
    """An answer of 400 and above that the gateway makes itself. `is_final`: trying again would change nothing."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        retry_after_seconds: float | None = None,
        is_final: bool = False,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.is_final = is_final

    async def send(self, send: Send, shape: Shape | None = None) -> None:
        headers = []
        if self.retry_after_seconds is not None:
            headers.append((b"retry-after", str(max(1, math.ceil(self.retry_after_seconds))).encode()))
        if self.is_final:
            headers.append((b"x-should-retry", b"false"))  # both vendors' clients heed it
        await respond(send, self.status, (shape or openai_error)(self), headers=headers)


Shape = Callable[[Refusal], bytes]  # a refusal's body, as one vendor's clients read it


def openai_error(refusal: Refusal) -> bytes:
    """https://platform.openai.com/docs/guides/error-codes"""
    kind = _TYPES.get(
        refusal.status, "server_error" if refusal.status >= _FIRST_SERVER_ERROR else "invalid_request_error"
    )
    error = {"message": refusal.detail, "type": kind, "param": None, "code": refusal.code}
    return orjson.dumps({"error": error, **_beside(refusal)})


def anthropic_error(refusal: Refusal) -> bytes:
    """https://docs.anthropic.com/en/api/errors"""
    kind = _ANTHROPIC_TYPES.get(
        refusal.status, "api_error" if refusal.status >= _FIRST_SERVER_ERROR else "invalid_request_error"
    )
    error = {"type": kind, "message": refusal.detail, "code": refusal.code}
    return orjson.dumps({"type": "error", "error": error, **_beside(refusal)})


def _beside(refusal: Refusal) -> dict[str, Any]:
    beside: dict[str, Any] = {"code": refusal.code, "detail": refusal.detail}
    if refusal.retry_after_seconds is not None:
        beside["retry_after_seconds"] = refusal.retry_after_seconds
    return beside


def no_turn() -> Refusal:
    return Refusal(
        403, "no_turn", "no such turn runs in this runtime: a model is called within a turn, and named by its id"
    )


def quota_exceeded() -> Refusal:
    return Refusal(402, "quota_exceeded", "the token budget is spent", is_final=True)


def busy(what: str, retry_after_seconds: float = 1) -> Refusal:
    return Refusal(503, "busy", f"{what}; try again shortly", retry_after_seconds=retry_after_seconds)


def unavailable(status: int, detail: str, retry_after_seconds: float | None = None) -> Refusal:
    return Refusal(status, "provider_unavailable", detail, retry_after_seconds=retry_after_seconds)


async def respond(
    send: Send,
    status: int,
    body: bytes,
    *,
    content_type: bytes = b"application/json",
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    """A whole answer at once."""
    head = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
