"""Anthropic's messages: bodies and streams. Pure.

https://docs.anthropic.com/en/api/messages. Thinking goes back as it came, with its signature; caching is hinted at the ends
of the tools, the system prompt and the last two things a user said, four marks being the most that are allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amplifier_core import ImageBlock, RedactedThinkingBlock, TextBlock, ThinkingBlock, ToolSpec

from amplifier_api_server.runtime.dialects.answer import Answer, Key
from amplifier_api_server.runtime.dialects.calls import Choice, ModelCall, Thinking, native_tool
from amplifier_api_server.runtime.dialects.conversation import ModelTurn, Part, Said, Turn
from amplifier_api_server.runtime.dialects.errors import error_in_stream
from amplifier_api_server.runtime.events import clean, encoded
from amplifier_api_server.runtime.finish_reasons import finish_reason_of
from amplifier_api_server.runtime.protocol import Gateway

PATH = Gateway.MESSAGES
DEFAULT_MAX_TOKENS = 8192  # the dialect demands one; every model that is still served can say so much
MIN_THINKING_TOKENS = 1024  # the vendor's least
ANSWER_TOKENS = 4096  # that thinking leaves for the answer
_USAGE = {
    "uncached_tokens": ("input_tokens",),
    "output_tokens": ("output_tokens",),
    "cache_read_tokens": ("cache_read_input_tokens",),
    "cache_write_tokens": ("cache_creation_input_tokens",),
}
_CACHED = {"cache_control": {"type": "ephemeral"}}


def body_of(call: ModelCall) -> dict[str, Any]:
    thinking = call.thinking if call.thinking and call.thinking.effort != "none" and may_think(call) else None
    max_tokens = _max_tokens(call.max_tokens, thinking)
    body: dict[str, Any] = {
        "model": call.model,
        "max_tokens": max_tokens,
        "messages": messages_of(call),
        "stream": True,
    }
    if system := _system(call):
        body["system"] = [{"type": "text", "text": system, **(_CACHED if call.caching else {})}]
    if call.tools:
        body["tools"] = [_tool(spec) for spec in call.tools]
        if call.caching:
            body["tools"][-1] |= _CACHED
        if call.choice is not None:
            body["tool_choice"] = _choice(call.choice, is_thinking=thinking is not None)
    if call.stop:
        body["stop_sequences"] = list(call.stop)
    if thinking is None:  # with thinking, the vendor takes neither
        given = {"temperature": call.temperature, "top_p": call.top_p, "top_k": call.options.get("top_k")}
        body |= {name: value for name, value in given.items() if value is not None}
    elif thinking.is_adaptive:
        body["thinking"] = {"type": "adaptive"}
        body |= {"output_config": {"effort": thinking.effort}} if thinking.effort else {}
    elif (budget := min(thinking.budget_tokens, max_tokens - MIN_THINKING_TOKENS)) >= MIN_THINKING_TOKENS:
        body["thinking"] = {"type": "enabled", "budget_tokens": budget}
    return body


def may_think(call: ModelCall) -> bool:
    """Whether thinking can be asked for: in mid-turn only if the turn's calls so far began with a thought of its own."""
    turns = call.conversation.turns
    begun = next((turn for turn in turns[call.conversation.last_user_turn :] if isinstance(turn, ModelTurn)), None)
    if begun is None:
        return True
    is_own = begun.origin in ("", call.model)
    return any(block.type != "text" and _said(block, is_own=is_own) is not None for block in begun.said)


def messages_of(call: ModelCall) -> list[dict[str, Any]]:
    made = [message for turn in call.conversation.turns for message in _turn(turn, call.model)]
    merged: list[dict[str, Any]] = []
    for message in made:  # results are a user's here, and what the user says next belongs to them
        if merged and merged[-1]["role"] == message["role"]:
            merged[-1]["content"] += message["content"]
        else:
            merged.append(message)
    if call.caching:
        for message in [one for one in merged if one["role"] == "user"][-2:]:
            message["content"][-1] |= _CACHED
    return merged


def _turn(turn: Turn, model: str) -> list[dict[str, Any]]:
    if not isinstance(turn, ModelTurn):
        return [{"role": "user", "content": [_part(part) for part in turn.parts]}]
    is_own = turn.origin in ("", model)
    content = [made for block in turn.said if (made := _said(block, is_own=is_own)) is not None]
    content += [{"type": "tool_use", "id": one.id, "name": one.name, "input": one.arguments} for one in turn.calls]
    results = [
        {"type": "tool_result", "tool_use_id": one.id, "content": [_part(part) for part in one.result]}
        for one in turn.calls
    ]
    message = {"role": "assistant", "content": content}
    return [message, {"role": "user", "content": results}] if results else [message]


def _said(block: Said, *, is_own: bool) -> dict[str, Any] | None:
    """Another model's thoughts, and those without a signature, are refused there."""
    match block:
        case TextBlock():
            return {"type": "text", "text": block.text}
        case ThinkingBlock(signature=str() as signature) if is_own and signature:
            return {"type": "thinking", "thinking": block.thinking, "signature": signature}
        case RedactedThinkingBlock() if is_own and block.data:
            return {"type": "redacted_thinking", "data": block.data}
    return None


