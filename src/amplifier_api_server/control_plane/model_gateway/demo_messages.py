"""The demo's messages: what a request of the dialect asks, and a reply in its words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import orjson

from amplifier_api_server.control_plane.model_gateway.demo_answers import Reply, ToolCall, reply_to, token_count
from amplifier_api_server.control_plane.model_gateway.demo_chat import MODEL
from amplifier_api_server.control_plane.model_gateway.dialects.dialect import event_of

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_SIGNATURE = "ZGVtbw=="  # nobody checks it: the demo signs nothing


class MessagesCompletion:
    """A request and the reply to it. Raises KeyError, TypeError or AttributeError for what is no request."""

    def __init__(self, raw: bytes, body: dict[str, Any]) -> None:
        messages, tools = list(_messages(body["messages"])), body.get("tools") or []
        thinks = (body.get("thinking") or {}).get("type") in {"enabled", "adaptive"}
        offered = {tool["name"] for tool in tools}
        self.reply: Reply = reply_to(messages, offered, body.get("max_tokens"), thinks=thinks)
        self.prompt_tokens = sum(map(token_count, messages)) + sum(map(token_count, tools))
        if body.get("system"):
            self.prompt_tokens += token_count(body["system"])
        self._id = "msg_" + hashlib.sha256(raw).hexdigest()[:24]

    def counted(self) -> dict[str, int]:
        """What a count of the prompt's tokens answers."""
        return {"input_tokens": self.prompt_tokens}

    def whole(self) -> dict[str, Any]:
        reply = self.reply
        content: list[dict[str, Any]] = []
        if reply.thoughts:
            content.append({"type": "thinking", "thinking": "".join(reply.thoughts), "signature": _SIGNATURE})
        if reply.tokens:
            content.append({"type": "text", "text": "".join(reply.tokens)})
        content += [_use(call) | {"input": orjson.loads(call.arguments)} for call in reply.calls]
        stop = {"stop_reason": _STOP_REASONS[reply.finish_reason], "stop_sequence": None}
        return self._message(reply.token_count) | {"content": content, **stop}

    def beginning(self) -> Iterator[bytes]:
        yield event_of("message_start", {"type": "message_start", "message": self._message(1)})
        yield event_of("ping", {"type": "ping"})
        if self.reply.thoughts:
            yield _start(0, {"type": "thinking", "thinking": "", "signature": ""})
            for token in self.reply.thoughts:
                yield _delta(0, {"type": "thinking_delta", "thinking": token})
            yield _delta(0, {"type": "signature_delta", "signature": _SIGNATURE})
            yield _stop(0)
        if self.reply.tokens:
            yield _start(self._text_index, {"type": "text", "text": ""})

    def deltas(self) -> Iterator[bytes]:
        """One event a token, several a call."""
        index = self._text_index
        for token in self.reply.tokens:
            yield _delta(index, {"type": "text_delta", "text": token})
        stop = _stop(index) if self.reply.tokens else b""
        for place, call in enumerate(self.reply.calls, index + bool(self.reply.tokens)):
            given = _delta(place, {"type": "input_json_delta", "partial_json": call.arguments})
            yield stop + _start(place, _use(call)) + given + _stop(place)
            stop = b""

    def ending(self) -> Iterator[bytes]:
        reply = self.reply
        if reply.tokens and not reply.calls:
            yield _stop(self._text_index)
        delta = {"stop_reason": _STOP_REASONS[reply.finish_reason], "stop_sequence": None}
        usage = self._usage(reply.token_count)
        yield event_of("message_delta", {"type": "message_delta", "delta": delta, "usage": usage})
        yield event_of("message_stop", {"type": "message_stop"})

    @property
    def _text_index(self) -> int:
        return 1 if self.reply.thoughts else 0

    def _message(self, said: int) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": MODEL,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(said),
        }

    def _usage(self, said: int) -> dict[str, Any]:
        cached = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        usage: dict[str, Any] = {"input_tokens": self.prompt_tokens, **cached, "output_tokens": said}
        if self.reply.thoughts:
            usage["output_tokens_details"] = {"thinking_tokens": min(said, len(self.reply.thoughts))}
        return usage


def _use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": "toolu_" + call.id.removeprefix("call_"), "name": call.name, "input": {}}


def _start(index: int, block: dict[str, Any]) -> bytes:
    start = {"type": "content_block_start", "index": index, "content_block": block}
    return event_of("content_block_start", start)


def _delta(index: int, delta: dict[str, Any]) -> bytes:
    return event_of("content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta})


def _stop(index: int) -> bytes:
    return event_of("content_block_stop", {"type": "content_block_stop", "index": index})


def _messages(given: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The conversation in chat completions' words: results are messages of their own there."""
    for message in given:
        role, content = message["role"], message["content"]
        if isinstance(content, str):
            yield {"role": role, "content": content}
            continue
        texts = [block for block in content if block.get("type") == "text"]
        calls = [
            {"id": block["id"], "function": {"name": block["name"], "arguments": orjson.dumps(block["input"]).decode()}}
            for block in content
            if block.get("type") == "tool_use"
        ]
        results = [block for block in content if block.get("type") == "tool_result"]
        if texts or calls or not results:
            yield {"role": role, "content": texts} | ({"tool_calls": calls} if calls else {})
        for block in results:
            yield {"role": "tool", "tool_call_id": block["tool_use_id"], "content": block.get("content")}
