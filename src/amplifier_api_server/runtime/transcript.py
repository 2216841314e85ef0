"""What a turn adds to a transcript, whatever orchestrator and context made it: plain JSON, every tool call with its one
result, an assistant's message last. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from amplifier_api_server.runtime.events import encoded

Messages = list[dict[str, Any]]

NO_RESULT = "Error: the tool call has no result"


def plain(message: Any) -> dict[str, Any]:
    """A message as a mapping: foreign contexts may keep objects of their own."""
    if isinstance(message, dict):
        return message
    dump = getattr(message, "model_dump", None)
    told = dump() if callable(dump) else getattr(message, "__dict__", None)
    return dict(told) if isinstance(told, Mapping) else {"role": "assistant", "content": str(message)}


def as_json(messages: Sequence[dict[str, Any]]) -> Messages:
    """A copy that is JSON through and through."""
    copied: Messages = from_json(encoded(messages))
    return copied


def conversation(messages: Sequence[Any]) -> Messages:
    """Without system messages: prompts are made anew for each request, and injections of hooks are not for keeping."""
    return [one for one in map(plain, messages) if one.get("role") not in ("system", "developer")]


def is_valid(added: Sequence[Mapping[str, Any]]) -> bool:
    """Every tool call has its one result after it, and an assistant's message is last."""
    open_calls: set[str] = set()
    for message in added:
        if message.get("role") == "tool":
            if message.get("tool_call_id") not in open_calls:
                return False
            open_calls.discard(str(message.get("tool_call_id")))
        elif open_calls:
            return False
        open_calls.update(_call_ids(message))
    return bool(added) and not open_calls and added[-1].get("role") == "assistant"


def repaired(added: Sequence[dict[str, Any]], closing: str) -> Messages:
    """`added` made valid: results right after their calls, missing ones made up, stray ones dropped, `closing` last.

    Foreign orchestrators leave such transcripts when they are cancelled between a call and its result, or when a hook's
    injection comes between the two.
    """
    results = {str(one.get("tool_call_id")): one for one in added if one.get("role") == "tool"}
    made: Messages = []
    for message in added:
        if message.get("role") == "tool":
            continue
        made.append(message)
        for call_id in _call_ids(message):
            missing = {"role": "tool", "tool_call_id": call_id, "content": NO_RESULT}
            made.append(results.pop(call_id, missing))
    if not made or made[-1].get("role") != "assistant":
        made.append({"role": "assistant", "content": closing})
    return made


def starts_with(messages: Sequence[Any], before: Sequence[Any]) -> bool:
    """Whether nothing of `before` was changed or compacted away. Cheap while a context keeps the same objects."""
    return len(messages) >= len(before) and all(
        one is two or one == two for one, two in zip(messages, before, strict=False)
    )


def _call_ids(message: Mapping[str, Any]) -> list[str]:
    return [str(call.get("id")) for call in message.get("tool_calls") or [] if isinstance(call, dict)]
