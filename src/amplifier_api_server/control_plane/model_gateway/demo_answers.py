r"""What the demo says. Pure: the same messages get the same reply.

Owns the two lines that it obeys in the last user message, and its way of counting tokens:

* ``use TOOL {json}`` calls that tool, if it is offered; when the result is there, says it in words. Several lines are
several calls at once.
* ``stream N`` or ``stream N at R/s`` says N tokens, R a second.

Anything else gets one short sentence about the prompt. What hooks remind a model of, in a message of its own
(`<system-reminder>`), is no prompt.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

_USE = re.compile(r"^[ \t]*use[ \t]+([A-Za-z0-9_.:-]{1,128})[ \t]*(?=[{]|$)", re.MULTILINE)
_STREAM = re.compile(
    r"^[ \t]*stream[ \t]+(\d{1,7})(?:[ \t]+at[ \t]+(\d{1,6}(?:\.\d{1,6})?)[ \t]*/[ \t]*s)?[ \t]*$", re.MULTILINE
)
_TOKEN = re.compile(
    r"\s?\w{1,12}|\s?[^\w\s]|\s"
)  # a piece of a word, a sign, or a space, each with the space before it
_MAX_STREAM_TOKENS = 1_000_000
_MAX_CALLS = 16
_MAX_RESULT_CHARS = 16_000
_SHOWN_PROMPT_CHARS = 80
_TOKENS_A_MESSAGE = 3
_THOUGHT = "The demo does not think. These words stand where a model's thoughts would."
_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True, slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str

    @property
    def token_count(self) -> int:
        return 1 + len(tokens_of(self.arguments))

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class Reply:
    """`thoughts`, then `tokens`, one delta each, then `calls`. From `paced_from` on, `tokens_a_second`; None: as fast as
    it goes.
    """

    tokens: list[str]
    calls: list[ToolCall]
    finish_reason: str
    tokens_a_second: float | None = None
    paced_from: int = 0
    thoughts: tuple[str, ...] = ()

    @property
    def token_count(self) -> int:
        return len(self.thoughts) + len(self.tokens) + sum(call.token_count for call in self.calls)


def tokens_of(text: str) -> list[str]:
    """The text in pieces; joined they are the text."""
    return _TOKEN.findall(text)


def token_count(value: Any) -> int:
    """Of a message or a tool's description: its strings', and a few for its frame."""
    return _TOKENS_A_MESSAGE + sum(len(tokens_of(text)) for text in _strings(value))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def reply_to(
    messages: list[dict[str, Any]], offered: set[str], max_tokens: int | None, *, thinks: bool = False
) -> Reply:
    """The reply to a conversation in chat completions' words, at most `max_tokens` long, thoughts not counted."""
    thoughts = tuple(tokens_of(_THOUGHT)) if thinks else ()
    messages = [one for one in messages if not _is_reminder(one)] or messages
    prompt = next((_text(one) for one in reversed(messages) if one.get("role") == "user"), "")
    results = _results(messages)
    said = results
    calls: list[ToolCall] = []
    if not results:
        for index, (name, arguments) in enumerate(_uses(prompt)):
            if arguments is None:
                said += f"The demo can't call {name}: what follows it is not a JSON object. "
            elif name not in offered:
                said += f"The demo can't call {name}: no such tool is offered. "
            else:
                seed = f"{len(messages)}:{index}:{name}:{arguments}"
                calls.append(ToolCall("call_" + hashlib.sha256(seed.encode()).hexdigest()[:24], name, arguments))
    tokens, rate = tokens_of(said.rstrip()), None
    paced_from = len(tokens)
    stream = None if calls else _STREAM.search(prompt)
    if stream:
        count = min(int(stream[1]), _MAX_STREAM_TOKENS)
        tokens += [f"{_WORDS[i % len(_WORDS)]} " for i in range(count)]
        rate = float(stream[2]) or None if stream[2] else None
    elif not tokens and not calls:
        tokens = tokens_of(_about(prompt))
    if max_tokens is not None and len(tokens) >= max_tokens and (len(tokens) > max_tokens or calls):
        return Reply(tokens[:max_tokens], [], "length", rate, paced_from, thoughts)
    return Reply(tokens, calls, "tool_calls" if calls else "stop", rate, paced_from, thoughts)


def _about(prompt: str) -> str:
    shown = " ".join(prompt.split())
    shown = shown if len(shown) <= _SHOWN_PROMPT_CHARS else shown[:_SHOWN_PROMPT_CHARS].rstrip() + "…"
    return f"This is the demo model, no real one: you said “{shown}” ({len(prompt)} characters)."


def _text(message: dict[str, Any]) -> str:
    """A message's text; of parts, those that are text."""
    content = message.get("content")
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _is_reminder(message: dict[str, Any]) -> bool:
    text = _text(message).strip() if message.get("role") == "user" else ""
    return text.startswith("<system-reminder") and text.endswith("</system-reminder>")


def _uses(prompt: str) -> Iterator[tuple[str, str | None]]:
    """The tools that a prompt says to use, with their arguments as JSON; None where those are no JSON object."""
    for match in list(_USE.finditer(prompt))[:_MAX_CALLS]:
        line = prompt[match.end() :].partition("\n")[0].strip()
        try:
            arguments = orjson.loads(line) if line else {}
        except orjson.JSONDecodeError:
            yield match[1], None
            continue
        yield match[1], orjson.dumps(arguments).decode() if isinstance(arguments, dict) else None


def _results(messages: list[dict[str, Any]]) -> str:
    """The results at the conversation's end, in words; empty when it does not end in results."""
    names: dict[str, str] = {}
    said: list[str] = []
    for message in messages:
        if message.get("role") == "tool":
            name = names.get(str(message.get("tool_call_id")), "tool")
            text = _text(message)
            shown = text if len(text) <= _MAX_RESULT_CHARS else text[:_MAX_RESULT_CHARS] + "… (cut)"
            said.append(f"The tool {name} answered: {shown}")
            continue
        said = []
        for call in message.get("tool_calls") or ():
            names[str(call.get("id"))] = str((call.get("function") or {}).get("name"))
    return "\n".join(said) + " " if said else ""
