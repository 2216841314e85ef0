"""One answer while it comes: blocks in their order, text shown at once, thinking kept and not shown.

Readers of the dialects write into it. Invariant: bounded in characters, calls and blocks; every tool call that comes out has
an id of its own, a name, and arguments or the words that say what is wrong with them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from amplifier_core import (
    ChatResponse,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolCall,
    ToolCallBlock,
    Usage,
)
from pydantic_core import from_json

from amplifier_api_server.runtime.dialects.errors import broken, cut_off, withheld
from amplifier_api_server.runtime.events import clean

MAX_ANSWER_CHARS = 8 * 1024 * 1024
MAX_CALLS = 128
MAX_BLOCKS = 4096
MAX_COUNT = 2**53  # of tokens: what every JSON parser keeps exactly
MAX_DELTAS = 1024  # that wait for hooks, of one chunk
_HALF_OF_A_PAIR = re.compile("[\ud800-\udbff]\\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")

Key = int | str


@dataclass(slots=True)
class Block:
    """A block while its pieces come."""

    kind: str  # "text", "thinking", "redacted_thinking", "tool_call"
    index: int
    pieces: list[str] = field(default_factory=list)
    id: str = ""  # of a call, or of a reasoning item
    name: str = ""
    secret: str | None = None  # a signature, encrypted reasoning, redacted data
    given: str = ""  # a call's arguments, where no pieces of them come
    half: str = ""  # of a surrogate pair, whose other half is in the next piece

    @property
    def text(self) -> str:
        return "".join(self.pieces) or self.given

    def add_name(self, piece: str) -> None:
        """A call's name comes whole, in pieces, or whole again with every piece of its arguments."""
        if piece != self.name and not self.pieces:
            self.name += piece


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a block, for hooks that watch."""

    block: Block
    text: str


class Answer:
    def __init__(self, show: Callable[[str], None], provider: str, *, is_watched: bool = False) -> None:
        self.provider = provider
        self._counts: dict[str, int] = {}
        self.finish_reason: str | None = None
        self.deltas: list[Delta] = []  # since somebody last took them; only where hooks watch
        self._show = show
        self._is_watched = is_watched
        self._blocks: dict[Key, Block] = {}
        self._chars = 0
        self._calls = 0

    def block(self, key: Key, kind: str) -> Block:
        """The block that the dialect calls `key`, made when it is new."""
        held = self._blocks.get(key)
        if held is not None:
            return held
        self._calls += kind == "tool_call"
        if self._calls > MAX_CALLS:
            raise broken(f"the model made more than {MAX_CALLS} tool calls at once", self.provider)
        if len(self._blocks) >= MAX_BLOCKS:
            raise broken(f"the model's answer has more than {MAX_BLOCKS} blocks", self.provider)
        held = self._blocks[key] = Block(kind, len(self._blocks))
        return held

    def add(self, key: Key, kind: str, text: Any) -> None:
        """A piece of text, thinking or arguments. What is no text is nothing."""
        if not isinstance(text, str) or not text:
            return
        self.count(len(text))
        block = self.block(key, kind)
        if block.half or _SURROGATE.search(text):
            text, block.half = _whole_pairs(block.half + text)
        if text:
            self._append(block, text)

    def complete(self, key: Key, kind: str, text: Any) -> None:
        """The whole text of a block, where a dialect says it at the end: what its pieces lacked is added to them.

        Arguments that differ from their pieces replace them; text that does stays as it was shown.
        """
        if not isinstance(text, str):
            return
        block = self.block(key, kind)
        said = block.text
        if text.startswith(said):
            self.add(key, kind, text[len(said) :])
        elif kind == "tool_call":
            self.count(len(text))
            block.pieces = [text]

    def _append(self, block: Block, text: str) -> None:
        block.pieces.append(text)
        if block.kind == "text":
            self._show(text)
        if self._is_watched and len(self.deltas) < MAX_DELTAS:
            self.deltas.append(Delta(block, text))

    def take_usage(self, told: Any, paths: Mapping[str, tuple[str, ...]]) -> None:
        """What a provider counts, by core's names for it. Later numbers replace earlier ones; a missing one takes none
        away.
        """
        found = {name: count_in(told, *path) for name, path in paths.items()}
        self._counts |= {name: count for name, count in found.items() if count is not None}

    @property
    def usage(self) -> Usage | None:
        """As core has it: `input_tokens` holds what was read from a cache, and not what was written to one."""
        if not self._counts:
            return None
        kept = {"input_tokens": 0, "output_tokens": 0} | self._counts
        if "uncached_tokens" in kept:
            kept["input_tokens"] = kept.pop("uncached_tokens") + kept.get("cache_read_tokens", 0)
        return Usage(total_tokens=kept["input_tokens"] + kept["output_tokens"], **kept)

    def count(self, chars: int) -> None:
        self._chars += chars
        if self._chars > MAX_ANSWER_CHARS:
            raise broken("the model's answer is too long", self.provider)

    def has(self, kind: str) -> bool:
        return any(block.kind == kind for block in self._blocks.values())

    @property
    def is_empty(self) -> bool:
        return not self._blocks

    @property
    def text(self) -> str:
        return "".join(block.text for block in self._blocks.values() if block.kind == "text")

    def response(self, model: str) -> ChatResponse:
        """The answer as core's. Raises LLMError where a filter, or the bound on its length, left nothing of it."""
        for block in self._blocks.values():
            if block.half:
                block.half = ""
                self._append(block, "\ufffd")
        calls = self._made_calls()
        if not calls and not self.text.strip() and self.finish_reason in ("content_filter", "length"):
            raise (withheld if self.finish_reason == "content_filter" else cut_off)(self.provider)
        content: list[Any] = []
        for block in self._blocks.values():
            match block.kind:
                case "text" if block.pieces:
                    content.append(TextBlock(text=block.text))
                case "thinking" if block.pieces or block.secret:
                    content.append(self._thinking(block))
                case "redacted_thinking":
                    content.append(RedactedThinkingBlock(data=block.secret or "", visibility="internal"))
                case "tool_call":
                    call = calls[block.index]
                    content.append(ToolCallBlock(id=call["id"], name=call["name"], input=call["arguments"]))
        return ChatResponse(
            content=content,
            tool_calls=[ToolCall(**call) for call in calls.values()] or None,
            usage=self.usage,
            finish_reason=self.finish_reason,
            metadata={"provider": self.provider, "model": model},
        )

    def _thinking(self, block: Block) -> ThinkingBlock:
        """As core keeps it: Anthropic's with a signature, OpenAI's with [encrypted_content, id]."""
        if block.id:
            state = [block.secret, block.id]
            return ThinkingBlock(thinking=block.text, content=state, visibility="internal")
        return ThinkingBlock(thinking=block.text, signature=block.secret, visibility="internal")

    def _made_calls(self) -> dict[int, dict[str, Any]]:
        """By the block's index: id (made up where missing or doubled), name, arguments, `invalid` when those are wrong."""
        made: dict[int, dict[str, Any]] = {}
        seen: set[str] = set()
        for block in self._blocks.values():
            if block.kind != "tool_call":
                continue
            call_id = block.id if block.id and block.id not in seen else f"call_{len(made)}_{len(seen)}"
            seen.add(call_id)
            made[block.index] = {"id": call_id, "name": block.name} | _arguments(block.text)
        return made


