"""OpenAI's responses: bodies and streams. Pure.

https://platform.openai.com/docs/api-reference/responses. Nothing is kept at the provider (`store: false`): the model's
reasoning comes encrypted, lives in the transcript, and goes back with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amplifier_core import ToolSpec

from amplifier_api_server.runtime.dialects.answer import Answer
from amplifier_api_server.runtime.dialects.calls import Choice, ModelCall, native_tool, reasons
from amplifier_api_server.runtime.dialects.conversation import ModelTurn, Part, Turn, image_url, text_of
from amplifier_api_server.runtime.dialects.errors import error_in_stream
from amplifier_api_server.runtime.events import clean, encoded
from amplifier_api_server.runtime.protocol import Gateway

PATH = Gateway.RESPONSES
_USAGE = {
    "input_tokens": ("input_tokens",),
    "output_tokens": ("output_tokens",),
    "reasoning_tokens": ("output_tokens_details", "reasoning_tokens"),
    "cache_read_tokens": ("input_tokens_details", "cached_tokens"),
}
_ENCRYPTED = "reasoning.encrypted_content"


def body_of(call: ModelCall) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": call.model,
        "input": [item for turn in call.conversation.turns for item in _items(turn, call.model)],
        "stream": True,
        "store": False,
    }
    if call.conversation.system:
        body["instructions"] = call.conversation.system
    if call.tools:
        body["tools"] = [_tool(spec) for spec in call.tools]
        if call.choice is not None:
            body["tool_choice"] = _choice(call.choice)
    given = {
        "max_output_tokens": call.max_tokens,
        "temperature": call.temperature,
        "top_p": call.top_p,
        "parallel_tool_calls": call.options.get("parallel_tool_calls") if call.tools else None,
        "truncation": call.options.get("truncation"),
        "prompt_cache_key": call.options.get("prompt_cache_key"),
    }
    body |= {name: value for name, value in given.items() if value is not None}
    body |= _reasoning(call)
    if text := _text(call):
        body["text"] = text
    return body


def _reasoning(call: ModelCall) -> dict[str, Any]:
    """What asks for thoughts, their summary, and their encrypted form. Models that don't think refuse all of it."""
    does, thinking = reasons(call.model), call.thinking
    effort = None if thinking is None else thinking.effort or ("high" if does else None)
    if effort is None and not does:
        return {}
    asked = {"summary": call.options.get("reasoning_summary") or "auto"} | ({"effort": effort} if effort else {})
    return {"reasoning": asked, "include": [_ENCRYPTED]}


def _text(call: ModelCall) -> dict[str, Any]:
    text: dict[str, Any] = {}
    if (verbosity := call.options.get("verbosity")) is not None:
        text["verbosity"] = verbosity
    wanted = call.response_format or {}
    if wanted.get("type") == "json":
        text["format"] = {"type": "json_object"}
    elif wanted.get("type") == "json_schema":
        strict = {"strict": wanted["strict"]} if "strict" in wanted else {}
        text["format"] = {"type": "json_schema", "name": "answer", "schema": wanted.get("schema") or {}, **strict}
    return text


def _items(turn: Turn, model: str) -> list[dict[str, Any]]:
    if not isinstance(turn, ModelTurn):
        return [{"type": "message", "role": "user", "content": _content(turn.parts)}]
    items: list[dict[str, Any]] = []
    for block in turn.said:
        if block.type == "text":
            items.append({"type": "message", "role": "assistant", "content": block.text})
        elif block.type == "thinking" and turn.origin in ("", model) and (item := _thoughts(block)):
            items.append(item)
    for call in turn.calls:
        arguments = encoded(call.arguments)
        items.append({"type": "function_call", "call_id": call.id, "name": call.name, "arguments": arguments})
    for call in turn.calls:
        only_text = all(part.type == "text" for part in call.result)
        output = text_of(call.result) if only_text else _content(call.result)
        items.append({"type": "function_call_output", "call_id": call.id, "output": output})
    return items


def _thoughts(block: Any) -> dict[str, Any] | None:
    """Core keeps them as `content: [encrypted, id]`. Without the encrypted form they mean nothing to a provider."""
    state = block.content
    if not isinstance(state, list) or len(state) < 2 or not state[0] or not state[1]:  # noqa: PLR2004 - the pair
        return None
    summary = [{"type": "summary_text", "text": block.thinking}] if block.thinking else []
    return {"type": "reasoning", "id": str(state[1]), "summary": summary, "encrypted_content": state[0]}


def _content(parts: list[Part]) -> list[dict[str, Any]]:
    return [
        {"type": "input_text", "text": part.text}
        if part.type == "text"
        else {"type": "input_image", "detail": "auto", "image_url": image_url(part)}
        for part in parts
    ]


def _tool(spec: ToolSpec) -> dict[str, Any]:
    if (native := native_tool(spec)) is not None:
        return native
    function = {"name": spec.name, "description": spec.description or "", "parameters": spec.parameters}
    return {"type": "function", **function, "strict": False}


def _choice(choice: Choice) -> Any:
    return {"type": "function", "name": choice.name} if choice.kind == "tool" else choice.kind


