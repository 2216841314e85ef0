"""The OpenAI chat-completions dialect (https://platform.openai.com/docs/api-reference/chat).

Owns the meaning of its bodies. A request is changed only in its model's name, in asking for usage, in the bound on its
answer, and by dropping what names or bills people at the provider; an answer is never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from amplifier_api_server.control_plane.model_gateway.answers import Refusal, openai_error
from amplifier_api_server.control_plane.model_gateway.dialects.dialect import (
    InvalidRequest,
    Reader,
    Request,
    body_of,
    detail_of,
    model_of,
    positive,
    prompt_bytes,
    whole,
)
from amplifier_api_server.control_plane.model_gateway.dialects.server_tools import in_chat
from amplifier_api_server.control_plane.model_gateway.targets import Counted, DialectName

# These would tell the provider who a tenant's users are, keep data on the operator's account, or choose what it pays.
_DROPPED = ("user", "metadata", "store", "service_tier", "safety_identifier")
_BOUNDS = ("max_tokens", "max_completion_tokens")


class Chat:
    """Chat completions."""

    name: DialectName = "chat"
    path = "/chat/completions"
    is_metered = True
    aborts_when_cut = False  # the error in the last event is raised by every client

    def parse(self, raw: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> Request:
        body = body_of(raw)
        model = model_of(body)
        if not isinstance(body.get("messages"), list):
            raise InvalidRequest("`messages` should be a list")
        options = body.get("stream_options")
        if options is not None and not isinstance(options, dict):
            raise InvalidRequest("`stream_options` should be an object")
        choices = positive(body, "n") or 1
        bounds = [bound for name in _BOUNDS if (bound := positive(body, name)) is not None]
        return Request(
            body=body,
            model=model,
            streams=body.get("stream") is True,
            wants_usage=bool((options or {}).get("include_usage")),
            choices=choices,
            max_tokens=min(bounds) if bounds else None,
            prompt_bytes=prompt_bytes(raw, _inlined(body["messages"])),
            server_tools=in_chat(body),
        )

    def rewritten(self, request: Request, *, model: str, continuous_usage: bool, max_tokens: int | None) -> bytes:
        body = {name: value for name, value in request.body.items() if name not in _DROPPED}
        body["model"] = model
        if request.streams:
            options = {**(body.get("stream_options") or {}), "include_usage": True}
            options.pop("continuous_usage_stats", None)  # servers that don't know it refuse it
            if continuous_usage:
                options["continuous_usage_stats"] = True
            body["stream_options"] = options
        if max_tokens is not None:
            given = [name for name in _BOUNDS if body.get(name) is not None]
            for name in given or ["max_tokens"]:
                body[name] = min(max_tokens, body.get(name) or max_tokens)
        return orjson.dumps(body)

    def reader(self, *, is_running_count: bool = False) -> ChatReader:
        return ChatReader(is_running_count=is_running_count)

    def error(self, refusal: Refusal) -> bytes:
        return openai_error(refusal)


def _inlined(messages: list[Any]) -> Iterator[str]:
    """The strings in content parts' objects, where files are inlined: image_url.url, input_audio.data and such."""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            for value in part.values() if isinstance(part, dict) else ():
                if isinstance(value, dict):
                    yield from (inner for inner in value.values() if isinstance(inner, str))


class ChatReader(Reader):
    """Of chunks with choices, or of one completion."""

    def __init__(self, *, is_running_count: bool = False) -> None:
        super().__init__()
        self._is_running_count = is_running_count

    def read(self, data: bytes) -> bool:
        if data == b"[DONE]":
            self.is_usage_only = False
            self.ended = self.is_done = True
            self.is_final = self.counted is not None
            return True
        return super().read(data)

    def last_words(self, refusal: Refusal) -> bytes:
        return b"data: " + openai_error(refusal) + b"\n\n"

    def _take(self, chunk: dict[str, Any]) -> None:
        before = self.completion_tokens
        if error := chunk.get("error"):
            self._fail(error)
        choices = chunk.get("choices")
        choices = choices if isinstance(choices, list) else []
        for choice in choices:
            if isinstance(choice, dict):
                self._take_choice(choice)
        if (counted := _counted(chunk.get("usage"))) is not None:
            self.counted = counted
            ours = before if self._is_running_count else self.completion_tokens
            self.completion_tokens = max(ours, counted.completion_tokens)
            self.is_usage_only = not choices
        self.is_final = self.counted is not None and (self.ended or self._is_running_count)

    def _take_choice(self, choice: dict[str, Any]) -> None:
        said = choice.get("delta") or choice.get("message")
        if isinstance(said, dict):
            self._say(_texts(said))
        if reason := choice.get("finish_reason"):
            self.ended = True
            self.is_length = self.is_length or reason == "length"


def _texts(said: Mapping[str, Any]) -> Iterator[Any]:
    for name in ("content", "reasoning_content", "reasoning", "refusal"):
        yield said.get(name)
    calls = said.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield from function.values()


def _counted(usage: Any) -> Counted | None:
    """A usage object, if it is one: whole numbers of 0 and above."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = whole(usage.get("prompt_tokens")), whole(usage.get("completion_tokens"))
    if prompt is None and completion is None:
        return None
    prompt, completion = prompt or 0, completion or 0
    total = max(prompt + completion, whole(usage.get("total_tokens")) or 0)
    reasoning = detail_of(usage, "completion_tokens_details", "reasoning_tokens")
    if reasoning and total == prompt + completion + reasoning:  # some vendors count reasoning beside the completion
        completion += reasoning
    return Counted(
        prompt,
        completion,
        total,
        cached_tokens=min(prompt, detail_of(usage, "prompt_tokens_details", "cached_tokens")),
        cache_write_tokens=min(prompt, detail_of(usage, "prompt_tokens_details", "cache_write_tokens")),
        reasoning_tokens=min(completion, reasoning),
    )
