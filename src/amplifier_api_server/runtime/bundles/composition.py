"""How one bundle lies over another. Pure: values are JSON, nothing given is changed.

Mappings merge key by key, all the way down; lists are concatenated without duplicates; module lists go by identity, an
item that is there already keeping its place; of anything else, what lies above. Invariant: composing with nothing, or
with itself, changes nothing; and where both sides agree on what is a mapping and what a list, three can be composed
from either end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from amplifier_api_server.runtime.bundles.trees import Place

MODULE_LISTS = ("providers", "tools", "hooks")

Settings = dict[str, Any]


class Origin(NamedTuple):
    """Where something was written: what its names mean there, and how errors name the line."""

    collection: int  # its index in the library; what isn't in a collection is -1
    folder: Place
    at: str  # file:line


class ContextFile(NamedTuple):
    """A file that a bundle adds to the prompt: `reference` is `ns:path`, or a path from the bundle's folder."""

    reference: str
    origin: Origin


class Agent(NamedTuple):
    """An agent by its name: defined in place, or (`definition` empty) in a file of its namespace."""

    definition: Mapping[str, Any]
    origin: Origin


class Instruction(NamedTuple):
    text: str
    origin: Origin
    home: Place | None  # where mentions without a namespace are looked for at once; None: in the session's folder


@dataclass(frozen=True, slots=True)
class Composed:
    """A bundle, or several that lie over each other. Module items carry where they come from under `_` keys."""

    name: str = ""
    version: str | None = None
    description: str = ""
    instruction: Instruction | None = None
    session: Mapping[str, Any] = field(default_factory=dict)
    spawn: Mapping[str, Any] = field(default_factory=dict)
    providers: Sequence[Mapping[str, Any]] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    hooks: Sequence[Mapping[str, Any]] = ()
    agents: Mapping[str, Agent] = field(default_factory=dict)
    access: str | list[str] | None = None  # which agents a session may give work to: "all", "none", or their names
    context: Mapping[str, ContextFile] = field(default_factory=dict)
    is_partial: bool = False  # it takes something from a collection that isn't here, as its author trusts
    model: tuple[str, str] | None = None  # of the older format: provider/model, and where it says so


def compose(below: Composed, above: Composed) -> Composed:
    """`above` laid over `below`."""
    return Composed(
        name=above.name or below.name,
        version=above.version if above.version is not None else below.version,
        description=above.description or below.description,
        instruction=above.instruction or below.instruction,
        session=_session(below.session, above.session),
        spawn=deep(below.spawn, above.spawn),
        providers=merged_modules(below.providers, above.providers),
        tools=merged_modules(below.tools, above.tools),
        hooks=merged_modules(below.hooks, above.hooks),
        agents={**below.agents, **above.agents},
        access=above.access if above.access is not None else below.access,
        context={**below.context, **above.context},
        is_partial=below.is_partial or above.is_partial,
        model=above.model or below.model,
    )


def deep(below: Any, above: Any) -> Any:
    """`above` over `below`, of any values."""
    if isinstance(below, Mapping) and isinstance(above, Mapping):
        return {**below, **{key: deep(below[key], value) if key in below else value for key, value in above.items()}}
    if isinstance(below, list) and isinstance(above, list):
        return without_duplicates([*below, *above])
    return above


def without_duplicates(values: Iterable[Any]) -> list[Any]:
    """Each value where it stands first. True is not 1, and a mapping is the same in any order of its keys."""
    found: dict[str, Any] = {}
    for value in values:
        found.setdefault(json.dumps(value, sort_keys=True), value)
    return list(found.values())


def merged_modules(below: Sequence[Mapping[str, Any]], above: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """An item that `below` has is merged in its place, another one is added at the end."""
    result: dict[str, Mapping[str, Any]] = {}
    for item in (*below, *above):
        held = result.get(identity(item))
        result[identity(item)] = item if held is None else _module(held, item)
    return list(result.values())


def identity(item: Mapping[str, Any]) -> str:
    """What makes two module items the same one."""
    return str(item.get("id") or item.get("instance_id") or item.get("module"))


def without(composed: Composed, exclude: Any) -> Composed:
    """`composed` less what the older format's `exclude` names: `{section: "all" | [ids]}`, or ids for all sections."""
    if not exclude:
        return composed
    if not isinstance(exclude, Mapping):
        exclude = dict.fromkeys((*MODULE_LISTS, "agents"), exclude)
    changes: dict[str, Any] = {}
    for section, names in exclude.items():
        everything = names == "all" or names is True
        if section in MODULE_LISTS:
            kept = [] if everything else [item for item in getattr(composed, section) if not _is_named(item, names)]
            changes[section] = kept
        elif section == "agents":
            changes[section] = {} if everything else {k: v for k, v in composed.agents.items() if k not in names}
        elif section in ("session", "spawn", "context"):
            held = getattr(composed, section)
            changes[section] = {} if everything else {k: v for k, v in held.items() if k not in names}
    return replace(composed, **changes)


def _is_named(item: Mapping[str, Any], names: Sequence[str]) -> bool:
    return identity(item) in names or item.get("module") in names


def _module(below: Mapping[str, Any], above: Mapping[str, Any]) -> Mapping[str, Any]:
    """One module's item over another's. Another module without a source does not take the first one's."""
    if above.get("module") not in (None, below.get("module")):
        below = {key: value for key, value in below.items() if key != "_source"}
    merged: Settings = deep(below, above)
    if "_source" in above:
        merged["_source"] = above["_source"]
    return merged


def _session(below: Mapping[str, Any], above: Mapping[str, Any]) -> Settings:
    result = dict(below)
    for key, value in above.items():
        held = result.get(key)
        both = isinstance(held, Mapping) and isinstance(value, Mapping)
        result[key] = _module(held, value) if both else deep(held, value)  # type: ignore[arg-type]
    return result
