"""What a child session is made of: its parent's plan, with the agent's own settings laid over what it inherits. Pure.

Invariant: what the plan's `spawn` withholds is never inherited, whoever asks; what an agent names itself, it gets. A
recipe is JSON and, with the plan of the session at the root, enough to make the same child again anywhere.
"""

from __future__ import annotations

import copy
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from amplifier_api_server.runtime.bundles.composition import MODULE_LISTS, deep, identity, merged_modules

SELF = "self"
MAX_STEPS = 50
_SPAN = re.compile(r"[0-9a-f]{16}-([0-9a-f]{16})_")
_NO_SPAN = "0" * 16
_PROTECTED = frozenset({"api_key", "base_url", "host", "azure_endpoint", "endpoint", "priority", "default_model"})

Settings = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one generation differs from the one before. `agent` is None where the plan itself has the agent's settings."""

    name: str
    agent: Settings | None = None
    tools: Settings = field(default_factory=dict)  # exclude_tools or inherit_tools: module ids
    hooks: Settings = field(default_factory=dict)  # exclude_hooks or inherit_hooks: module ids
    orchestrator: Settings = field(default_factory=dict)
    provider: Settings = field(default_factory=dict)  # the chosen one: {provider, model, config}
    max_steps: int = MAX_STEPS

    def as_json(self) -> Settings:
        told = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in told.items() if value not in (None, {})}


def recipe_of(told: Mapping[str, Any]) -> Recipe:
    """As `Recipe.as_json` said it. Raises TypeError."""
    return Recipe(**told)


def child_plan(parent: Mapping[str, Any], recipe: Recipe) -> Settings:
    """The plan of a child of a session with plan `parent`. Raises KeyError when that has no such agent."""
    plan = {key: value for key, value in parent.items() if key not in MODULE_LISTS}
    agent: Mapping[str, Any] = {}
    if recipe.name != SELF or recipe.agent is not None:
        agent = recipe.agent if recipe.agent is not None else parent["agents"][recipe.name]
        plan["system_prompt"] = ""
        plan["agent"] = {
            "name": recipe.name,
            **{key: agent[key] for key in ("instruction", "namespaces") if key in agent},
        }
    spawn = parent.get("spawn")
    inherited = {
        "tools": _inherited_tools(parent, spawn if isinstance(spawn, Mapping) else {}, recipe.tools),
        "hooks": _left(parent.get("hooks") or [], recipe.hooks, "hooks"),
        "providers": list(parent.get("providers") or []),
    }
    for section in MODULE_LISTS:
        merged = merged_modules(inherited[section], _items(agent.get(section)))
        plan[section] = copy.deepcopy([one for one in merged if one.get("module")])
    if recipe.provider:
        plan["providers"] = with_provider(plan["providers"], recipe.provider)
    plan["session"] = _session(parent.get("session") or {}, agent.get("session"), recipe)
    own_agents, own_spawn = agent.get("agents"), agent.get("spawn")
    if isinstance(own_agents, Mapping):
        plan["agents"] = dict(own_agents)
    if isinstance(own_spawn, Mapping):
        plan["spawn"] = dict(own_spawn)
    return plan


def _inherited_tools(parent: Mapping[str, Any], spawn: Mapping[str, Any], policy: Mapping[str, Any]) -> list[Settings]:
    tools: list[Settings] = list(parent.get("tools") or [])
    wanted = spawn.get("tools")
    if isinstance(wanted, list):
        by_module = {one["module"]: one for one in tools}
        listed = [by_module.get(one) if isinstance(one, str) else one for one in wanted]
        tools = [one for one in listed if isinstance(one, dict) and one.get("module")]
    return _left(_left(tools, spawn, "tools"), policy, "tools")


def _left(items: list[Settings], policy: Mapping[str, Any], kind: str) -> list[Settings]:
    """What a policy of `exclude_KIND` or `inherit_KIND` leaves, each a list of module ids."""
    excluded, wanted = policy.get(f"exclude_{kind}"), policy.get(f"inherit_{kind}")
    if isinstance(excluded, list) and excluded:
        return [one for one in items if one.get("module") not in excluded and identity(one) not in excluded]
    if isinstance(wanted, list):
        return [one for one in items if one.get("module") in wanted or identity(one) in wanted]
    return items


def _items(given: Any) -> list[Settings]:
    """An agent's own module list."""
    items = [{"module": one} if isinstance(one, str) else one for one in given] if isinstance(given, list) else []
    return [one for one in items if isinstance(one, dict) and isinstance(one.get("module") or one.get("id"), str)]


def _session(parent: Mapping[str, Any], own: Any, recipe: Recipe) -> Settings:
    given = own if isinstance(own, Mapping) else {}
    wanted = {part: given[part] for part in ("orchestrator", "context") if given.get(part)}
    named = {part: {"module": one} if isinstance(one, str) else one for part, one in wanted.items()}
    session: Settings = copy.deepcopy(deep(parent, named))
    config = {**(session["orchestrator"].get("config") or {}), **recipe.orchestrator}
    steps = config.get("max_iterations")
    config["max_iterations"] = (
        min(steps, recipe.max_steps) if isinstance(steps, int) and steps > 0 else recipe.max_steps
    )
    session["orchestrator"]["config"] = config
    return session


def preferences_of(given: Any) -> list[Settings]:
    """Preferences as plain values: callers pass dicts, or objects with provider, model and config."""
    found: list[Settings] = []
    for one in given if isinstance(given, list | tuple) else []:
        plain = (
            one
            if isinstance(one, Mapping)
            else {key: getattr(one, key, None) for key in ("provider", "model", "config")}
        )
        provider, model, config = plain.get("provider"), plain.get("model"), plain.get("config")
        if isinstance(provider, str) and isinstance(model, str | None):
            kept = (
                {key: value for key, value in config.items() if key not in _PROTECTED}
                if isinstance(config, dict)
                else {}
            )
            found.append({"provider": provider, "model": model or "", **({"config": kept} if kept else {})})
    return found


def provider_index(providers: Iterable[Mapping[str, Any]], name: str) -> int | None:
    """Where a plan has the provider that a preference calls `anthropic`, `provider-anthropic` or by an instance's id."""
    for index, item in enumerate(providers):
        if name in (identity(item), item.get("module"), str(item.get("module")).removeprefix("provider-")):
            return index
    return None


def with_provider(providers: list[Settings], chosen: Mapping[str, Any]) -> list[Settings]:
    """`providers` with the chosen one before all others: first in the list, and of the lowest priority number."""
    index = provider_index(providers, str(chosen["provider"]))
    if index is None:
        return providers
    first = copy.deepcopy(providers[index])
    config = {**(first.get("config") or {}), **(chosen.get("config") or {}), "priority": 0}
    if chosen.get("model"):
        config["default_model"] = chosen["model"]
    first["config"] = config
    return [first, *(one for position, one in enumerate(providers) if position != index)]


def new_session_id(parent_id: str, agent: str) -> str:
    """`{parent's span}-{own span}_{agent}`, as the ecosystem makes them: spans are 16 hex digits (W3C Trace Context)."""
    match = _SPAN.match(parent_id)
    readable = re.sub(r"[^a-z0-9]+", "-", agent.lower()).strip("-")[:64] or "agent"
    return f"{match.group(1) if match else _NO_SPAN}-{secrets.token_hex(8)}_{readable}"
