"""Providers' failures: what may be done about each, and how the sandbox is told of it.

Owns the table from what a provider did to what we do. What concerns the request passes as it came; what concerns the
operator (keys, money, outages) is told in our words, and in the log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import structlog

from amplifier_api_server.control_plane.model_gateway.answers import Refusal, Shape, unavailable
from amplifier_api_server.control_plane.model_gateway.dialects.dialect import encoded, object_in
from amplifier_api_server.control_plane.model_gateway.targets import Target
from amplifier_api_server.control_plane.model_gateway.upstream import (
    Answer,
    Encoded,
    Stalled,
    Unreachable,
    UpstreamError,
)

log = structlog.get_logger(__name__)

_MAX_ERROR_BYTES = 256 * 1024
_OF_THE_REQUEST = frozenset({400, 404, 413, 422, 429})
_OF_THE_KEY = frozenset({401, 403})
_OUT_OF_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error"})
_NO_CREDIT = "Your credit balance is too low"  # Anthropic says so with status 400 and the type of a wrong request
_WRONG_REQUEST = 400
_NOT_FOUND = 404
_TOO_MANY = 429
_PAYMENT_REQUIRED = 402
_FIRST_SERVER_ERROR = 500
_WORTH_ANOTHER_TRY = frozenset({408, 409, 429})  # as the vendors' own clients have it, and all from 500 on
# Errors within an answer that began well, as the vendors name them; some gateways put a status there instead.
_TRANSIENT = frozenset(
    {
        *(
            "server_error",
            "internal_error",
            "internal_server_error",
            "service_unavailable",
            "timeout_error",
            "api_error",
        ),
        *("overloaded", "overloaded_error", "rate_limit_error", "rate_limit_exceeded"),
    }
)
_RETRY_AFTER = re.compile(rb"\d{1,6}(\.\d{1,3})?")

# What a failure says of the provider: it works, it doesn't, or nothing.
Verdict = Literal["works", "fails", "unknown"]


@dataclass(frozen=True, slots=True)
class Passed:
    """A provider's answer that the sandbox gets as it is."""

    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]]
    content_type: bytes = b"application/json"


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt ended, where it did not end well. What is told is told only if nothing better comes after it."""

    told: Refusal | Passed
    may_retry: bool = False  # at the same target
    may_fall_back: bool = False  # to the next one
    verdict: Verdict = "unknown"
    retry_after_seconds: float | None = None
    was_asked: bool = True  # the provider; where not, what another one said is nearer the truth


def of_wire(error: UpstreamError, provider: str) -> Failure:
    """A call that failed on the wire. One who was silent for so long is not waited for again."""
    may_retry = not isinstance(error, Stalled | Encoded)
    return Failure(refusal_of_wire(error, provider), may_retry=may_retry, may_fall_back=True, verdict="fails")


def refusal_of_wire(error: UpstreamError, provider: str) -> Refusal:
    """What is said of a request that failed on the wire."""
    match error:
        case Stalled():
            return _gave_up(504, f"the model provider {provider} was silent for too long")
        case Encoded():
            return _gave_up(502, f"the model provider {provider} answered in a form that can't be read: {error}")
        case Unreachable():
            return _gave_up(502, f"the model provider {provider} can't be reached")
        case _:
            return _gave_up(502, f"the model provider {provider} broke off")


def refusal_of_status(status: int, provider: str, *, is_own_key: bool) -> Refusal:
    """What is said of a request that is not of the sandbox's making, and was answered with another status than 200."""
    if status in _OF_THE_KEY or status == _PAYMENT_REQUIRED:
        return Refusal(502, "provider_auth", _not_accepted(provider, is_own_key=is_own_key), is_final=True)
    return _gave_up(502, f"the model provider {provider} answered {status}")


def _not_accepted(provider: str, *, is_own_key: bool) -> str:
    if is_own_key:
        return f"the model provider {provider} does not accept the tenant's own key, or its account is empty"
    return f"the model provider {provider} does not accept the operator's account"


def _gave_up(status: int, detail: str, retry_after_seconds: float | None = None) -> Refusal:
    """Final, because by when it is told all was tried that there was: a client that tries again multiplies that."""
    return Refusal(status, "provider_unavailable", detail, retry_after_seconds=retry_after_seconds, is_final=True)


