"""`tool-todo`: the session's todo list, at `coordinator.todo_state`, where the ecosystem's hooks look and checkpoints
take it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from amplifier_core import ToolResult

MAX_ITEMS = 200
MAX_CONTENT_CHARS = 1000
STATUSES = ("pending", "in_progress", "completed")


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:  # noqa: ARG001 - the caller's signature
    await coordinator.mount("tools", TodoTool(coordinator), name=TodoTool.name)


class TodoTool:
    name = "todo"
    description = (
        "Keep a todo list for the work at hand. `create` replaces the whole list, `update` replaces it too and is for "
        "changes of status, `list` reads it. Each item has content, an activeForm in the present continuous, and a "
        "status."
    )
    input_schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {
            "action": {"type": "string", "enum": ["create", "update", "list"]},
            "todos": {
                "type": "array",
                "maxItems": MAX_ITEMS,
                "items": {
                    "type": "object",
                    "properties": {
                        "content": {"type": "string"},
                        "activeForm": {"type": "string"},
                        "status": {"type": "string", "enum": list(STATUSES)},
                    },
                    "required": ["content", "status"],
                },
            },
        },
        "required": ["action"],
    }

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    async def execute(self, input: dict[str, Any]) -> ToolResult:  # noqa: A002 - the protocol's name
        action = input.get("action")
        if action in ("create", "update"):
            todos = input.get("todos")
            if (wrong := _wrong(todos)) is not None:
                return ToolResult(success=False, error={"message": wrong})
            self._coordinator.todo_state = todos
        elif action != "list":
            return ToolResult(
                success=False, error={"message": f"action is {action!r}; it should be create, update or list"}
            )
        held = list(getattr(self._coordinator, "todo_state", None) or [])
        counts = {status: sum(item.get("status") == status for item in held) for status in STATUSES}
        return ToolResult(output={"status": "ok", "count": len(held), **counts, "todos": held})


def _wrong(todos: Any) -> str | None:
    """What is wrong with a list, or None."""
    if not isinstance(todos, list) or len(todos) > MAX_ITEMS:
        return f"todos should be a list of at most {MAX_ITEMS} items"
    for number, item in enumerate(todos, 1):
        if not isinstance(item, dict) or not isinstance(item.get("content"), str):
            return f"todos: item {number} should be an object with a text `content`"
        if item.get("status") not in STATUSES:
            return f"todos: item {number} has status {item.get('status')!r}; it should be one of {', '.join(STATUSES)}"
        if len(item["content"]) > MAX_CONTENT_CHARS or len(str(item.get("activeForm", ""))) > MAX_CONTENT_CHARS:
            return f"todos: item {number} is longer than {MAX_CONTENT_CHARS} characters"
        if unknown := set(item) - {"content", "activeForm", "status"}:
            return f"todos: item {number} has unknown fields {', '.join(sorted(map(str, unknown)))}"
    return None
