"""The OpenAI chat-completions dialect (https://platform.openai.com/docs/api-reference/chat).

Owns the meaning of its bodies. A request is changed only in its model's name, in asking for usage, in the bound on its
answer, and by dropping what names or bills people at the provider; an answer is never changed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
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
    merged,
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
        self._usage: dict[str, Any] = {}  # each number as it was last said
        self._said_at_count = 0  # what had been said when the provider counted it last

    def last_words(self, refusal: Refusal) -> bytes:
        return b"data: " + openai_error(refusal) + b"\n\n"

    def _take(self, chunk: dict[str, Any]) -> None:
        before = self.completion_tokens
        # Some servers write the error itself, and say by its `object` that it is one.
        if error := chunk.get("error") or (chunk if chunk.get("object") == "error" else None):
            self._fail(error)
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._take_choice(choice)
        usage = _usage_in(chunk)
        self._usage = merged(self._usage, usage)
        counted = _counted(self._usage) if usage is not None else None
        if counted is not None:
            self.counted, self._said_at_count = counted, self.said_bytes
            ours = before if self._is_running_count else self.completion_tokens
            self.completion_tokens = max(ours, counted.completion_tokens)
            self.is_usage_only = not choices and not error
        elif not isinstance(choices, list) and not error:
            self._say_all(chunk)  # it is of no kind that is known
        self._judge()

    def _take_choice(self, choice: dict[str, Any]) -> None:
        self.is_answer = True
        self._say_all({name: value for name, value in choice.items() if name != "error"})
        if reason := choice.get("finish_reason"):
            self.ended = True
            self.is_length = self.is_length or reason in ("length", "max_tokens")
        if choice.get("error") or reason == "error":
            self._fail(choice.get("error"))

    def _take_done(self) -> None:
        """It is the end of an answer only where there was one."""
        self.is_done, self.ended = True, self.ended or self.said_bytes > 0
        self._judge()

    def _judge(self) -> None:
        """The provider's count is final when nothing was said after it."""
        is_of_all = self.ended and self._said_at_count == self.said_bytes
        self.is_final = self.counted is not None and (is_of_all or self._is_running_count)


def _usage_in(chunk: Mapping[str, Any]) -> dict[str, Any] | None:
    """The chunk's usage, or its first choice's, as Moonshot has it."""
    choices = chunk.get("choices")
    holders = (chunk, *(choices[:1] if isinstance(choices, list) else ()))
    found = (one.get("usage") for one in holders if isinstance(one, dict))
    return next((usage for usage in found if isinstance(usage, dict)), None)


def _counted(usage: Mapping[str, Any]) -> Counted | None:
    """What the numbers of usage objects say, if it is anything."""
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
        cached_tokens=min(prompt, _cached(usage)),
        cache_write_tokens=min(prompt, detail_of(usage, "prompt_tokens_details", "cache_write_tokens")),
        reasoning_tokens=min(completion, reasoning),
    )


def _cached(usage: Mapping[str, Any]) -> int:
    """What was read from a cache, as OpenAI, DeepSeek or Moonshot call it."""
    others = (whole(usage.get(name)) for name in ("prompt_cache_hit_tokens", "cached_tokens"))
    return detail_of(usage, "prompt_tokens_details", "cached_tokens") or next((one for one in others if one), 0)
