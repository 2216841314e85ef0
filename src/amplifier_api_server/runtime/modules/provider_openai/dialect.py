"""The OpenAI chat-completions dialect: requests out of core's messages, errors out of answers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amplifier_core import (
    AccessDeniedError,
    AuthenticationError,
    ChatRequest,
    ContextLengthError,
    InvalidRequestError,
    LLMError,
    Message,
    NotFoundError,
    ProviderUnavailableError,
    QuotaExceededError,
    RateLimitError,
)
from pydantic_core import from_json

from amplifier_api_server.runtime.events import encoded

_ERRORS: Mapping[int, type[LLMError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    402: QuotaExceededError,
    403: AccessDeniedError,
    404: NotFoundError,
    413: ContextLengthError,
    422: InvalidRequestError,
    429: RateLimitError,
}
_PASSED_ON = (
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "reasoning_effort",
    "seed",
    "presence_penalty",
    "frequency_penalty",
)
MAX_DETAIL_CHARS = 2000


def request_body(request: ChatRequest, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a streamed call. `options` are the provider's configuration; the request's own fields win."""
    body: dict[str, Any] = {
        "model": request.model or model,
        "messages": [message_out(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body |= {name: options[name] for name in _PASSED_ON if options.get(name) is not None}
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": t.name, "description": t.description or "", "parameters": t.parameters},
            }
            for t in request.tools
        ]
    for name in ("temperature", "top_p", "stop", "tool_choice", "reasoning_effort"):
        if (value := getattr(request, name)) is not None:
            body[name] = value
    if request.max_output_tokens is not None:
        body["max_tokens"] = request.max_output_tokens
    if request.response_format is not None:
        body["response_format"] = request.response_format.model_dump(by_alias=True, exclude_none=True)
    return body


def message_out(message: Message) -> dict[str, Any]:
    """One message in the dialect's words. `tool_calls` are as the transcript keeps them: id, tool, arguments."""
    role = "system" if message.role == "developer" else message.role
    out: dict[str, Any] = {"role": role, "content": _content_out(message)}
    if role == "tool":
        out["tool_call_id"] = message.tool_call_id or ""
        return out
    if role == "assistant" and (calls := _calls_of(message)):
        out["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {
                    "name": call.get("tool") or call.get("name") or "",
                    "arguments": encoded(call.get("arguments") or {}),
                },
            }
            for call in calls
        ]
        out["content"] = out["content"] or None
    return out


def _calls_of(message: Message) -> list[dict[str, Any]]:
    kept = (message.model_extra or {}).get("tool_calls")
    if kept:
        return [call for call in kept if isinstance(call, dict) and call.get("id")]
    if isinstance(message.content, str):
        return []
    blocks = [block for block in message.content if block.type == "tool_call"]
    return [{"id": block.id, "tool": block.name, "arguments": block.input} for block in blocks]


def _content_out(message: Message) -> Any:
    if isinstance(message.content, str):
        return message.content
    parts: list[dict[str, Any]] = []
    for block in message.content:
        if block.type == "text":
            parts.append({"type": "text", "text": block.text})
        elif block.type == "image":
            source = block.source
            url = source.get("url") or f"data:{source.get('media_type', 'image/png')};base64,{source.get('data', '')}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
        elif block.type == "tool_result":
            parts.append(
                {"type": "text", "text": block.output if isinstance(block.output, str) else encoded(block.output)}
            )
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def coded(error: LLMError, code: str | None) -> LLMError:
    """`error` with the stable code that the turn's failure will carry."""
    error.code = code
    return error


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> LLMError:
    """An answer that is no 200, as core's error with the code of a Failure, a problem or OpenAI's own shape."""
    try:
        told = from_json(body) if body else {}
    except ValueError:
        told = {}
    retry_after = _seconds(headers.get("retry-after"))
    if isinstance(told, dict):
        retry_after = _seconds(told.get("retry_after_seconds")) or retry_after
    code, detail = code_and_detail(told)
    kind = _ERRORS.get(status, ProviderUnavailableError if status >= 500 else InvalidRequestError)  # noqa: PLR2004
    return coded(
        kind(
            detail or f"the gateway answered {status}", provider="openai", status_code=status, retry_after=retry_after
        ),
        code,
    )


def error_in_stream(told: Any) -> LLMError:
    """An `error` that came instead of a chunk."""
    code, detail = code_and_detail(told)
    kind = QuotaExceededError if code == "quota_exceeded" else ProviderUnavailableError
    return coded(kind(detail or "the model's stream ended in an error", provider="openai"), code)


def code_and_detail(told: Any) -> tuple[str | None, str]:
    """`{code, detail}` or `{error: {code | type, message}}`, as far as they are there."""
    if not isinstance(told, dict):
        return None, ""
    inner = told.get("error") if isinstance(told.get("error"), dict) else told
    if isinstance(told.get("error"), str):
        return None, told["error"][:MAX_DETAIL_CHARS]
    assert isinstance(inner, dict)
    code = inner.get("code") or inner.get("type")
    detail = inner.get("detail") or inner.get("message") or ""
    return (code if isinstance(code, str) and code.replace("_", "").isalnum() else None), str(detail)[:MAX_DETAIL_CHARS]


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < 86_400 * 7 else None