def _whole_pairs(text: str) -> tuple[str, str]:
    """Text that UTF-8 can carry, and the first half of a surrogate pair that it ends in, for the next piece to complete."""
    half = text[-1] if _HALF_OF_A_PAIR.search(text) else ""
    return clean(text[: len(text) - len(half)]), half


def count_in(told: Any, *path: str) -> int | None:
    """The number at `path` in what a provider told, if there is one. Some write 50.0."""
    for name in path:
        told = told.get(name) if isinstance(told, dict) else None
    if isinstance(told, float) and told.is_integer():
        told = int(told)
    return told if isinstance(told, int) and not isinstance(told, bool) and 0 <= told < MAX_COUNT else None


def parsed(data: bytes | str) -> Any:
    """JSON as providers send it: with lone surrogates and infinite numbers, which RFC 8259 (8.2) allows or vendors write,
    and with bytes that are not UTF-8 (WHATWG Encoding: they are replaced).

    Raises ValueError.
    """
    try:
        return from_json(data)
    except ValueError:
        try:
            return json.loads(data.decode("utf-8", "replace") if isinstance(data, bytes) else data)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = _finite(parsed(text)) if text.strip() else {}
    except ValueError as error:
        return {"arguments": {}, "invalid": f"the arguments are not JSON: {error}"}
    if not isinstance(arguments, dict):
        return {"arguments": {}, "invalid": "the arguments are no JSON object"}
    return {"arguments": arguments}


def _finite(value: Any) -> Any:
    """`value` with text that UTF-8 can carry. Raises ValueError for a number that JSON does not have."""
    match value:
        case str():
            return clean(value)
        case float() if not math.isfinite(value):
            raise ValueError(f"{value} is no number")
        case list():
            return [_finite(one) for one in value]
        case dict():
            return {clean(name): _finite(one) for name, one in value.items()}
    return value
