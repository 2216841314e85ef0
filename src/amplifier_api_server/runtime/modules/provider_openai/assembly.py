"""One streamed answer put together: bytes in any division, out of them text (shown as it comes), tool calls and
usage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from amplifier_core import ContentFilterError, StreamError
from pydantic_core import from_json

from amplifier_api_server.runtime.modules.provider_openai import dialect

MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_ANSWER_CHARS = 8 * 1024 * 1024
MAX_CALLS = 128


@dataclass(slots=True)
class _Call:
    """A tool call while its pieces come."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class Assembly:
    def __init__(self, show: Callable[[str], None]) -> None:
        self.usage: dict[str, int] = {}
        self.finish_reason: str | None = None
        self._show = show
        self._rest = b""
        self._text: list[str] = []
        self._chars = 0
        self._calls: dict[int, _Call] = {}
        self._done = False

    @property
    def text(self) -> str:
        return "".join(self._text)

    def feed(self, chunk: bytes) -> None:
        """More bytes of the stream: any number of lines, the last perhaps not whole."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_LINE_BYTES:
            raise dialect.coded(StreamError("a line of the model's stream is too long", provider="openai"), None)
        for line in lines:
            self._line(line)

    def finish(self) -> None:
        """The stream has ended. Raises StreamError when the answer had not."""
        if self._rest:
            self._line(self._rest)
            self._rest = b""
        if not self._done and self.finish_reason is None:
            raise dialect.coded(StreamError("the model's stream ended before its answer did", provider="openai"), None)
        if self.finish_reason == "content_filter" and not self._text and not self._calls:
            raise dialect.coded(
                ContentFilterError("the provider's filter withheld the answer", provider="openai"), "content_filtered"
            )

    def take_whole(self, body: bytes) -> None:
        """An answer that was not streamed, because the upstream can't."""
        answer = self._parsed(body)
        choice = (answer.get("choices") or [{}])[0]
        self._take(
            {
                "choices": [
                    {"delta": choice.get("message") or {}, "finish_reason": choice.get("finish_reason") or "stop"}
                ]
            }
        )
        self._take({"usage": answer.get("usage")})

    def calls(self) -> list[dict[str, Any]]:
        """The tool calls: id (made up where missing or doubled), name, arguments, `invalid` when those are wrong."""
        made: list[dict[str, Any]] = []
        seen: set[str] = set()
        for index, call in sorted(self._calls.items()):
            call_id = call.id if call.id and call.id not in seen else f"call_{index}_{len(seen)}"
            seen.add(call_id)
            made.append({"id": call_id, "name": call.name} | _arguments("".join(call.arguments)))
        return made

    def _line(self, line: bytes) -> None:
        line = line.rstrip(b"\r")
        if not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self._done = True
        elif data:
            self._take(self._parsed(data))

    def _parsed(self, data: bytes) -> dict[str, Any]:
        try:
            parsed = from_json(data)
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            raise dialect.coded(StreamError("the model's stream holds what is no JSON object", provider="openai"), None)
        return parsed

    def _take(self, chunk: dict[str, Any]) -> None:
        if chunk.get("error"):
            raise dialect.error_in_stream(chunk)
        if isinstance(chunk.get("usage"), dict):
            self.usage = {name: value for name, value in chunk["usage"].items() if isinstance(value, int)}
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return
        delta = choices[0].get("delta")
        if isinstance(delta, dict):
            self._take_delta(delta)
        if isinstance(choices[0].get("finish_reason"), str):
            self.finish_reason = choices[0]["finish_reason"]

    def _take_delta(self, delta: dict[str, Any]) -> None:
        text = delta.get("content")
        if isinstance(text, str) and text:
            self._count(len(text))
            self._text.append(text)
            self._show(text)
        for position, piece in enumerate(delta.get("tool_calls") or []):
            if not isinstance(piece, dict):
                continue
            given = piece.get("index")
            index = given if isinstance(given, int) else position
            if index not in self._calls and len(self._calls) >= MAX_CALLS:
                raise dialect.coded(
                    StreamError(f"the model made more than {MAX_CALLS} tool calls at once", provider="openai"), None
                )
            call = self._calls.setdefault(index, _Call())
            function = piece.get("function") or {}
            call.id = str(piece.get("id") or call.id)
            call.name += str(function.get("name") or "")
            more = str(function.get("arguments") or "")
            self._count(len(more))
            call.arguments.append(more)

    def _count(self, chars: int) -> None:
        self._chars += chars
        if self._chars > MAX_ANSWER_CHARS:
            raise dialect.coded(StreamError("the model's answer is too long", provider="openai"), None)


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = from_json(text) if text.strip() else {}
    except ValueError as error:
        return {"arguments": {}, "invalid": f"the arguments are not JSON: {error}"}
    if not isinstance(arguments, dict):
        return {"arguments": {}, "invalid": "the arguments are no JSON object"}
    return {"arguments": arguments}
