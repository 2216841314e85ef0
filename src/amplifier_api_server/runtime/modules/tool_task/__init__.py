"""`tool-task`: the older name of `tool-delegate`, with the inputs and the configuration of that time."""

from __future__ import annotations

from typing import Any

from amplifier_api_server.runtime.modules.tool_delegate import PREFERENCES, DelegateTool

_DEPTHS = {"inherit_context": "context_depth", "inherit_context_turns": "context_turns"}


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:
    tool = TaskTool(coordinator, config or {})
    await coordinator.mount("tools", tool, name=tool.name)


class TaskTool(DelegateTool):
    name = "task"

    def __init__(self, coordinator: Any, config: dict[str, Any]) -> None:
        super().__init__(coordinator, {"features": {"self_delegation": {"enabled": False}}, **config})
        for kind, policy in (("tools", self._tools), ("hooks", self._hooks)):
            for key in (f"exclude_{kind}", f"inherit_{kind}"):
                if isinstance(config.get(key), list):
                    policy.clear()
                    policy[key] = list(config[key])

    @property
    def input_schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {
                "agent": {"type": "string", "description": "The agent's name as listed"},
                "instruction": {"type": "string", "description": "The task, complete in itself"},
                "session_id": {
                    "type": "string",
                    "description": "Instead of agent: the session_id of an earlier result",
                },
                "inherit_context": {
                    "type": "string",
                    "enum": ["none", "recent", "all"],
                    "description": "How much of this conversation the agent is told (default: none)",
                },
                "inherit_context_turns": {"type": "integer", "minimum": 1, "description": "How many turns `recent` is"},
                "provider_preferences": PREFERENCES,
            },
            "required": ["instruction"],
        }

    async def execute(self, input: dict[str, Any]) -> Any:  # noqa: A002 - the protocol's name
        given = {_DEPTHS.get(name, name): value for name, value in input.items()}
        return await super().execute({"context_depth": "none", **given})
