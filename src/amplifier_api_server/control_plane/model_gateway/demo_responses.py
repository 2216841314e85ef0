"""The demo's responses: what a request of the dialect asks, and a reply in its words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count
from typing import Any

from amplifier_api_server.control_plane.model_gateway.demo_answers import Reply, ToolCall, reply_to, token_count
from amplifier_api_server.control_plane.model_gateway.demo_chat import CREATED, MODEL
from amplifier_api_server.control_plane.model_gateway.dialects.dialect import event_of

_ECHOED: dict[str, Any] = {
    # what a request may say of itself and gets told again, and what stands for it where it does not
    "instructions": None,
    "max_output_tokens": None,
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
}


class ResponsesCompletion:
    """A request and the reply to it. Raises KeyError, TypeError or AttributeError for what is no request."""

    def __init__(self, raw: bytes, body: dict[str, Any]) -> None:
        given, tools = body["input"], body.get("tools") or []
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else list(_messages(given))
        offered = {tool["name"] for tool in tools if tool.get("type", "function") == "function"}
        reasoning = body.get("reasoning")
        thinks = reasoning is not None and reasoning.get("effort") != "none"
        self.reply: Reply = reply_to(messages, offered, body.get("max_output_tokens"), thinks=thinks)
        self._prompt_tokens = sum(map(token_count, messages)) + sum(map(token_count, tools))
        if body.get("instructions"):
            self._prompt_tokens += token_count(body["instructions"])
        self._hash = hashlib.sha256(raw).hexdigest()[:24]
        self._is_encrypted = "reasoning.encrypted_content" in (body.get("include") or ())
        self._echo = {name: body.get(name, usual) for name, usual in _ECHOED.items()}
        self._numbers = count()

    def whole(self) -> dict[str, Any]:
        output = [self._thought()] if self.reply.thoughts else []
        if self.reply.tokens:
            output.append(self._message("".join(self.reply.tokens)))
        output += [self._call(call) for call in self.reply.calls]
        cut = self.reply.finish_reason == "length"
        return self._response("incomplete" if cut else "completed") | {
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": output,
            "usage": self._usage(),
        }

    def beginning(self) -> Iterator[bytes]:
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        if self.reply.thoughts:
            yield from self._thinking()
        if self.reply.tokens:
            index = self._text_index
            item = self._message("") | {"status": "in_progress", "content": []}
            yield self._event("response.output_item.added", output_index=index, item=item)
            yield self._event("response.content_part.added", **self._place(), part=_part(""))

    def deltas(self) -> Iterator[bytes]:
        """One event a token, several a call."""
        place = self._place()
        for token in self.reply.tokens:
            yield self._event("response.output_text.delta", **place, delta=token, logprobs=[])
        for index, call in enumerate(self.reply.calls, self._text_index + bool(self.reply.tokens)):
            yield b"".join(self._calling(index, call))

    def ending(self) -> Iterator[bytes]:
        if self.reply.tokens:
            text = "".join(self.reply.tokens)
            yield self._event("response.output_text.done", **self._place(), text=text, logprobs=[])
            yield self._event("response.content_part.done", **self._place(), part=_part(text))
            yield self._event("response.output_item.done", output_index=self._text_index, item=self._message(text))
        response = self.whole()
        yield self._event(f"response.{response['status']}", response=response)

    def _thinking(self) -> Iterator[bytes]:
        item, text = self._thought(), "".join(self.reply.thoughts)
        place = {"item_id": item["id"], "output_index": 0, "summary_index": 0}
        part = {"type": "summary_text", "text": ""}
        yield self._event("response.output_item.added", output_index=0, item=item | {"summary": []})
        yield self._event("response.reasoning_summary_part.added", **place, part=part)
        for token in self.reply.thoughts:
            yield self._event("response.reasoning_summary_text.delta", **place, delta=token)
        yield self._event("response.reasoning_summary_text.done", **place, text=text)
        yield self._event("response.reasoning_summary_part.done", **place, part=part | {"text": text})
        yield self._event("response.output_item.done", output_index=0, item=item)

    def _calling(self, index: int, call: ToolCall) -> Iterator[bytes]:
        item = self._call(call)
        place = {"item_id": item["id"], "output_index": index}
        begun = item | {"status": "in_progress", "arguments": ""}
        yield self._event("response.output_item.added", output_index=index, item=begun)
        yield self._event("response.function_call_arguments.delta", **place, delta=call.arguments)
        yield self._event("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments)
        yield self._event("response.output_item.done", output_index=index, item=item)

    @property
    def _text_index(self) -> int:
        return 1 if self.reply.thoughts else 0

    def _place(self) -> dict[str, Any]:
        return {"item_id": f"msg_{self._hash}", "output_index": self._text_index, "content_index": 0}

    def _event(self, kind: str, **data: Any) -> bytes:
        return event_of(kind, {"type": kind, "sequence_number": next(self._numbers), **data})

    def _thought(self) -> dict[str, Any]:
        summary = [{"type": "summary_text", "text": "".join(self.reply.thoughts)}]
        item = {"id": f"rs_{self._hash}", "type": "reasoning", "summary": summary}
        return item | {"encrypted_content": "ZGVtbw=="} if self._is_encrypted else item

    def _message(self, text: str) -> dict[str, Any]:
        status = "incomplete" if self.reply.finish_reason == "length" else "completed"
        head = {"id": f"msg_{self._hash}", "type": "message", "status": status, "role": "assistant"}
        return head | {"content": [_part(text)]}

    def _call(self, call: ToolCall) -> dict[str, Any]:
        return {
            "id": "fc_" + call.id.removeprefix("call_"),
            "type": "function_call",
            "status": "completed",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
        }

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": f"resp_{self._hash}",
            "object": "response",
            "created_at": CREATED,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": MODEL,
            "output": [],
            "store": False,
            "usage": None,
            **self._echo,
        }

    def _usage(self) -> dict[str, Any]:
        said = self.reply.token_count
        return {
            "input_tokens": self._prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": said,
            "output_tokens_details": {"reasoning_tokens": len(self.reply.thoughts)},
            "total_tokens": self._prompt_tokens + said,
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _messages(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The input in chat completions' words."""
    for item in items:
        match item.get("type", "message"):
            case "message":
                yield {"role": item["role"], "content": item.get("content")}
            case "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                yield {"role": "assistant", "tool_calls": [{"id": item["call_id"], "function": function}]}
            case "function_call_output":
                yield {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}
