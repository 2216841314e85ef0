"""The OpenAI responses dialect (https://platform.openai.com/docs/api-reference/responses), without a memory.

Owns the meaning of its bodies. The gateway keeps no responses and lets the provider keep none, so what refers to an
earlier one is dropped: every request brings its whole input. Otherwise a request is changed only in its model's name, in
the bound on its answer, and by dropping what names or bills people at the provider; an answer is never changed. A stream
that the budget ends is ended as the vendor ends one at a bound: by `response.incomplete`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import orjson

from amplifier_api_server.control_plane.model_gateway.answers import Refusal, openai_error
from amplifier_api_server.control_plane.model_gateway.dialects import fields
from amplifier_api_server.control_plane.model_gateway.dialects.dialect import (
    NO_TEXT,
    InvalidRequest,
    Reader,
    Request,
    body_of,
    bytes_of,
    detail_of,
    event_of,
    merged,
    model_of,
    positive,
    whole,
)
from amplifier_api_server.control_plane.model_gateway.dialects.prompts import prompt_of, strings_in
from amplifier_api_server.control_plane.model_gateway.dialects.server_tools import in_responses
from amplifier_api_server.control_plane.model_gateway.targets import Counted, DialectName

_LEAST_BOUND = 16  # the vendor refuses a lower max_output_tokens
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
_BEGINNINGS = frozenset({"response.created", "response.in_progress", "response.queued"})
_SAID_ITEMS = frozenset({"message", "function_call", "custom_tool_call"})  # what the model says; others hold results
# Events that say what is going on, or again what was said.
_SILENT = re.compile(
    r"response\..*\.?(added|done|in_progress|searching|interpreting|generating|completed|partial_image)|keepalive"
)


class Responses:
    """Responses."""

    name: DialectName = "responses"
    path = "/responses"
    is_metered = True
    aborts_when_cut = False  # the vendor's client raises the error in the last event, and misses `response.completed`

    def parse(self, raw: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> Request:
        body = body_of(raw)
        model = model_of(body)
        if not isinstance(body.get("input"), (list, str)):
            raise InvalidRequest("`input` should be a string or a list")
        return Request(
            body=body,
            model=model,
            streams=body.get("stream") is True,
            max_tokens=positive(body, "max_output_tokens"),
            **prompt_of(raw, body, body["input"])._asdict(),
            least_bound=_LEAST_BOUND,
            server_tools=in_responses(body),
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
        body = fields.passing(request.body, fields.RESPONSES, fields.RESPONSES_DROPPED, extra_fields)
        body |= {"model": model, "store": False}
        if max_tokens is not None:
            body["max_output_tokens"] = min(max_tokens, body.get("max_output_tokens") or max_tokens)
        return orjson.dumps(body)

    def reader(self, *, is_running_count: bool = False) -> ResponsesReader:
        return ResponsesReader()

    def error(self, refusal: Refusal) -> bytes:
        return openai_error(refusal)


class ResponsesReader(Reader):
    """Of a stream's events, or of one response. Remembers what it was told, so that it can end the response itself."""

    def __init__(self) -> None:
        super().__init__()
        self._response: dict[str, Any] | None = None  # as it was last told whole
        self._items: dict[int, dict[str, Any]] = {}  # of its output, by their places
        self._texts: dict[tuple[int, int], list[str]] = {}  # of items that are not done, by their parts' places
        self._grown: list[str] | None = None  # the text that the latest event added to
        self._number = -1  # the latest event's
        self._usage: dict[str, Any] = {}  # each number as it was last said

    def take_back(self, completion_tokens: int, counted: Counted | None) -> None:
        super().take_back(completion_tokens, counted)
        self._number -= 1
        if self._grown:
            self._grown.pop()

    def last_words(self, refusal: Refusal) -> bytes:
        number = self._number + 1
        if refusal.code != "quota_exceeded" or self._response is None:
            told: dict[str, Any] = {"type": "error", "code": refusal.code, "message": refusal.detail, "param": None}
            # The vendor's client raises what has an `error`, and passes on what has none as one event more.
            return event_of("error", told | orjson.loads(openai_error(refusal)) | {"sequence_number": number})
        response = self._response | {
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens", "code": refusal.code, "detail": refusal.detail},
            "output": self._response.get("output") or self._output(),
        }
        told = {"type": "response.incomplete", "sequence_number": number, "response": response}
        return event_of("response.incomplete", told)

    def _take(self, chunk: dict[str, Any]) -> None:
        kind = chunk.get("type")
        if not isinstance(kind, str):  # a whole response, or an error instead of one
            self._take_whole(chunk)
            return
        number = whole(chunk.get("sequence_number"))
        self._number = self._number + 1 if number is None else number
        self._grown = None
        if kind.endswith(".delta"):
            self._say_all(chunk.get("delta"))
            if kind == "response.output_text.delta":
                place = chunk.get("output_index"), chunk.get("content_index")
                if isinstance(place[0], int) and isinstance(place[1], int) and isinstance(chunk.get("delta"), str):
                    self._grown = self._texts.setdefault((place[0], place[1]), [])
                    self._grown.append(chunk["delta"])
        elif kind in {"response.output_item.added", "response.output_item.done"}:
            self._take_item(chunk, is_done=kind.endswith(".done"))
        elif kind in _BEGINNINGS and isinstance(chunk.get("response"), dict):
            self._response = chunk["response"]
            self._usage = merged(self._usage, self._response.get("usage"))
        elif kind in _ENDS:
            response = chunk.get("response")
            self._take_whole(response if isinstance(response, dict) else {})
            self.is_done, self.ended = True, self.is_answer or self.said_bytes > 0
            self.failed = self.failed or kind == "response.failed"
        elif kind == "error":
            self._fail(chunk.get("error") or chunk)
        elif not _SILENT.fullmatch(kind):
            self._say_all(chunk)

    def _take_whole(self, response: dict[str, Any]) -> None:
        # Some tell nothing of an item before it is done, or the whole at the end alone.
        self._say_rest(response.get("output"))
        self._response = response
        if error := response.get("error"):
            self._fail(error)
        details = response.get("incomplete_details")
        self.is_length = isinstance(details, dict) and details.get("reason") == "max_output_tokens"
        self.is_answer = isinstance(response.get("output"), list) or isinstance(response.get("status"), str)
        usage = response.get("usage")
        self._usage = merged(self._usage, usage)
        if (counted := _counted(self._usage)) is not None:
            self.counted = counted
            self.is_final = isinstance(usage, dict) and whole(usage.get("output_tokens")) is not None
            self.completion_tokens = max(self.completion_tokens, counted.completion_tokens)

    def _take_item(self, chunk: dict[str, Any], *, is_done: bool) -> None:
        item, index = chunk.get("item"), chunk.get("output_index")
        if not isinstance(item, dict) or not isinstance(index, int):
            return
        if not is_done:
            self._say([item.get("name")])
        self._items[index] = item
        if is_done:
            self._say_rest([one for one in self._items.values() if one.get("type") in _SAID_ITEMS])
            self._texts = {place: texts for place, texts in self._texts.items() if place[0] != index}

    def _say_rest(self, items: Any) -> None:
        """Count what these items hold beyond all that was said."""
        self.say_bytes(max(0, sum(map(bytes_of, strings_in(items, NO_TEXT))) - self.said_bytes))

    def _output(self) -> list[dict[str, Any]]:
        """The items that were told. Of one that is not done, its text; a call that is not done is none."""
        output = []
        for index, item in sorted(self._items.items()):
            texts = [texts for place, texts in sorted(self._texts.items()) if place[0] == index]
            if item.get("type") == "message" and texts:
                parts = [{"type": "output_text", "text": "".join(one), "annotations": []} for one in texts]
                output.append(item | {"status": "incomplete", "content": parts})
            elif item.get("status", "completed") == "completed":
                output.append(item)
        return output


def _counted(usage: Mapping[str, Any]) -> Counted | None:
    """What the numbers of usage objects say, if it is anything."""
    prompt, completion = whole(usage.get("input_tokens")), whole(usage.get("output_tokens"))
    if prompt is None and completion is None:
        return None
    prompt, completion = prompt or 0, completion or 0
    return Counted(
        prompt,
        completion,
        max(prompt + completion, whole(usage.get("total_tokens")) or 0),
        cached_tokens=min(prompt, detail_of(usage, "input_tokens_details", "cached_tokens")),
        cache_write_tokens=min(prompt, detail_of(usage, "input_tokens_details", "cache_write_tokens")),
        reasoning_tokens=min(completion, detail_of(usage, "output_tokens_details", "reasoning_tokens")),
    )
