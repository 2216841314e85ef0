"""Any list of core's messages as a conversation that every dialect takes: whole, paired, alternating. Pure.

Owns what makes a transcript valid, whoever wrote it: a model's turn follows a user's; every tool call has exactly one result,
right behind it; ids are unique and plain; nothing is empty. Refuses to shorten: that is the context module's. Invariant:
`conversation_of` never fails, and what it gives is so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from amplifier_core import (
    ImageBlock,
    Message,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
)
from pydantic_core import from_json

from amplifier_api_server.runtime.events import clean, encoded

MAX_CALL_ID_CHARS = 40  # OpenAI's bound for chat completions, the lowest of all
MAX_NAME_CHARS = 64
NO_RESULT = "(No result of this call was kept.)"
BEGINNING = "(The conversation began before this.)"
GO_ON = "(Go on.)"
EMPTY = "(empty)"

Part: TypeAlias = TextBlock | ImageBlock
Said: TypeAlias = TextBlock | ThinkingBlock | RedactedThinkingBlock


@dataclass(slots=True)
class Call:
    """A tool call and its result."""

    id: str
    name: str
    arguments: dict[str, Any]
    result: list[Part] = field(default_factory=list)


@dataclass(slots=True)
class UserTurn:
    parts: list[Part] = field(default_factory=list)


@dataclass(slots=True)
class ModelTurn:
    """What the model said, then what it called. The results come before the next turn."""

    said: list[Said] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    origin: str = ""  # the model that its thinking is of, where known

    @property
    def is_empty(self) -> bool:
        return not self.calls and not any(block.type == "text" for block in self.said)


Turn: TypeAlias = UserTurn | ModelTurn


@dataclass(slots=True)
class Conversation:
    system: str
    turns: list[Turn]

    @property
    def last_user_turn(self) -> int:
        """The index of the last thing that a user said."""
        return max((at for at, turn in enumerate(self.turns) if isinstance(turn, UserTurn)), default=0)


def conversation_of(messages: Sequence[Message]) -> Conversation:
    """Leading system messages are the system prompt; later ones are told as a user's, in `<system-reminder>`."""
    head = 0
    while head < len(messages) and messages[head].role in ("system", "developer"):
        head += 1
    system = "\n\n".join(text for message in messages[:head] if (text := text_of(parts_of(message))).strip())
    maker = _Maker()
    for message in messages[head:]:
        maker.take(message)
    return Conversation(system, maker.finished())


def text_of(parts: Iterable[Any]) -> str:
    return "".join(part.text for part in parts if part.type == "text")


def image_url(image: ImageBlock) -> str:
    """As an address: the image's own, or its bytes as one (RFC 2397)."""
    source = image.source
    if source.get("url"):
        return str(source["url"])
    return f"data:{source.get('media_type', 'image/png')};base64,{source.get('data', '')}"


def parts_of(message: Message) -> list[Part]:
    """What a message shows: text and images; other blocks as text where they hold any."""
    if isinstance(message.content, str):
        return [TextBlock(text=message.content)] if message.content.strip() else []
    return list(_parts(message.content))


def calls_of(message: Message) -> list[tuple[str, str, dict[str, Any]]]:
    """The tool calls of an assistant's message, in whichever of the ecosystem's forms it keeps them: id, name, arguments."""
    kept = (message.model_extra or {}).get("tool_calls")
    if isinstance(kept, list) and kept:
        return [_kept_call(call) for call in kept if isinstance(call, dict) and call.get("id")]
    if isinstance(message.content, str):
        return []
    return [(block.id, block.name, block.input) for block in message.content if block.type == "tool_call"]