class Reader:
    """Events into an answer. Keys are an item's, and of texts the index in it."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._count = 0
        self._by_id: dict[Any, str] = {}  # an item's id -> its key
        self._at: dict[Any, str] = {}  # an index -> the key of the item that came there last
        self._whole: set[str] = set()  # keys of the items that have come whole
        self.is_done = False

    def done(self) -> None:
        """Nothing in this dialect; proxies add it."""

    def take(self, event: Mapping[str, Any]) -> None:
        answer = self._answer
        key = self._key(event.get("item_id"), event.get("output_index"))
        match event.get("type"):
            case "response.output_text.delta" | "response.refusal.delta":
                answer.add(f"{key}.{event.get('content_index')}", "text", event.get("delta"))
            case "response.output_text.done" | "response.refusal.done":
                text = event.get("text") or event.get("refusal")
                answer.complete(f"{key}.{event.get('content_index')}", "text", text)
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                answer.add(key, "thinking", event.get("delta"))
            case "response.reasoning_summary_part.added" if event.get("summary_index"):
                answer.add(key, "thinking", "\n\n")
            case "response.function_call_arguments.delta":
                answer.add(key, "tool_call", event.get("delta"))
            case "response.function_call_arguments.done":
                answer.complete(key, "tool_call", event.get("arguments"))
            case "response.output_item.added":
                self._take_item(event.get("item"), event.get("output_index"), is_whole=False)
            case "response.output_item.done":
                self._take_item(event.get("item"), event.get("output_index"), is_whole=True)
            case "response.completed" | "response.incomplete" | "response.failed":
                self._end(event.get("response"))
            case "error":
                raise error_in_stream(event if event.get("error") else dict(event) | {"type": None}, answer.provider)
            case None if event.get("error"):
                raise error_in_stream(event, answer.provider)

    def take_whole(self, answer: Mapping[str, Any]) -> None:
        self._end(answer)

    def _key(self, item_id: Any, index: Any) -> str:
        """An item's key: by its id, else by its index.

        Some servers give all items one index, others give each event an id of its own.
        """
        key = self._by_id.get(item_id) if isinstance(item_id, str) else None
        return key or self._at.get(index) or self._begin(item_id, index)

    def _begin(self, item_id: Any, index: Any) -> str:
        self._count += 1
        key = self._at[index] = f"item {self._count}"
        if isinstance(item_id, str):
            self._by_id[item_id] = key
        return key

    def _take_item(self, item: Any, index: Any, *, is_whole: bool) -> None:
        if not isinstance(item, dict):
            return
        answer, item_id = self._answer, item.get("id") or item.get("call_id")
        key = self._key(item_id, index)
        if (key in self._whole or not is_whole) and self._by_id.get(item_id) != key:
            key = self._begin(item_id, index)  # another one, at an index that was had
        if is_whole:
            self._whole.add(key)
        match item.get("type"):
            case "function_call":
                block = answer.block(key, "tool_call")
                block.id = clean(str(item.get("call_id") or item.get("id") or block.id))
                block.name = clean(str(item.get("name") or block.name))
                if is_whole:
                    answer.complete(key, "tool_call", item.get("arguments"))
            case "reasoning":
                block = answer.block(key, "thinking")
                block.id = clean(str(item.get("id") or block.id))
                secret = item.get("encrypted_content")
                if isinstance(secret, str):
                    answer.count(len(secret))
                    block.secret = secret
                if is_whole:
                    answer.complete(key, "thinking", _texts(item.get("summary")) or _texts(item.get("content")))
            case "message" if is_whole:
                for place, part in enumerate(item.get("content") or ()):
                    if isinstance(part, dict):
                        answer.complete(f"{key}.{place}", "text", part.get("text") or part.get("refusal"))

    def _end(self, response: Any) -> None:
        response = response if isinstance(response, dict) else {}
        answer = self._answer
        if response.get("status") == "failed" or response.get("error"):
            raise error_in_stream({"error": response.get("error") or {}}, answer.provider)
        details = response.get("incomplete_details")
        if isinstance(details, dict) and details.get("code"):  # the gateway's own: the budget ended it, not a bound
            raise error_in_stream(details, answer.provider)
        self._take_output(response.get("output"))
        answer.take_usage(response.get("usage"), _USAGE)
        answer.finish_reason = self._finish(response)
        self.is_done = not answer.is_empty or bool(response.get("status") or isinstance(response.get("output"), list))

    def _take_output(self, output: Any) -> None:
        """What the last event repeats of the answer, and what only it has. Indexes and ids in it may be others."""
        items = [one for one in output if isinstance(one, dict)] if isinstance(output, list) else []
        had = {
            "function_call": self._answer.has("tool_call"),
            "reasoning": self._answer.has("thinking"),
            "message": True,
        }
        text = "".join(_said(one) for one in items)
        if not self._answer.text:
            had["message"] = False
        elif text.startswith(self._answer.text):
            self._answer.add("the rest", "text", text[len(self._answer.text) :])
        for index, item in enumerate(items):
            if not had.get(str(item.get("type")), True):
                self._take_item(item, f"last {index}", is_whole=True)

    def _finish(self, response: Mapping[str, Any]) -> str:
        if response.get("status") == "incomplete":
            details = response.get("incomplete_details")
            reason = details.get("reason") if isinstance(details, dict) else None
            return "content_filter" if reason == "content_filter" else "length"
        return "tool_calls" if self._answer.has("tool_call") else "stop"


def _said(item: Mapping[str, Any]) -> str:
    """All text of a message."""
    parts = item.get("content") if item.get("type") == "message" else None
    said = [part.get("text") or part.get("refusal") for part in parts or () if isinstance(part, dict)]
    return "".join(one for one in said if isinstance(one, str))


def _texts(parts: Any) -> str:
    found = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "\n\n".join(text for text in found if isinstance(text, str) and text)
