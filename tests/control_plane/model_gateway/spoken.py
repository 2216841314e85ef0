"""The dialects as a scripted provider speaks them: the same short answer in each, with what a reader must not mind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .scripted_upstream import DONE, delta, event, usage_chunk, whole_answer


def named(data: dict[str, Any]) -> bytes:
    return b"event: " + data["type"].encode() + b"\ndata: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


@dataclass
class Told:
    """An answer as the sandbox got it."""

    status: int
    body: bytes
    headers: Any
    is_broken_off: bool = False  # it had no end on the wire

    @property
    def data(self) -> list:
        lines = [line.removeprefix("data: ") for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    @property
    def json(self):
        return json.loads(self.body)


class Chat:
    name, path, dialect = "chat", "/v1/chat/completions", "openai"

    def ask(self, text="hello", **more):
        options = {"stream_options": {"include_usage": True}} if more.get("stream") else {}
        return {"model": "default", "messages": [{"role": "user", "content": text}], **options, **more}

    def stream(self, texts: Sequence[str], prompt=11, completion=None, *, usage=True) -> list[bytes]:
        completion = len(texts) if completion is None else completion
        counted = [usage_chunk(prompt, completion)] if usage else []
        return [*map(delta, texts), delta("", "stop"), *counted, DONE]

    def whole(self, text, prompt=11, completion=2) -> bytes:
        return whole_answer(text, prompt, completion)

    def error_event(self, code="server_error") -> bytes:
        return event({"error": {"message": "oh", "type": code, "code": code}})

    def error(self, code: str, message="no", **more) -> bytes:
        return json.dumps({"error": {"message": message, "type": "t", "code": code}, **more}).encode()

    def usage(self, prompt, completion):
        return {"prompt_tokens": prompt, "completion_tokens": completion}

    def text(self, told: Told) -> str:
        choices = [choice for one in told.data for choice in one.get("choices", ())]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    def code(self, told: Told) -> str | None:
        error = told.data[-1].get("error")
        return error["code"] if error else None


class Responses(Chat):
    name, path, dialect = "responses", "/v1/responses", "openai"

    def ask(self, text="hello", **more):
        return {"model": "default", "input": text, **more}

    def response(self, status, text="", usage=None, **more):
        content = [{"type": "output_text", "text": text, "annotations": []}]
        item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": content}
        head = {"id": "resp_1", "object": "response", "status": status, "model": "m", "error": None, "tools": []}
        return head | {"output": [item] if text else [], "usage": usage, **more}

    def beginning(self):
        item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        part = {"type": "output_text", "text": "", "annotations": []}
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        return [
            named({"type": "response.created", "sequence_number": 0, "response": self.response("in_progress")}),
            named({"type": "response.output_item.added", "sequence_number": 1, "output_index": 0, "item": item}),
            named({"type": "response.content_part.added", "sequence_number": 2, **place, "part": part}),
        ]

    def delta(self, text, number=3):
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}
        return named({"type": "response.output_text.delta", "sequence_number": number, **place, "delta": text})

    def stream(self, texts, prompt=11, completion=None, *, usage=True, kind="completed", **more):
        counted = self.usage(prompt, len(texts) if completion is None else completion) if usage else None
        deltas = [self.delta(text, number) for number, text in enumerate(texts, 3)]
        response = self.response(kind, "".join(texts), counted, **more)
        end = {"type": f"response.{kind}", "sequence_number": len(texts) + 3, "response": response}
        return [*self.beginning(), *deltas, named(end)]

    def whole(self, text, prompt=11, completion=2):
        return json.dumps(self.response("completed", text, self.usage(prompt, completion))).encode()

    def error_event(self, code="server_error"):
        error = {"type": code, "code": code, "message": "oh", "param": None}
        return named({"type": "error", "sequence_number": 9, "error": error})

    def usage(self, prompt, completion):
        return {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion}

    def text(self, told):
        return "".join(one["delta"] for one in told.data if one["type"] == "response.output_text.delta")

    def code(self, told):
        last = told.data[-1]
        if last["type"] == "response.incomplete":
            return last["response"]["incomplete_details"].get("code")
        return last["error"]["code"] if last["type"] == "error" else None


class Messages(Chat):
    name, path, dialect = "messages", "/v1/messages", "anthropic"

    def ask(self, text="hello", **more):
        return {"model": "default", "max_tokens": 64_000, "messages": [{"role": "user", "content": text}], **more}

    def beginning(self, prompt=11, **usage):
        head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None}
        message = head | {"usage": {"input_tokens": prompt, "output_tokens": 1, **usage}}
        block = {"type": "text", "text": ""}
        return [
            named({"type": "message_start", "message": message}),
            named({"type": "content_block_start", "index": 0, "content_block": block}),
            named({"type": "ping"}),
        ]

    def delta(self, text):
        return named({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}})

    def stream(self, texts, prompt=11, completion=None, *, usage=True, stop="end_turn"):
        counted = {"usage": {"output_tokens": len(texts) if completion is None else completion}} if usage else {}
        end = {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, **counted}
        stopped = named({"type": "content_block_stop", "index": 0})
        deltas = [self.delta(text) for text in texts]
        return [*self.beginning(prompt), *deltas, stopped, named(end), named({"type": "message_stop"})]

    def whole(self, text, prompt=11, completion=2):
        head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"}
        content = [{"type": "text", "text": text}]
        return json.dumps(head | {"content": content, "usage": self.usage(prompt, completion)}).encode()

    def error_event(self, code="api_error"):
        code = {"server_error": "api_error"}.get(code, code)
        return named({"type": "error", "error": {"type": code, "message": "oh"}})

    def error(self, code, message="no", **more):
        return json.dumps({"type": "error", "error": {"type": code, "message": message}, **more}).encode()

    def usage(self, prompt, completion):
        return {"input_tokens": prompt, "output_tokens": completion}

    def text(self, told):
        deltas = [one["delta"] for one in told.data if one["type"] == "content_block_delta"]
        return "".join(one.get("text", "") for one in deltas)

    def code(self, told):
        last = told.data[-1]
        return last["error"].get("code", last["error"]["type"]) if last["type"] == "error" else None


ALL = [Chat(), Responses(), Messages()]
