"""OpenAI's chat completions, and what speaks like it: bodies and streams. Pure.

https://platform.openai.com/docs/api-reference/chat. Thinking, where a server sends any (`reasoning_content`, `reasoning`), is
shown to hooks and never sent back: no two servers agree on how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amplifier_core import ToolSpec

from amplifier_api_server.runtime.dialects.answer import Answer, Block, parsed
from amplifier_api_server.runtime.dialects.calls import EXTRA, ModelCall, reasons
from amplifier_api_server.runtime.dialects.conversation import Call, ModelTurn, Part, Turn, image_url, text_of
from amplifier_api_server.runtime.dialects.errors import error_in_stream
from amplifier_api_server.runtime.events import clean, encoded
from amplifier_api_server.runtime.finish_reasons import finish_reason_of
from amplifier_api_server.runtime.protocol import Gateway

PATH = Gateway.CHAT_COMPLETIONS
_NO_TEXT = "(See the image that follows.)"
# What DeepSeek and Moonshot call what they read from their caches.
_OTHER_CACHED = ("prompt_cache_hit_tokens", "cached_tokens")
_USAGE = {
    "input_tokens": ("prompt_tokens",),
    "output_tokens": ("completion_tokens",),
    "reasoning_tokens": ("completion_tokens_details", "reasoning_tokens"),
    "cache_read_tokens": ("prompt_tokens_details", "cached_tokens"),
}


def body_of(call: ModelCall) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": call.model,
        "messages": messages_of(call),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if call.tools:
        body["tools"] = [_tool(spec) for spec in call.tools]
        if call.choice is not None:
            named = {"type": "function", "function": {"name": call.choice.name}}
            body["tool_choice"] = named if call.choice.kind == "tool" else call.choice.kind
    if call.max_tokens is not None:
        body["max_completion_tokens" if reasons(call.model) else "max_tokens"] = call.max_tokens
    given = {"temperature": call.temperature, "top_p": call.top_p, "stop": list(call.stop) or None}
    given |= {name: call.options.get(name) for name in EXTRA if name != "parallel_tool_calls" or call.tools}
    body |= {name: value for name, value in given.items() if value is not None}
    if call.thinking is not None and (call.thinking.effort or reasons(call.model)):
        body["reasoning_effort"] = call.thinking.effort or "high"
    if call.response_format is not None and (wanted := _format(call.response_format)) is not None:
        body["response_format"] = wanted
    return body


def messages_of(call: ModelCall) -> list[dict[str, Any]]:
    head = [{"role": "system", "content": call.conversation.system}] if call.conversation.system else []
    return head + [message for turn in call.conversation.turns for message in _turn(turn)]


def _turn(turn: Turn) -> list[dict[str, Any]]:
    if not isinstance(turn, ModelTurn):
        return [{"role": "user", "content": _content(turn.parts)}]
    message: dict[str, Any] = {"role": "assistant", "content": text_of(turn.said)}
    if not turn.calls:
        return [message]
    message["content"] = message["content"] or None
    message["tool_calls"] = [
        {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": encoded(one.arguments)}}
        for one in turn.calls
    ]
    # A tool's message has only text in this dialect: images come behind, as a user's.
    images = [part for one in turn.calls for part in one.result if part.type == "image"]
    shown = [{"role": "user", "content": _content(images)}] if images else []
    return [message, *(_result(one) for one in turn.calls), *shown]


def _result(call: Call) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call.id, "content": text_of(call.result) or _NO_TEXT}


def _content(parts: list[Part]) -> str | list[dict[str, Any]]:
    if all(part.type == "text" for part in parts):
        return "\n\n".join(part.text for part in parts if part.type == "text")
    return [
        {"type": "text", "text": part.text}
        if part.type == "text"
        else {"type": "image_url", "image_url": {"url": image_url(part)}}
        for part in parts
    ]


def _tool(spec: ToolSpec) -> dict[str, Any]:
    function = {"name": spec.name, "description": spec.description or "", "parameters": spec.parameters}
    return {"type": "function", "function": function}


def _format(wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    match wanted.get("type"):
        case "json":
            return {"type": "json_object"}
        case "json_schema":
            schema = {"name": "answer", "schema": wanted.get("schema") or {}}
            return {
                "type": "json_schema",
                "json_schema": schema | ({"strict": wanted["strict"]} if "strict" in wanted else {}),
            }
    return None


class Reader:
    """Chunks into an answer."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._calls = _Calls(answer)
        self._is_told_done = False

    @property
    def is_done(self) -> bool:
        """It said why it ended, or that it did. A stream of nothing at all has not."""
        return self._answer.finish_reason is not None or (self._is_told_done and not self._answer.is_empty)

    def done(self) -> None:
        self._is_told_done = True

    def take(self, chunk: Mapping[str, Any]) -> None:
        if chunk.get("error") or chunk.get("object") == "error":
            raise error_in_stream(chunk, self._answer.provider)
        self._take_usage(chunk.get("usage"))
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return
        self._take_usage(choices[0].get("usage"))  # as Moonshot has it
        delta = choices[0].get("delta")
        if isinstance(delta, dict):
            self._take_delta(delta)
        reason = choices[0].get("finish_reason")
        if choices[0].get("error") or reason == "error":
            raise error_in_stream(choices[0], self._answer.provider)
        if isinstance(reason, str) and reason:  # some say "" until they know it
            self._answer.finish_reason = finish_reason_of(reason) or reason

    def take_whole(self, answer: Mapping[str, Any]) -> None:
        choices = answer.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
        if choice is None:
            self.take({**answer, "choices": None})
            return
        message = dict(choice["message"]) if isinstance(choice.get("message"), dict) else {}
        calls = message.get("tool_calls")
        if isinstance(calls, list):  # each is whole, whatever index it says
            message["tool_calls"] = [{**one, "index": at} for at, one in enumerate(calls) if isinstance(one, dict)]
        one = {**choice, "delta": message, "finish_reason": choice.get("finish_reason") or "stop"}
        self.take({"error": answer.get("error"), "choices": [one], "usage": answer.get("usage")})

    def _take_usage(self, usage: Any) -> None:
        for name in _OTHER_CACHED:
            self._answer.take_usage(usage, {"cache_read_tokens": (name,)})
        self._answer.take_usage(usage, _USAGE)

    def _take_delta(self, delta: Mapping[str, Any]) -> None:
        answer = self._answer
        for name in ("reasoning_content", "reasoning"):
            if isinstance(delta.get(name), str) and delta[name]:
                answer.add("thinking", "thinking", delta[name])
                break
        content = delta.get("content")
        for piece in content if isinstance(content, list) else [content]:
            answer.add("text", "text", piece.get("text") if isinstance(piece, dict) else piece)
        answer.add("text", "text", delta.get("refusal"))
        calls = delta.get("tool_calls")
        for position, piece in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(piece, dict):
                self._calls.take(piece, position)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of a call, as far as the server says whose it is."""

    position: int  # in its chunk
    index: int | None
    id: str
    name: str
    arguments: Any

    @classmethod
    def of(cls, told: Mapping[str, Any], position: int) -> _Piece:
        function = told.get("function")
        function = function if isinstance(function, dict) else {}
        arguments = function.get("arguments")
        return cls(
            position,
            told["index"] if isinstance(told.get("index"), int) else None,
            clean(str(told.get("id") or "")),
            clean(str(function.get("name") or "")),
            encoded(arguments) if isinstance(arguments, dict) else arguments,
        )


class _Calls:
    """Pieces of calls to the calls that they are of: by their ids, by their indexes, or, without either, by their order.

    Servers give all calls one index, or one id, or leave either out.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._keys: list[str] = []  # of the calls, the latest last
        self._index_of: dict[str, int | None] = {}
        self._at: dict[int, str] = {}  # an index -> the key of the latest call of it
        self._by_id: dict[str, str] = {}

    def take(self, told: Mapping[str, Any], position: int) -> None:
        """A piece, which is at `position` of its chunk's pieces."""
        piece = _Piece.of(told, position)
        key = self._key(piece)
        block = self._answer.block(key, "tool_call")
        self._answer.count(len(piece.id) + len(piece.name))
        block.id = block.id or piece.id
        block.add_name(piece.name)
        self._answer.add(key, "tool_call", piece.arguments)

    def _key(self, piece: _Piece) -> str:
        latest = self._keys[-1] if self._keys else None
        at = latest if piece.index is None else self._at.get(piece.index)
        known = self._by_id.get(piece.id) if piece.id else None
        if at is not None and piece.id and self._held(at).id == piece.id:
            return at
        if known is not None and (not piece.name or piece.index in (None, self._index_of[known])):
            return known
        if at is None or self._is_new(piece, self._held(at)):
            at = f"call {len(self._keys)}"
            self._keys.append(at)
            self._index_of[at] = piece.index
        if piece.id:
            self._by_id[piece.id] = at
        if piece.index is not None:
            self._at[piece.index] = at
        return at

    def _held(self, key: str) -> Block:
        return self._answer.block(key, "tool_call")

    def _is_new(self, piece: _Piece, held: Block) -> bool:
        """Whether a piece begins a call, instead of going on with `held`, the latest of its index."""
        if not piece.name:  # some servers make up an id for every piece; a call begins with its name
            return False
        if (piece.id and held.id) or (piece.index is None and piece.position > 0):
            return True
        return (piece.name != held.name or bool(piece.arguments)) and _is_whole(held)


def _is_whole(call: Block) -> bool:
    """Whether its arguments are a whole object: what comes behind them is not theirs."""
    try:
        return bool(call.pieces) and call.pieces[-1].rstrip().endswith("}") and isinstance(parsed(call.text), dict)
    except ValueError:
        return False
