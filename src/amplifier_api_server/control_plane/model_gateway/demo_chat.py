"""The demo's chat completions: what a request of the dialect asks, and a reply in its words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import orjson

from amplifier_api_server.control_plane.model_gateway.demo_answers import Reply, reply_to, token_count

MODEL = "demo"
CREATED = 1_700_000_000  # a fixed time: the same prompt gets the same bytes
_FINGERPRINT = "fp_demo_not_a_model"


class ChatCompletion:
    """A request and the reply to it. Raises KeyError, TypeError or AttributeError for what is no request."""

    def __init__(self, raw: bytes, body: dict[str, Any]) -> None:
        messages, tools = body["messages"], body.get("tools") or []
        bounds = [bound for name in ("max_tokens", "max_completion_tokens") if (bound := body.get(name)) is not None]
        offered = {tool["function"]["name"] for tool in tools}
        thinks = body.get("reasoning_effort") not in {None, "none"}
        self.reply: Reply = reply_to(messages, offered, min(bounds, default=None), thinks=thinks)
        self._id = "chatcmpl-" + hashlib.sha256(raw).hexdigest()[:24]
        self._prompt_tokens = sum(map(token_count, messages)) + sum(map(token_count, tools))
        options = body.get("stream_options") or {}
        self._includes_usage = bool(options.get("include_usage"))
        self._is_continuous = self._includes_usage and bool(options.get("continuous_usage_stats"))

    def whole(self) -> dict[str, Any]:
        reply = self.reply
        message: dict[str, Any] = {"role": "assistant", "content": "".join(reply.tokens) or None}
        if reply.thoughts:
            message["reasoning_content"] = "".join(reply.thoughts)
        if reply.calls:
            message["tool_calls"] = [call.as_json() for call in reply.calls]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish_reason}
        return self._head("chat.completion") | {"choices": [choice], "usage": self._usage(reply.token_count)}

    def beginning(self) -> Iterator[bytes]:
        for said, token in enumerate(self.reply.thoughts, 1):
            yield self._chunk({"reasoning_content": token}, said)

    def deltas(self) -> Iterator[bytes]:
        """One event a token; the role comes with the first."""
        said, role = len(self.reply.thoughts), {"role": "assistant"}
        for token in self.reply.tokens:
            said += 1
            yield self._chunk(role | {"content": token}, said)
            role = {}
        for index, call in enumerate(self.reply.calls):
            said += call.token_count
            yield self._chunk(role | {"tool_calls": [{"index": index, **call.as_json()}]}, said)
            role = {}

    def ending(self) -> Iterator[bytes]:
        said = self.reply.token_count
        yield self._chunk({}, said, self.reply.finish_reason)
        if self._includes_usage:
            chunk = self._head("chat.completion.chunk") | {"choices": [], "usage": self._usage(said)}
            yield b"data: " + orjson.dumps(chunk) + b"\n\n"
        yield b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], said: int, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = self._head("chat.completion.chunk") | {"choices": [choice]}
        if self._includes_usage:
            chunk["usage"] = self._usage(said) if self._is_continuous else None
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": CREATED,
            "model": MODEL,
            "system_fingerprint": _FINGERPRINT,
        }

    def _usage(self, completion_tokens: int) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self._prompt_tokens + completion_tokens,
        }
        if self.reply.thoughts:
            thought = min(completion_tokens, len(self.reply.thoughts))
            usage["completion_tokens_details"] = {"reasoning_tokens": thought}
        return usage
