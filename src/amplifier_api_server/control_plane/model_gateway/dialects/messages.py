"""The Anthropic messages dialect (https://docs.anthropic.com/en/api/messages), and its count of a prompt's tokens.

Owns the meaning of its bodies. A request is changed only in its model's name, in the bound on its answer and on its
thinking, and by dropping what names or bills people at the provider; an answer is never changed. What is read from the
provider's cache or written to it is not in its `input_tokens`, and is in ours.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import orjson

from amplifier_api_server.control_plane.model_gateway.answers import Refusal, anthropic_error
from amplifier_api_server.control_plane.model_gateway.dialects import fields
from amplifier_api_server.control_plane.model_gateway.dialects.dialect import (
    NO_TEXT,
    InvalidRequest,
    Reader,
    Request,
    body_of,
    detail_of,
    event_of,
    merged,
    model_of,
    positive,
    whole,
)
from amplifier_api_server.control_plane.model_gateway.dialects.prompts import prompt_of, strings_in
from amplifier_api_server.control_plane.model_gateway.dialects.server_tools import in_messages
from amplifier_api_server.control_plane.model_gateway.targets import Counted, DialectName

_PASSED_HEADERS = {b"anthropic-version": "anthropic-version", b"anthropic-beta": "anthropic-beta"}
_HEADER = re.compile(rb"[\x21-\x7e][\x20-\x7e]{0,999}")
_LEAST_THINKING = 1024  # the vendor refuses a lower budget_tokens, and max_tokens has to be above it


class Messages:
    """Messages."""

    name: DialectName = "messages"
    path = "/messages"
    is_metered = True
    aborts_when_cut = True  # a clean end without `message_stop` passes for success with the vendor's client

    def parse(self, raw: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> Request:
        body = body_of(raw)
        model = model_of(body)
        if not isinstance(body.get("messages"), list):
            raise InvalidRequest("`messages` should be a list")
        return Request(
            body=body,
            model=model,
            streams=body.get("stream") is True,
            max_tokens=positive(body, "max_tokens"),
            **prompt_of(raw, body, body["messages"])._asdict(),
            least_bound=1 if _thinking_budget(body) is None else _LEAST_THINKING + 1,
            headers=_passed(headers),
            server_tools=in_messages(body),
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
        body = fields.passing(request.body, fields.MESSAGES, fields.MESSAGES_DROPPED, extra_fields)
        body["model"] = model
        if max_tokens is not None:
            body["max_tokens"] = min(max_tokens, body.get("max_tokens") or max_tokens)
            budget = _thinking_budget(body)
            if budget is not None and budget >= body["max_tokens"]:
                body["thinking"] = {**body["thinking"], "budget_tokens": body["max_tokens"] - 1}
        return orjson.dumps(body)

    def reader(self, *, is_running_count: bool = False) -> Reader:
        return MessagesReader()

    def error(self, refusal: Refusal) -> bytes:
        return anthropic_error(refusal)


class TokenCount(Messages):
    """How many tokens a request of messages would be: answered by the provider, and free."""

    path = "/messages/count_tokens"
    is_metered = False

    def parse(self, raw: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> Request:
        request = super().parse(raw, headers)
        request.streams = False
        return request

    def reader(self, *, is_running_count: bool = False) -> Reader:
        return TokenCountReader()


def _thinking_budget(body: Mapping[str, Any]) -> int | None:
    thinking = body.get("thinking")
    return whole(thinking.get("budget_tokens")) if isinstance(thinking, dict) else None


def _passed(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The version and the betas that the client speaks; nothing else of its headers. Several lines are one list."""
    found: dict[str, str] = {}
    for name, value in headers:
        if (passed := _PASSED_HEADERS.get(name)) and _HEADER.fullmatch(value):
            text = value.decode()
            found[passed] = f"{found[passed]},{text}" if passed in found else text
    return found


class MessagesReader(Reader):
    """Of a stream's events, or of one message."""

    def __init__(self) -> None:
        super().__init__()
        self._usage: dict[str, Any] = {}  # each number as it was last said

    def last_words(self, refusal: Refusal) -> bytes:
        return event_of("error", anthropic_error(refusal))

    def _take(self, chunk: dict[str, Any]) -> None:
        match chunk.get("type"):
            case "content_block_delta":
                self._say_all(chunk.get("delta"))
            case "content_block_start":
                self._say(_texts(chunk.get("content_block")))
            case "message_start":
                message = chunk.get("message")
                if isinstance(message, dict):
                    self._say_all(message.get("content"))
                    self._count(message.get("usage"))
            case "message_delta":
                delta = chunk.get("delta")
                reason = delta.get("stop_reason") if isinstance(delta, dict) else None
                self._end(reason, chunk.get("usage"))
            case "message_stop":
                self.is_done, self.ended = True, self.ended or self.said_bytes > 0
            case "message" | None if isinstance(content := chunk.get("content"), list):
                self.is_answer = True
                for block in content:
                    self._say(_texts(block))
                self._end(chunk.get("stop_reason"), chunk.get("usage"))
            case "error" | None if chunk.get("error"):
                self._fail(chunk["error"])
                self._count(chunk.get("usage"))
            case "ping" | "content_block_stop":
                pass
            case _:
                self._say_all(chunk)

    def _end(self, reason: Any, usage: Any) -> None:
        if reason:
            self.ended = True
            self.is_length = self.is_length or reason == "max_tokens"
        self._count(usage)
        if self.counted is not None:  # the count at the start is of nothing that was said yet
            self.completion_tokens = max(self.completion_tokens, self.counted.completion_tokens)
        self.is_final = self.ended and isinstance(usage, dict) and whole(usage.get("output_tokens")) is not None

    def _count(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        self._usage = merged(self._usage, usage)
        read, written = (whole(self._usage.get(f"cache_{how}_input_tokens")) or 0 for how in ("read", "creation"))
        fresh, completion = whole(self._usage.get("input_tokens")), whole(self._usage.get("output_tokens"))
        if fresh is None and completion is None:
            return
        prompt, completion = (fresh or 0) + read + written, completion or 0
        self.counted = Counted(
            prompt,
            completion,
            prompt + completion,
            cached_tokens=read,
            cache_write_tokens=written,
            reasoning_tokens=min(completion, detail_of(self._usage, "output_tokens_details", "thinking_tokens")),
            cache_write_long_tokens=min(written, detail_of(self._usage, "cache_creation", "ephemeral_1h_input_tokens")),
        )


class TokenCountReader(MessagesReader):
    """Of an answer that costs nothing."""

    def _take(self, chunk: dict[str, Any]) -> None:
        self.ended = self.is_answer = True
        if chunk.get("type") == "error":
            self._fail(chunk.get("error"))


def _texts(block: Any) -> Iterator[str]:
    """What a block says: its text, its thinking, a call's name and input. What a tool of the provider's found is none."""
    if isinstance(block, dict) and not str(block.get("type")).endswith("_tool_result"):
        yield from strings_in({name: value for name, value in block.items() if name != "input"}, NO_TEXT)
        if block.get("input"):
            yield orjson.dumps(block["input"]).decode()
