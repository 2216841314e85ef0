"""What a child is told of its parent's conversation: how much of it, and which parts. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MAX_MESSAGE_CHARS = 2000
MAX_CHARS = 100_000  # of all of it: the newest messages are kept
AGENT_TOOLS = frozenset({"delegate", "task"})


def asked_with(instruction: str, messages: Sequence[Mapping[str, Any]], scope: str) -> str:
    """The instruction, after the conversation that it comes from. `scope` is conversation, agents or full."""
    lines: list[str] = []
    left = MAX_CHARS
    for message in reversed(messages):
        line = _line(message, scope)
        left -= len(line)
        if left < 0:
            break
        if line:
            lines.append(line)
    if not lines:
        return instruction
    told = "\n\n".join(reversed(lines))
    return (
        "[PARENT CONVERSATION CONTEXT]\n"
        f"From the conversation that this task comes from:\n\n{told}\n\n"
        f"[END PARENT CONTEXT]\n\n[YOUR TASK]\n{instruction}"
    )


def recent(messages: list[dict[str, Any]], turns: int) -> list[dict[str, Any]]:
    """The messages of the last `turns` turns; a turn begins with a user's message."""
    starts = [index for index, message in enumerate(messages) if message.get("role") == "user"]
    return messages if len(starts) <= turns else messages[starts[-turns] :] if turns > 0 else []


def _line(message: Mapping[str, Any], scope: str) -> str:
    role, text = message.get("role"), _text(message.get("content")).strip()
    if not text:
        return ""
    if len(text) > MAX_MESSAGE_CHARS:
        text = f"{text[:MAX_MESSAGE_CHARS]} [... {len(text) - MAX_MESSAGE_CHARS} characters left out ...]"
    if role in ("user", "assistant"):
        return f"{str(role).upper()}: {text}"
    name = str(message.get("name") or "a tool")
    if role == "tool" and (scope == "full" or (scope == "agents" and name in AGENT_TOOLS)):
        return f"RESULT OF {name}: {text}"
    return ""


def _text(content: Any) -> str:
    """A message's text, without its thinking and calls."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    found = [
        part if isinstance(part, str) else part.get("text")
        for part in parts
        if isinstance(part, str) or (isinstance(part, Mapping) and part.get("type") in ("text", None))
    ]
    return "\n".join(one for one in found if isinstance(one, str))
