"""What the gateway says in its own words: errors that vendors' SDKs and our own runtime both understand.

Owns the codes and shapes of errors on the model paths. `error` is what OpenAI's SDKs read; `code` and `detail` beside
it are what `protocol.Failure` has. No error says more about a provider than its name.
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
_FIRST_SERVER_ERROR = 500


class Refusal(Exception):
    """An answer of 400 and above that the gateway makes itself."""

    def __init__(self, status: int, code: str, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> bytes:
        kind = _TYPES.get(
            self.status, "server_error" if self.status >= _FIRST_SERVER_ERROR else "invalid_request_error"
        )
        body: dict[str, Any] = {
            "error": {"message": self.detail, "type": kind, "param": None, "code": self.code},
            "code": self.code,
            "detail": self.detail,
        }
        if self.retry_after_seconds is not None:
            body["retry_after_seconds"] = self.retry_after_seconds
        return orjson.dumps(body)

    def frame(self) -> bytes:
        """As the last event of a stream that has begun."""
        return b"data: " + self.body() + b"\n\n"

    async def send(self, send: Send) -> None:
        headers = []
        if self.retry_after_seconds is not None:
            headers.append((b"retry-after", str(max(1, math.ceil(self.retry_after_seconds))).encode()))
        await respond(send, self.status, self.body(), headers=headers)


def no_turn() -> Refusal:
    return Refusal(
        403, "no_turn", "no such turn runs in this runtime: a model is called within a turn, and named by its id"
    )


def quota_exceeded() -> Refusal:
    return Refusal(402, "quota_exceeded", "the token budget is spent")


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
