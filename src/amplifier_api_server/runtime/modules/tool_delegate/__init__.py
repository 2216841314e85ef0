"""`tool-delegate`: a task given to an agent, which works on it in a session of its own and answers once.

By the ecosystem's name and inputs, over the capabilities `session.spawn` and `session.resume`. Owns what a child is told
and what of a plan's configuration limits it. Invariant: whatever goes wrong in a child is an error of this tool, in
words that its caller's model can act on; only a cancel goes through.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from amplifier_core import ToolResult

from amplifier_api_server.runtime.modules.inputs import wrong
from amplifier_api_server.runtime.modules.tool_delegate import inheriting
from amplifier_api_server.runtime.transcript import conversation

log = logging.getLogger(__name__)

MAX_CONTEXT_TURNS = 10
DEFAULT_CONTEXT_TURNS = 5
MAX_SELF_DEPTH = 3
MAX_AGENTS_SHOWN = 200
MAX_DESCRIPTION_CHARS = 1000  # of one agent, in the tool's description, which each request carries
DEPTHS = ("none", "recent", "all")
SCOPES = ("conversation", "agents", "full")
DESCRIPTION = (
    "Give a task to an agent. It works on it in a session of its own, with its own context, and answers once: its answer "
    "is this tool's result, and the user doesn't see it unless you tell it. Delegate what needs many steps or much "
    "reading, and what an agent below is made for; do small things yourself. Say in the instruction all that the agent "
    "needs and what it should answer with. Call this tool several times in one step to let agents work side by side."
)
EVENTS = ("agent_spawned", "agent_resumed", "agent_completed", "agent_cancelled", "error")


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:
    tool = DelegateTool(coordinator, config or {})
    contribute = getattr(coordinator, "register_contributor", None)
    if contribute is not None:
        contribute("observability.events", "tool-delegate", lambda: [f"delegate:{event}" for event in EVENTS])
    await coordinator.mount("tools", tool, name=tool.name)


class DelegationError(Exception):
    """Said to the model."""


class DelegateTool:
    name = "delegate"

    def __init__(self, coordinator: Any, config: Mapping[str, Any]) -> None:
        self._coordinator = coordinator
        features, settings = _mapping(config.get("features")), _mapping(config.get("settings"))
        self._may = {
            name: bool(_mapping(features.get(name)).get("enabled", True))
            for name in ("self_delegation", "session_resume", "context_inheritance", "provider_selection")
        }
        self._max_self_depth = int(_mapping(features.get("self_delegation")).get("max_depth") or MAX_SELF_DEPTH)
        turns = _mapping(features.get("context_inheritance")).get("max_turns") or MAX_CONTEXT_TURNS
        self._max_turns = int(turns)
        told = {**config, **settings}
        self._tools = {"exclude_tools": list(settings.get("exclude_tools", ["tool-delegate", "tool-task"]))}
        self._hooks = {"exclude_hooks": list(settings.get("exclude_hooks", []))}
        self._limits = {
            "max_seconds": told.get("max_seconds") or told.get("timeout"),
            "max_steps": told.get("max_steps"),
            "max_tokens": told.get("max_tokens"),
        }

    @property
    def description(self) -> str:
        lines = [DESCRIPTION]
        if self._may["session_resume"]:
            lines.append("With session_id, an agent that answered before goes on: it knows what it did.")
        if self._may["self_delegation"]:
            lines.append("Agent 'self' is a copy of you with an empty context.")
        agents = self._agents()
        listed = [
            f"- {name}: {str(_mapping(agents[name]).get('description') or 'no description')[:MAX_DESCRIPTION_CHARS]}"
            for name in sorted(agents)[:MAX_AGENTS_SHOWN]
        ]
        return "\n\n".join([*lines, "\n".join(["Agents:", *listed]) if listed else "There are no agents here."])

    @property
    def input_schema(self) -> dict[str, Any]:
        resolver = self._capability("model_role_resolver")
        properties: dict[str, Any] = {
            "agent": {"type": "string", "description": "The agent's name as listed" + self._or_self()},
            "instruction": {"type": "string", "description": "The task, complete in itself"},
            "session_id": {"type": "string", "description": "Instead of agent: the session_id of an earlier result"},
        }
        if self._may["context_inheritance"]:
            properties["context_depth"] = {
                "type": "string",
                "enum": list(DEPTHS),
                "description": "How much of this conversation the agent is told (default: recent)",
            }
            properties["context_turns"] = {
                "type": "integer",
                "minimum": 1,
                "description": f"How many turns `recent` is (default: {DEFAULT_CONTEXT_TURNS})",
            }
            properties["context_scope"] = {
                "type": "string",
                "enum": list(SCOPES),
                "description": "What of it: the words (default), results of agents too, or all tools' results",
            }
        if self._may["provider_selection"]:
            properties["provider_preferences"] = PREFERENCES
        if resolver is not None:
            properties["model_role"] = {"type": "string", "description": "The kind of model that the task needs"}
            if roles := [one for one in getattr(resolver, "known_roles", None) or () if isinstance(one, str)]:
                properties["model_role"]["enum"] = roles
        return {"type": "object", "properties": properties, "required": ["instruction"]}

    async def execute(self, input: dict[str, Any]) -> ToolResult:  # noqa: A002 - the protocol's name
        if (found := wrong(input, self.input_schema)) is not None:
            return await self._refused({}, found)
        agent, session_id = (input.get("agent") or "").strip(), (input.get("session_id") or "").strip()
        told = {"agent": agent or None, "session_id": session_id or None}
        try:
            instruction = input["instruction"].strip()
            if not instruction:
                raise DelegationError("instruction is empty: say what the agent should do")
            if session_id:
                result = await self._resume(session_id, instruction)
            else:
                result = await self._spawn(agent, instruction, input)
        except asyncio.CancelledError:
            await self._emit("agent_cancelled", told)
            raise
        except DelegationError as error:
            return await self._refused(told, str(error))
        except Exception as error:  # noqa: BLE001 - a child is anybody's code; its error is the model's to read
            return await self._refused(told, str(error) or type(error).__name__)
        await self._emit("agent_completed", {**told, "sub_session_id": result["session_id"], "success": True})
        return ToolResult(
            success=True,
            output={
                "response": result["output"],
                "session_id": result["session_id"],
                "agent": str(result.get("agent") or agent),
                "turn_count": result.get("turn_count", 1),
                "status": result.get("status", "success"),
                "metadata": result.get("metadata") or {},
            },
        )

    async def _resume(self, session_id: str, instruction: str) -> dict[str, Any]:
        resume = self._capability("session.resume")
        if not self._may["session_resume"] or resume is None:
            raise DelegationError("agents can't be resumed in this session: delegate anew, with agent")
        await self._emit("agent_resumed", {"session_id": session_id})
        result: dict[str, Any] = await resume(sub_session_id=session_id, instruction=instruction, limits=self._limits)
        return result

    async def _spawn(self, agent: str, instruction: str, given: Mapping[str, Any]) -> dict[str, Any]:
        spawn = self._capability("session.spawn")
        if spawn is None:
            raise DelegationError("there is no session here that an agent could work for")
        self_depth = self._self_depth(agent)
        preferences = await self._preferences(given)
        asked = await self._asked(instruction, given)
        await self._emit("agent_spawned", {"agent": agent})
        session = self._coordinator.session
        orchestrator = _mapping(_mapping(_mapping(session.config.get("session")).get("orchestrator")).get("config"))
        result: dict[str, Any] = await spawn(
            agent_name=agent,
            instruction=asked,
            parent_session=session,
            agent_configs=self._agents(),
            tool_inheritance=self._tools,
            hook_inheritance=self._hooks,
            orchestrator_config=dict(orchestrator),
            provider_preferences=preferences,
            self_delegation_depth=self_depth,
            session_metadata={"agent_name": agent},
            limits=self._limits,
        )
        return result

    def _self_depth(self, agent: str) -> int:
        """How many copies in a row the child is. Raises DelegationError for an agent that there isn't."""
        agents = self._agents()
        if agent in agents:
            return 0
        if agent == "self" and self._may["self_delegation"]:
            depth = int(self._capability("self_delegation_depth") or 0)
            if depth >= self._max_self_depth:
                raise DelegationError(f"'self' may delegate to 'self' {depth} deep: do the work here, or name an agent")
            return depth + 1
        known = ", ".join(sorted(agents)) or "none"
        if not agent:
            raise DelegationError(f"agent is missing: name one of the agents ({known}), or give a session_id")
        raise DelegationError(f"there is no agent {agent!r:.100}; there are: {known:.2000}{self._or_self()}")

    async def _preferences(self, given: Mapping[str, Any]) -> Any:
        """What the model asked for; an agent's own are the host's to look up."""
        preferences, role = given.get("provider_preferences"), given.get("model_role")
        if preferences and self._may["provider_selection"]:
            return preferences
        resolver = self._capability("model_role_resolver")
        if not role or resolver is None:
            return None
        return await resolver.resolve(role)

    async def _asked(self, instruction: str, given: Mapping[str, Any]) -> str:
        depth, scope = given.get("context_depth") or "recent", given.get("context_scope") or "conversation"
        if not self._may["context_inheritance"] or depth == "none":
            return instruction
        turns = given.get("context_turns") or DEFAULT_CONTEXT_TURNS
        messages = conversation(await self._coordinator.get("context").get_messages())
        if depth == "recent":
            messages = inheriting.recent(messages, min(turns, self._max_turns))
        return inheriting.asked_with(instruction, messages, scope)

    def _agents(self) -> dict[str, Any]:
        return _mapping(_mapping(getattr(self._coordinator, "config", None)).get("agents"))

    def _or_self(self) -> str:
        return ", or 'self'" if self._may["self_delegation"] else ""

    def _capability(self, name: str) -> Any:
        return self._coordinator.get_capability(name)

    async def _emit(self, event: str, data: dict[str, Any]) -> None:
        hooks = getattr(self._coordinator, "hooks", None)
        if hooks is not None:
            parent = self._coordinator.session_id
            await hooks.emit(f"delegate:{event}", {"parent_session_id": parent, **data})

    async def _refused(self, told: dict[str, Any], message: str) -> ToolResult:
        await self._emit("error", {**told, "error": message})
        return ToolResult(success=False, error={"message": message}, output=f"Error: {message}")


PREFERENCES: dict[str, Any] = {
    "type": "array",
    "description": "Providers and models to try in this order; a model may be a pattern such as 'claude-haiku-*'",
    "items": {
        "type": "object",
        "properties": {"provider": {"type": "string"}, "model": {"type": "string"}},
        "required": ["provider", "model"],
    },
}


def _mapping(given: Any) -> dict[str, Any]:
    return dict(given) if isinstance(given, Mapping) else {}
