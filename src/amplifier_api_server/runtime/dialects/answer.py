"""One answer while it comes: blocks in their order, text shown at once, thinking kept and not shown.

Readers of the dialects write into it. Invariant: bounded in characters, calls and blocks; every tool call that comes out has
an id of its own, a name, and arguments or the words that say what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Callable
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

from amplifier_api_server.runtime.dialects.errors import broken, withheld

MAX_ANSWER_CHARS = 8 * 1024 * 1024
MAX_CALLS = 128
MAX_BLOCKS = 4096
MAX_DELTAS = 1024  # that wait for hooks, of one chunk

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

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a block, for hooks that watch."""

    block: Block
    text: str


class Answer:
    def __init__(self, show: Callable[[str], None], provider: str, *, is_watched: bool = False) -> None:
        self.provider = provider
        self.usage: Usage | None = None
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
        block.pieces.append(text)
        if block.kind == "text":
            self._show(text)
        if self._is_watched and len(self.deltas) < MAX_DELTAS:
            self.deltas.append(Delta(block, text))

    def complete(self, key: Key, kind: str, text: Any) -> None:
        """The whole text of a block, where a dialect says it at the end: taken if no piece of it came before."""
        if not self.block(key, kind).pieces:
            self.add(key, kind, text)

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
        """The answer as core's. Raises ContentFilterError where the filter left nothing of it."""
        calls = self._made_calls()
        if self.finish_reason == "content_filter" and not calls and not self.text:
            raise withheld(self.provider)
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


def usage_of(input_tokens: int, output_tokens: int, **more: int | None) -> Usage:
    """Core's usage. `input_tokens` holds what was read from a cache, and not what was written to one."""
    kept = {name: value for name, value in more.items() if value is not None}
    return Usage(
        input_tokens=input_tokens, output_tokens=output_tokens, total_tokens=input_tokens + output_tokens, **kept
    )


def count_in(told: Any, *path: str) -> int | None:
    """The number at `path` in what a provider told, if there is one."""
    for name in path:
        told = told.get(name) if isinstance(told, dict) else None
    return told if isinstance(told, int) and not isinstance(told, bool) and told >= 0 else None


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = from_json(text) if text.strip() else {}
    except ValueError as error:
        return {"arguments": {}, "invalid": f"the arguments are not JSON: {error}"}
    if not isinstance(arguments, dict):
        return {"arguments": {}, "invalid": "the arguments are no JSON object"}
    return {"arguments": arguments}
