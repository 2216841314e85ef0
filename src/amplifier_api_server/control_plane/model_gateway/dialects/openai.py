"""The OpenAI chat-completions dialect: what of a request is changed, and what an answer says about usage.

Owns the meaning of bodies. Refuses to know providers' addresses, budgets and HTTP. A request is changed only in its
model's name, in asking for usage, in the bound on its answer, and by dropping what names or bills people at the
provider; an answer is never changed (https://platform.openai.com/docs/api-reference/chat).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from amplifier_api_server.control_plane.json_bounds import UnboundedJSON, loads

# These would tell the provider who a tenant's users are, keep data on the operator's account, or choose what it pays.
_DROPPED = ("user", "metadata", "store", "service_tier", "safety_identifier")
_DATA_URL_BYTES = 4096  # what an inlined file counts as in an estimate, however long its base64 is: about 1,000 tokens
_MAX_NAME_CHARS = 200
_BYTES_A_TOKEN = 8  # of one delta: more bytes are more than one token; a single token is hardly ever 16 bytes long

# Up to here a bound may be added to a request that has none: every model's own bound is above it, so that none refuses
# it.
SMALL_ALLOWANCE = 4096


class InvalidRequest(Exception):
    """The body is no chat-completions request; the message says why."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A provider's own count."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(slots=True)
class ChatRequest:
    """A request as it came, parsed."""

    body: dict[str, Any]
    model: str
    streams: bool
    wants_usage: bool  # its stream should end with a usage chunk
    choices: int
    max_tokens: int | None  # of one choice
    prompt_bytes: int  # about what the model will read


def parse(raw: bytes) -> ChatRequest:
    """The request in `raw`. Raises InvalidRequest."""
    try:
        body = loads(raw)
    except UnboundedJSON as error:
        raise InvalidRequest(f"the body can't be taken: {error}") from error
    if not isinstance(body, dict):
        raise InvalidRequest("the body should be a JSON object")
    model = body.get("model", "default")
    if not isinstance(model, str) or not 1 <= len(model) <= _MAX_NAME_CHARS:
        raise InvalidRequest("`model` should be a string of 1 to 200 characters")
    if not isinstance(body.get("messages"), list):
        raise InvalidRequest("`messages` should be a list")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise InvalidRequest("`stream_options` should be an object")
    choices = _positive(body, "n") or 1
    bounds = [bound for name in ("max_tokens", "max_completion_tokens") if (bound := _positive(body, name)) is not None]
    return ChatRequest(
        body=body,
        model=model,
        streams=body.get("stream") is True,
        wants_usage=bool((options or {}).get("include_usage")),
        choices=choices,
        max_tokens=min(bounds) if bounds else None,
        prompt_bytes=len(raw) - sum(map(_excess, _strings(body["messages"]))),
    )


def _positive(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidRequest(f"`{name}` should be a whole number above 0")
    return value


def _strings(messages: list[Any]) -> Iterator[str]:
    """The strings in content parts' objects, where files are inlined: image_url.url, input_audio.data and such."""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            for value in part.values() if isinstance(part, dict) else ():
                if isinstance(value, dict):
                    yield from (inner for inner in value.values() if isinstance(inner, str))


def _excess(inlined: str) -> int:
    return max(0, len(inlined) - _DATA_URL_BYTES)


def rewritten(request: ChatRequest, *, model: str, continuous_usage: bool, max_tokens: int | None) -> bytes:
    """The request as the provider gets it. `max_tokens`: the bound of one choice, where it must be lower or added."""
    body = {name: value for name, value in request.body.items() if name not in _DROPPED}
    body["model"] = model
    if request.streams:
        options = {**(body.get("stream_options") or {}), "include_usage": True}
        options.pop("continuous_usage_stats", None)  # servers that don't know it refuse it
        if continuous_usage:
            options["continuous_usage_stats"] = True
        body["stream_options"] = options
    if max_tokens is not None:
        given = [name for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
        for name in given or ["max_tokens"]:
            body[name] = min(max_tokens, body.get(name) or max_tokens)
    return orjson.dumps(body)


class AnswerReader:
    """Reads a stream's chunks, or one whole answer, for what they say about usage. Tolerates what it does not know."""

    __slots__ = (
        "_is_running_count",
        "completion_tokens",
        "counted",
        "ended",
        "failed",
        "is_done",
        "is_length",
        "is_usage_only",
    )

    def __init__(self, *, is_running_count: bool = False) -> None:
        self._is_running_count = is_running_count  # each chunk says how many tokens there were so far
        self.completion_tokens = 0  # by our own count, or by the provider's running one
        self.counted: Counted | None = None  # the latest of the provider's
        self.ended = False  # it said so: a finish reason or [DONE]
        self.is_done = False  # [DONE]: nothing comes after it
        self.failed = False  # it said so: an error object
        self.is_length = False  # it stopped at a bound
        self.is_usage_only = False  # of the latest chunk

    def read(self, data: bytes) -> bool:
        """One event's data, or a whole answer's body. False: it is not in the dialect."""
        self.is_usage_only = False
        if data == b"[DONE]":
            self.ended = self.is_done = True
            return True
        try:
            chunk = orjson.loads(data) if data else None
        except orjson.JSONDecodeError:
            return False
        if not isinstance(chunk, dict):
            return False
        before = self.completion_tokens
        if chunk.get("error"):
            self.failed = True
        choices = chunk.get("choices")
        choices = choices if isinstance(choices, list) else []
        for choice in choices:
            if isinstance(choice, dict):
                self._read_choice(choice)
        if (counted := _counted(chunk.get("usage"))) is not None:
            self.counted = counted
            ours = before if self._is_running_count else self.completion_tokens
            self.completion_tokens = max(ours, counted.completion_tokens)
            self.is_usage_only = not choices
        return True

    def _read_choice(self, choice: dict[str, Any]) -> None:
        said = choice.get("delta") or choice.get("message")
        if isinstance(said, dict):
            self.completion_tokens += _tokens(said)
        if reason := choice.get("finish_reason"):
            self.ended = True
            self.is_length = self.is_length or reason == "length"


def _tokens(said: Mapping[str, Any]) -> int:
    """Our own count of one delta: at least 1 where it says anything."""
    length = 0
    for name in ("content", "reasoning_content", "reasoning", "refusal"):
        if isinstance(text := said.get(name), str):
            length += len(text.encode(errors="replace"))
    calls = said.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            length += sum(len(text.encode(errors="replace")) for text in function.values() if isinstance(text, str))
    return max(1, length // _BYTES_A_TOKEN) if length else 0


def _counted(usage: Any) -> Counted | None:
    """A usage object, if it is one: whole numbers of 0 and above."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = _whole(usage.get("prompt_tokens")), _whole(usage.get("completion_tokens"))
    if prompt is None and completion is None:
        return None
    total = (prompt or 0) + (completion or 0)
    return Counted(prompt or 0, completion or 0, max(total, _whole(usage.get("total_tokens")) or 0))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None