def _part(part: Part) -> dict[str, Any]:
    if not isinstance(part, ImageBlock):
        return {"type": "text", "text": part.text}
    source = part.source
    url = str(source.get("url") or "")
    if url.startswith("data:") and ";base64," in url:
        media_type, _, data = url.removeprefix("data:").partition(";base64,")
        return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}
    if url:
        return {"type": "image", "source": {"type": "url", "url": url}}
    media_type = str(source.get("media_type") or "image/png")
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": source.get("data", "")}}


def _system(call: ModelCall) -> str:
    """A wished form of the answer is told in words: only some models have a field for it."""
    system, wanted = call.conversation.system, call.response_format or {}
    if wanted.get("type") in ("json", "json_schema"):
        schema = f" that satisfies this JSON schema: {encoded(wanted['schema'])}" if wanted.get("schema") else ""
        system += f"{system and chr(10) * 2}Answer with one JSON value alone{schema}. No other text, no code fence."
    return system


def _tool(spec: ToolSpec) -> dict[str, Any]:
    if (native := native_tool(spec)) is not None:
        return dict(native)
    return {"name": spec.name, "description": spec.description or "", "input_schema": spec.parameters}


def _choice(choice: Choice, *, is_thinking: bool) -> dict[str, Any]:
    if is_thinking and choice.kind in ("required", "tool"):
        return {"type": "auto"}  # the vendor refuses to force a call while it thinks
    if choice.kind == "tool":
        return {"type": "tool", "name": choice.name}
    return {"type": "any" if choice.kind == "required" else choice.kind}


def _max_tokens(told: int | None, thinking: Thinking | None) -> int:
    """Room for thinking is made only where nobody said how long an answer may be."""
    if told is not None or thinking is None:
        return told or DEFAULT_MAX_TOKENS
    return max(DEFAULT_MAX_TOKENS, thinking.budget_tokens + ANSWER_TOKENS)


class Reader:
    """Events into an answer. A block is what began last at its index: some servers give all of them one, or none."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._begun: dict[Any, Key] = {}  # an index -> the key of the block that began there last
        self._calls: set[Key] = set()
        self._count = 0
        self.is_done = False

    def done(self) -> None:
        """Nothing in this dialect; proxies add it."""

    def take(self, event: Mapping[str, Any]) -> None:
        index = event.get("index")
        index = index if isinstance(index, int) else None
        match event.get("type"):
            case "message_start":
                message = event.get("message")
                self._answer.take_usage(message.get("usage") if isinstance(message, dict) else None, _USAGE)
            case "content_block_start":
                self._begin(index, event.get("content_block"))
            case "content_block_delta":
                self._take_delta(self._begun.get(index, f"at {index}"), event.get("delta"))
            case "message_delta":
                delta = event.get("delta")
                reason = delta.get("stop_reason") if isinstance(delta, dict) else None
                if isinstance(reason, str) and reason:
                    self._answer.finish_reason = finish_reason_of(reason) or reason
                    self.is_done = True
                self._answer.take_usage(event.get("usage"), _USAGE)
            case "message_stop":
                self.is_done = self.is_done or not self._answer.is_empty
            case "error":
                raise error_in_stream(event, self._answer.provider)
            case None if event.get("error"):
                raise error_in_stream(event, self._answer.provider)

    def take_whole(self, answer: Mapping[str, Any]) -> None:
        if answer.get("type") == "error" or answer.get("error"):
            raise error_in_stream(answer, self._answer.provider)
        content = answer.get("content")
        for index, block in enumerate(content if isinstance(content, list) else ()):
            self._begin(index, block)
        self._answer.take_usage(answer.get("usage"), _USAGE)
        reason = str(answer.get("stop_reason") or "end_turn")
        self._answer.finish_reason = finish_reason_of(reason) or reason
        self.is_done = isinstance(content, list) or bool(answer.get("stop_reason"))

    def _begin(self, index: int | None, block: Any) -> None:
        """A block, with what it holds already: with some servers that is all of it, also of a call's input."""
        if not isinstance(block, dict):
            return
        answer = self._answer
        self._count += 1
        key = self._begun[index] = self._count
        match block.get("type"):
            case "text":
                answer.add(key, "text", block.get("text"))
            case "thinking":
                answer.block(key, "thinking").secret = block.get("signature") or None
                answer.add(key, "thinking", block.get("thinking"))
            case "redacted_thinking":
                data = str(block.get("data") or "")
                answer.count(len(data))
                answer.block(key, "redacted_thinking").secret = data
            case "tool_use":
                self._calls.add(key)
                call = answer.block(key, "tool_call")
                call.id, call.name = clean(str(block.get("id") or "")), clean(str(block.get("name") or ""))
                if block.get("input"):
                    call.given = encoded(block["input"])

    def _take_delta(self, key: Key, delta: Any) -> None:
        if not isinstance(delta, dict):
            return
        match delta.get("type"):
            case "text_delta":
                self._answer.add(key, "text", delta.get("text"))
            case "thinking_delta":
                self._answer.add(key, "thinking", delta.get("thinking"))
            case "signature_delta" if isinstance(delta.get("signature"), str):
                self._answer.count(len(delta["signature"]))
                block = self._answer.block(key, "thinking")
                block.secret = (block.secret or "") + delta["signature"]
            case "input_json_delta" if key in self._calls:  # else it is of a tool that runs at the provider
                self._answer.add(key, "tool_call", delta.get("partial_json"))
