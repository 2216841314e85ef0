"""OpenAI's chat completions, and what speaks like it: bodies and streams. Pure.

https://platform.openai.com/docs/api-reference/chat. Thinking, where a server sends any (`reasoning_content`, `reasoning`), is
shown to hooks and never sent back: no two servers agree on how.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amplifier_core import ToolSpec

from amplifier_api_server.runtime.dialects.answer import Answer, count_in, usage_of
from amplifier_api_server.runtime.dialects.calls import EXTRA, ModelCall, reasons
from amplifier_api_server.runtime.dialects.conversation import Call, ModelTurn, Part, Turn, image_url, text_of
from amplifier_api_server.runtime.dialects.errors import error_in_stream
from amplifier_api_server.runtime.events import encoded
from amplifier_api_server.runtime.protocol import Gateway

PATH = Gateway.CHAT_COMPLETIONS
_NO_TEXT = "(See the image that follows.)"


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
        self._is_told_done = False

    @property
    def is_done(self) -> bool:
        return self._is_told_done or self._answer.finish_reason is not None

    def done(self) -> None:
        self._is_told_done = True

    def take(self, chunk: Mapping[str, Any]) -> None:
        if chunk.get("error"):
            raise error_in_stream(chunk, self._answer.provider)
        self._take_usage(chunk.get("usage"))
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return
        delta = choices[0].get("delta")
        if isinstance(delta, dict):
            self._take_delta(delta)
        if isinstance(choices[0].get("finish_reason"), str):
            self._answer.finish_reason = _finish(choices[0]["finish_reason"])

    def take_whole(self, answer: Mapping[str, Any]) -> None:
        choices = answer.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        one = {"delta": choice.get("message"), "finish_reason": choice.get("finish_reason") or "stop"}
        self.take({"error": answer.get("error"), "choices": [one], "usage": answer.get("usage")})

    def _take_usage(self, told: Any) -> None:
        if not isinstance(told, dict):
            return
        self._answer.usage = usage_of(
            count_in(told, "prompt_tokens") or 0,
            count_in(told, "completion_tokens") or 0,
            reasoning_tokens=count_in(told, "completion_tokens_details", "reasoning_tokens"),
            cache_read_tokens=count_in(told, "prompt_tokens_details", "cached_tokens"),
        )

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
                self._take_call(piece, position)

    def _take_call(self, piece: Mapping[str, Any], position: int) -> None:
        given = piece.get("index")
        key = f"call {given if isinstance(given, int) else position}"
        block = self._answer.block(key, "tool_call")
        function = piece.get("function")
        function = function if isinstance(function, dict) else {}
        block.id = str(piece.get("id") or block.id)
        if name := function.get("name"):
            self._answer.count(len(str(name)))
            block.name += str(name)
        arguments = function.get("arguments")
        self._answer.add(key, "tool_call", encoded(arguments) if isinstance(arguments, dict) else arguments)


def _finish(reason: str) -> str:
    return {"function_call": "tool_calls", "max_tokens": "length"}.get(reason, reason)