class _Maker:
    def __init__(self) -> None:
        self._turns: list[Turn] = []
        self._open: dict[str, Call] = {}  # by the transcript's id: calls of the last model turn without a result
        self._later: list[Part] = []  # said between calls and their results; it comes behind them
        self._ids: set[str] = set()

    def take(self, message: Message) -> None:
        if message.role == "assistant":
            self._close()
            self._take_model(message)
        elif message.role == "tool":
            call = self._open.pop(message.tool_call_id or "", None)
            if call is not None:  # a result without its call is nobody's
                call.result = parts_of(message) or [TextBlock(text=EMPTY)]
        else:
            self._take_user(message)

    def finished(self) -> list[Turn]:
        self._close()
        if not self._turns or isinstance(self._turns[0], ModelTurn):
            self._turns.insert(0, UserTurn([TextBlock(text=BEGINNING)]))
        last = self._turns[-1]
        if isinstance(last, ModelTurn) and not last.calls:
            self._turns.append(UserTurn([TextBlock(text=GO_ON)]))
        return self._turns

    def _take_user(self, message: Message) -> None:
        parts = parts_of(message) if isinstance(message.content, str) else list(_parts(self._without_results(message)))
        if message.role in ("system", "developer") and parts:
            words = text_of(parts)
            if "<system-reminder" not in words:
                words = f"<system-reminder>\n{words}\n</system-reminder>"
            parts = [TextBlock(text=words)]
        if self._open:
            self._later += parts
        else:
            self._user_parts().extend(parts)

    def _without_results(self, message: Message) -> Iterator[Any]:
        """Blocks that are no results of open calls: transcripts in Anthropic's own form keep results in a user's message."""
        for block in message.content:
            if block.type == "tool_result" and (call := self._open.pop(block.tool_call_id, None)) is not None:
                call.result = [TextBlock(text=_as_text(block.output))]
            else:
                yield block

    def _user_parts(self) -> list[Part]:
        """Where the user's words go, behind those that waited for results."""
        last = self._turns[-1] if self._turns else None
        if not isinstance(last, UserTurn):
            last = UserTurn()
            self._turns.append(last)
        last.parts += self._later
        self._later = []
        return last.parts

    def _take_model(self, message: Message) -> None:
        turn = ModelTurn(list(_said(message)), origin=str((message.metadata or {}).get("model") or ""))
        for call_id, name, arguments in calls_of(message):
            call = Call(self._plain_id(call_id), _plain_name(name), arguments)
            turn.calls.append(call)
            self._open.setdefault(call_id, call)
        while not turn.calls and turn.said and turn.said[-1].type != "text":
            turn.said.pop()  # a thought that nothing came of: no dialect takes one at the end
        if turn.is_empty:
            return
        last = self._turns[-1] if self._turns else None
        if isinstance(last, ModelTurn) and not last.calls:
            thoughts = [block for block in turn.said if block.type != "text"]  # no dialect takes one behind a text
            texts = [block for block in [*last.said, *turn.said] if block.type == "text"]
            last.said = [*thoughts, *texts]
            last.calls, last.origin = turn.calls, turn.origin or last.origin
        else:
            self._turns.append(turn)

    def _close(self) -> None:
        """A model's message ends the results of the one before it, and an empty user turn is none."""
        self._open.clear()
        if self._later:
            self._user_parts()
        last = self._turns[-1] if self._turns else None
        if isinstance(last, UserTurn) and not last.parts:
            last.parts.append(TextBlock(text=EMPTY))
        if isinstance(last, ModelTurn):
            for call in last.calls:
                call.result = call.result or [TextBlock(text=NO_RESULT)]

    def _plain_id(self, given: str) -> str:
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", given)[:MAX_CALL_ID_CHARS]
        made, number = plain or "call", 1
        while made in self._ids:
            number += 1
            made = f"{plain[: MAX_CALL_ID_CHARS - 8]}_{number}"
        self._ids.add(made)
        return made


def _parts(content: Iterable[Any]) -> Iterator[Part]:
    for block in content:
        match block:
            case TextBlock() if block.text.strip():
                yield block
            case ImageBlock() if block.source.get("data") or block.source.get("url"):
                yield block
            case ToolResultBlock():
                yield TextBlock(text=_as_text(block.output))


def _said(message: Message) -> Iterator[Said]:
    if isinstance(message.content, str):
        if message.content.strip():
            yield TextBlock(text=message.content)
        return
    for block in message.content:
        if (block.type == "text" and block.text.strip()) or block.type in ("thinking", "redacted_thinking"):
            yield block


def _kept_call(call: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    function = call.get("function") if isinstance(call.get("function"), dict) else {}
    assert isinstance(function, dict)
    arguments = call.get("arguments", function.get("arguments"))
    if isinstance(arguments, str):
        arguments = _object(arguments)
    name = call.get("tool") or call.get("name") or function.get("name") or ""
    return str(call["id"]), str(name), arguments if isinstance(arguments, dict) else {}


def _object(text: str) -> Any:
    try:
        return from_json(text)
    except ValueError:
        return {}


def _plain_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:MAX_NAME_CHARS] or "unknown"


def _as_text(output: Any) -> str:
    text = output if isinstance(output, str) else encoded(output)
    return clean(text) if text.strip() else EMPTY