def unreadable(detail: str) -> Failure:
    """An answer that began with 200 and is none."""
    return Failure(_gave_up(502, detail), may_retry=True, may_fall_back=True, verdict="fails")


def too_large() -> Failure:
    return Failure(unavailable(502, "the model's answer is larger than allowed"), verdict="works")


def left_alone(provider: str, retry_after_seconds: float | None) -> Failure:
    """The provider's breaker is open: it is not asked."""
    told = unavailable(
        503, f"the model provider {provider} failed too often of late; try again later", retry_after_seconds
    )
    return Failure(told, may_fall_back=True, was_asked=False)


def within(code: str | int | None, told: Passed) -> Failure:
    """An error that the provider put into an answer with status 200, before it said anything."""
    is_status = isinstance(code, int) and (code in _WORTH_ANOTHER_TRY or code >= _FIRST_SERVER_ERROR)
    is_transient = is_status or code in _TRANSIENT
    return Failure(
        told, may_retry=is_transient, may_fall_back=is_transient, verdict="fails" if is_transient else "works"
    )


async def body_of(answer: Answer) -> bytes:
    """The body of an answer that is not 200; empty where it is larger than any error, or can't be read."""
    body = b""
    try:
        while chunk := await answer.read():
            body += chunk
            if len(body) > _MAX_ERROR_BYTES:
                return b""
    except Encoded:
        return b""  # its status says enough
    return body


def of_status(answer: Answer, body: bytes, target: Target, key: bytes, shape: Shape) -> Failure:
    """An answer that is not 200. `shape`: of errors in the call's dialect."""
    status, provider = answer.status, target.provider.name
    body, code, message = _said(body)
    retry_after = _retry_after(answer)
    is_out_of_money = code in _OUT_OF_MONEY or (status == _WRONG_REQUEST and message.startswith(_NO_CREDIT))
    if status in _OF_THE_KEY or status == _PAYMENT_REQUIRED or is_out_of_money:
        # For the key's owner to mend. The body may quote the key: it is neither told nor logged.
        return Failure(_refused(target, status, code), may_fall_back=True)
    is_worth_another = status in _WORTH_ANOTHER_TRY or status >= _FIRST_SERVER_ERROR
    if status in _OF_THE_REQUEST:
        headers = [(b"retry-after", answer.headers[b"retry-after"])] if retry_after is not None else []
        if code is None:
            detail = f"the model provider {provider} answered {status}"
            body = shape(Refusal(status, "provider_error", detail, retry_after_seconds=retry_after))
        return Failure(
            Passed(status, body.replace(key, b"[redacted]") if key else body, headers),
            may_retry=is_worth_another,
            may_fall_back=is_worth_another or status == _NOT_FOUND,
            verdict="unknown" if status == _TOO_MANY else "works",
            retry_after_seconds=retry_after,
        )
    log.warning("model:provider_failed", provider=provider, status=status)
    return Failure(
        _gave_up(502, f"the model provider {provider} answered {status}", retry_after),
        may_retry=is_worth_another,
        may_fall_back=True,
        verdict="fails" if status >= _FIRST_SERVER_ERROR else "unknown",
        retry_after_seconds=retry_after,
    )


def _refused(target: Target, status: int, code: str | None) -> Refusal:
    provider = target.provider.name
    if target.is_own_key:
        log.warning("model:own_key_refused", provider=provider, status=status)
    else:
        loggable = code if code in _OUT_OF_MONEY else ""
        log.error("model:provider_refused_us", provider=provider, status=status, code=loggable)
    detail = _not_accepted(provider, is_own_key=target.is_own_key)
    return Refusal(502, "provider_auth", detail, is_final=True)


def _said(body: bytes) -> tuple[bytes, str | None, str]:
    """The body as clients can read it, and its error's code and message, "" where it has none; None for the code when the
    body is no JSON object.
    """
    told = object_in(body)
    if told is None:
        return body, None, ""
    error = told.get("error")
    code = error.get("code") or error.get("type") if isinstance(error, dict) else told.get("code")
    message = error.get("message") if isinstance(error, dict) else told.get("message")
    readable = body if body.startswith(b"{") else encoded(told)
    return readable, code if isinstance(code, str) else "", message if isinstance(message, str) else ""


def _retry_after(answer: Answer) -> float | None:
    value = answer.headers.get(b"retry-after", b"")
    return float(value) if _RETRY_AFTER.fullmatch(value) else None
