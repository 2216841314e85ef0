"""What goes wrong with a model call, as core's LLMError with the stable `code` that the turn's failure will carry. Pure.

Invariant: no error of ours is retried here; `retryable` is what core's classes say of their kind, for hooks to read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from amplifier_core import (
    AccessDeniedError,
    AuthenticationError,
    ContentFilterError,
    ContextLengthError,
    InvalidRequestError,
    LLMError,
    NotFoundError,
    ProviderUnavailableError,
    QuotaExceededError,
    RateLimitError,
    StreamError,
)
from pydantic_core import from_json

MAX_DETAIL_CHARS = 2000
_BY_STATUS: Mapping[int, type[LLMError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    402: QuotaExceededError,
    403: AccessDeniedError,
    404: NotFoundError,
    413: ContextLengthError,
    422: InvalidRequestError,
    429: RateLimitError,
}
_BY_CODE: Mapping[str, type[LLMError]] = {
    "quota_exceeded": QuotaExceededError,
    "insufficient_quota": QuotaExceededError,
    "rate_limited": RateLimitError,
    "rate_limit_error": RateLimitError,
    "rate_limit_exceeded": RateLimitError,
    "context_length_exceeded": ContextLengthError,
    "content_filter": ContentFilterError,
    "content_filtered": ContentFilterError,
    "invalid_request_error": InvalidRequestError,
}
# As OpenAI, Anthropic, vLLM, llama.cpp and Ollama word it; their codes for it differ or are missing.
_TOO_LONG = re.compile(
    r"maximum context length|context[ _](?:length|window|size)|prompt is too long|input is too long|too many input tokens",
    re.IGNORECASE,
)
_WINDOW = re.compile(
    r"(?:maximum context length (?:is|of)|context (?:window|size) (?:is|of)|>) (\d{3,8})", re.IGNORECASE
)
_MAX_DELAY_SECONDS = 86_400 * 7


def coded(error: LLMError, code: str | None) -> LLMError:
    """`error` with its code."""
    error.code = code
    return error


def broken(detail: str, provider: str) -> LLMError:
    """A stream that is not what its dialect says."""
    return coded(StreamError(detail, provider=provider), None)


def error_of(status: int, headers: Mapping[str, str], body: bytes, provider: str) -> LLMError:
    """An answer that is no 200: with the code of a Failure, a problem, or the dialect's own shape."""
    try:
        told = from_json(body) if body else {}
    except ValueError:
        told = {}
    if isinstance(told, list) and len(told) == 1:  # as Google's errors are
        told = told[0]
    retry_after = _seconds(headers.get("retry-after"))
    if isinstance(told, dict):
        retry_after = _seconds(told.get("retry_after_seconds")) or retry_after
    code, detail = code_and_detail(told)
    kind = _BY_STATUS.get(status, ProviderUnavailableError if status >= 500 else InvalidRequestError)  # noqa: PLR2004
    if status == 400 and is_too_long(code, detail):  # noqa: PLR2004
        kind = ContextLengthError
    words = detail or f"the gateway answered {status}"
    return coded(kind(words, provider=provider, status_code=status, retry_after=retry_after), code)


def error_in_stream(told: Any, provider: str) -> LLMError:
    """An `error` that came instead of a piece of the answer."""
    code, detail = code_and_detail(told)
    kind = _BY_CODE.get(code or "", ProviderUnavailableError)
    if kind in (ProviderUnavailableError, InvalidRequestError) and is_too_long(code, detail):
        kind = ContextLengthError
    return coded(kind(detail or "the model's stream ended in an error", provider=provider), code)


def withheld(provider: str) -> LLMError:
    """The provider's filter left nothing of the answer."""
    return coded(ContentFilterError("the provider's filter withheld the answer", provider=provider), "content_filtered")


def cut_off(provider: str) -> LLMError:
    """The bound on the answer was reached before it said anything: by thinking, as a rule."""
    words = "the model reached the bound on its answer before it said anything; allow it more tokens"
    return coded(StreamError(words, provider=provider), "answer_cut_off")


def is_too_long(code: str | None, detail: str) -> bool:
    """Whether an error says that the request does not fit into the model's window."""
    return code == "context_length_exceeded" or _TOO_LONG.search(detail) is not None


def window_in(error: LLMError) -> int | None:
    """The model's window in tokens, where its error names it."""
    found = _WINDOW.search(str(error))
    return int(found[1]) if found else None


def code_and_detail(told: Any) -> tuple[str | None, str]:
    """`{code, detail}` or `{error: {code | type, message}}`, as far as they are there."""
    if not isinstance(told, dict):
        return None, ""
    if isinstance(told.get("error"), str):
        return None, told["error"][:MAX_DETAIL_CHARS]
    inner = told["error"] if isinstance(told.get("error"), dict) else told
    code = inner.get("code") or inner.get("type")
    detail = inner.get("detail") or inner.get("message") or ""
    return (code if isinstance(code, str) and code.replace("_", "").isalnum() else None), str(detail)[:MAX_DETAIL_CHARS]


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < _MAX_DELAY_SECONDS else None
