"""Tool calls of recorded messages, in the one shape that results and events have them in. Pure.

Orchestrators keep calls in forms of their own: `arguments` or `input`, `tool`, `name` or a `function` with both, in
`tool_calls` or as blocks of the content. What is none of these shows as an empty text or object: no record is unreadable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson
from pydantic import BaseModel

_RECORDED: Final = frozenset({"tool_calls", "tool_call_id", "call_id", "tool"})


class CalledTool(BaseModel):
    """A tool call as the model asked for it. What came of it is the `tool` message with the same `call_id`."""

    call_id: str
    tool: str
    input: dict[str, Any]


def has_calls(text: str) -> bool:
    """Whether a message may show something else than it is recorded as, by its JSON."""
    return "tool" in text


def shown(body: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded message as clients read it."""
    told = {name: value for name, value in body.items() if name not in _RECORDED}
    kept = body.get("tool_calls")
    if not kept and isinstance(body.get("content"), list):
        kept = [one for one in body["content"] if isinstance(one, Mapping) and one.get("type") == "tool_call"]
    calls = [_called(one) for one in kept if isinstance(one, Mapping)] if isinstance(kept, list) else []
    if calls:
        told["tool_calls"] = calls
    if body.get("role") == "tool":
        told |= {"call_id": _text(body.get("tool_call_id")), "tool": _text(told.pop("name", None))}
    return told


def _called(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    given = {**function, **call} if isinstance(function, Mapping) else call
    return {
        "call_id": _text(given.get("id")),
        "tool": _text(given.get("tool") or given.get("name")),
        "input": _object(given.get("arguments", given.get("input"))),
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _object(value: object) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return {}
    return dict(value) if isinstance(value, Mapping) else {}
