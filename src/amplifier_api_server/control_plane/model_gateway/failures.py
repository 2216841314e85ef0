"""Providers' failures, as the sandbox is told of them.

Owns the table from what a provider did to what we answer. What concerns the request passes as it came; what concerns
the operator (keys, money, outages) is told in our words, and in the log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import orjson
import structlog

from amplifier_api_server.control_plane.model_gateway.answers import Refusal, unavailable
from amplifier_api_server.control_plane.model_gateway.upstream import (
    Answer,
    Broken,
    Stalled,
    Unreachable,
    UpstreamError,
)
from amplifier_api_server.control_plane.settings import ModelProvider

log = structlog.get_logger(__name__)

_MAX_ERROR_BYTES = 256 * 1024
_OF_THE_REQUEST = frozenset({400, 404, 413, 422, 429})
_OF_THE_KEY = frozenset({401, 403})
_OUT_OF_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_TOO_MANY = 429
_PAYMENT_REQUIRED = 402
_RETRY_AFTER = re.compile(rb"\d{1,6}(\.\d{1,3})?")


@dataclass(frozen=True, slots=True)
class Passed:
    """An error of the provider's that the sandbox gets as it is."""

    body: bytes
    headers: list[tuple[bytes, bytes]]


def of_wire(error: UpstreamError, provider: str) -> Refusal:
    """A call that failed on the wire."""
    match error:
        case Stalled():
            return unavailable(504, f"the model provider {provider} was silent for too long")
        case Unreachable():
            return unavailable(502, f"the model provider {provider} can't be reached")
        case _:
            return unavailable(502, f"the model provider {provider} broke off")


def unreadable() -> UpstreamError:
    return Broken("the provider's answer is compressed though that was not asked for")


def too_large() -> Refusal:
    return unavailable(502, "the model's answer is larger than allowed")


async def read(answer: Answer, provider: ModelProvider, key: bytes) -> Refusal | Passed:
    """An answer that is not 200: its body is read, within bounds."""
    body = b""
    while chunk := await answer.read():
        body += chunk
        if len(body) > _MAX_ERROR_BYTES:
            body = b""
            break
    status, code = answer.status, _code(body)
    retry_after = _retry_after(answer)
    if status in _OF_THE_KEY or status == _PAYMENT_REQUIRED or (status == _TOO_MANY and code in _OUT_OF_MONEY):
        # For the operator to mend. The body may quote the key: it is neither told nor logged.
        log.error("model:provider_refused_us", provider=provider.name, status=status, code=_loggable(code))
        return Refusal(
            502, "provider_auth", f"the model provider {provider.name} does not accept the operator's account"
        )
    if status in _OF_THE_REQUEST:
        headers = [(b"retry-after", answer.headers[b"retry-after"])] if retry_after is not None else []
        if code is not None:
            return Passed(body.replace(key, b"[redacted]") if key else body, headers)
        own = Refusal(
            status, "provider_error", f"the model provider answered {status}", retry_after_seconds=retry_after
        )
        return Passed(own.body(), headers)
    log.warning("model:provider_failed", provider=provider.name, status=status)
    return unavailable(502, f"the model provider {provider.name} answered {status}", retry_after)


def _code(body: bytes) -> str | None:
    """The error's code, "" where it has none; None when the body is no JSON object with an error."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(parsed, dict):
        return None
    error = parsed.get("error")
    code = error.get("code") or error.get("type") if isinstance(error, dict) else parsed.get("code")
    return code if isinstance(code, str) else ""


def _loggable(code: str | None) -> str:
    return code if code in _OUT_OF_MONEY else ""


def _retry_after(answer: Answer) -> float | None:
    value = answer.headers.get(b"retry-after", b"")
    return float(value) if _RETRY_AFTER.fullmatch(value) else None
