"""The OpenAI chat-completions dialect (https://platform.openai.com/docs/api-reference/chat).

Owns the meaning of its bodies. A request is changed only in its model's name, in asking for usage, in the bound on its
answer, and by dropping what names or bills people at the provider; an answer is never changed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

import orjson

from amplifier_api_server.control_plane.model_gateway.answers import Refusal, openai_error
from amplifier_api_server.control_plane.model_gateway.dialects import fields
from amplifier_api_server.control_plane.model_gateway.dialects.dialect import (
    InvalidRequest,
    Reader,
    Request,
    body_of,
    detail_of,
    model_of,
    positive,
    whole,
)
from amplifier_api_server.control_plane.model_gateway.dialects.prompts import prompt_of
from amplifier_api_server.control_plane.model_gateway.dialects.server_tools import in_chat
from amplifier_api_server.control_plane.model_gateway.targets import Counted, DialectName

_BOUNDS = ("max_tokens", "max_completion_tokens")
# OpenAI's reasoning models refuse the older of the two names; many servers of others don't know the newer.
_NEWER_BOUND = re.compile(r"(.*/)?(o\d|gpt-[5-9]|codex)")


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
        choices = max(positive(body, "n") or 1, whole(body.get("best_of")) or 1)
        bounds = [bound for name in _BOUNDS if (bound := positive(body, name)) is not None]
        return Request(
            body=body,
            model=model,
            streams=body.get("stream") is True,
            wants_usage=bool((options or {}).get("include_usage")),
            choices=choices,
            max_tokens=min(bounds) if bounds else None,
            **prompt_of(raw, body, body["messages"])._asdict(),
            server_tools=in_chat(body),
        )

    def rewritten(
        self,
        request: Request,
        *,
        model: str,
        continuous_usage: bool,
        max_tokens: int | None,
        extra_fields: Collection[str] = (),
    ) -> bytes:
        body = fields.passing(request.body, fields.CHAT, fields.CHAT_DROPPED, extra_fields)
        body["model"] = model
        if request.streams:
            options = {**(body.get("stream_options") or {}), "include_usage": True}
            options.pop("continuous_usage_stats", None)  # servers that don't know it refuse it
            if continuous_usage:
                options["continuous_usage_stats"] = True
            body["stream_options"] = options
        if max_tokens is not None:
            given = [name for name in _BOUNDS if body.get(name) is not None]
            is_newer = "reasoning_effort" in body or _NEWER_BOUND.match(model) is not None
            for name in given or [_BOUNDS[is_newer]]:
                body[name] = min(max_tokens, body.get(name) or max_tokens)
        return orjson.dumps(body)

    def reader(self, *, is_running_count: bool = False) -> ChatReader:
        return ChatReader(is_running_count=is_running_count)

    def error(self, refusal: Refusal) -> bytes:
        return openai_error(refusal)


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
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._take_choice(choice)
        if (counted := _counted(chunk.get("usage"))) is not None:
            self.counted = counted
            ours = before if self._is_running_count else self.completion_tokens
            self.completion_tokens = max(ours, counted.completion_tokens)
            self.is_usage_only = not choices
        elif not isinstance(choices, list) and not error:
            self._say_all(chunk)  # it is of no kind that is known
        self.is_final = self.counted is not None and (self.ended or self._is_running_count)

    def _take_choice(self, choice: dict[str, Any]) -> None:
        self._say_all(choice)
        if reason := choice.get("finish_reason"):
            self.ended = True
            self.is_length = self.is_length or reason == "length"


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
