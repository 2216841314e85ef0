"""The agents of a session: `ns:name` is `<where ns begins>/agents/name.md`, or what a bundle defines in place.

Owns finding and reading them. Their instructions stay raw: what they mention is looked up when an agent is spawned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amplifier_api_server.runtime.bundles.composition import Agent, Composed
from amplifier_api_server.runtime.bundles.documents import MAX_AGENTS, agent_of
from amplifier_api_server.runtime.bundles.findings import INVALID
from amplifier_api_server.runtime.bundles.library import Target
from amplifier_api_server.runtime.bundles.loading import Loader
from amplifier_api_server.runtime.bundles.trees import Place

EVERYTHING = "*"  # `agents: all` of the older format


class FoundAgent:
    """`definition` as bundles write it; `home` is the place that its own names are looked for from."""

    def __init__(self, definition: Mapping[str, Any], home: Target, at: str) -> None:
        self.definition = definition
        self.home = home
        self.at = at


def agents_of(loader: Loader, composed: Composed) -> dict[str, FoundAgent]:
    """By name, those that the session may use. Missing ones are told to the findings."""
    found: dict[str, FoundAgent] = {}
    for name, agent in composed.agents.items():
        for one, stem in _expanded(loader, name, agent):
            read = _read(loader, stem, agent)
            if read is not None and len(found) < MAX_AGENTS:
                found[one] = read
    return {name: agent for name, agent in found.items() if _may_use(composed.access, name)}


def _may_use(access: str | list[str] | None, name: str) -> bool:
    if isinstance(access, list):
        return name in access or name.rpartition(":")[2] in access
    return access != "none"


def _expanded(loader: Loader, name: str, agent: Agent) -> list[tuple[str, str]]:
    collection = loader.library.of(agent.origin.collection)
    if name != EVERYTHING:
        return [(name, name)]
    return [(stem, stem) for stem in sorted(collection.agents())] if collection is not None else []


def _read(loader: Loader, name: str, agent: Agent) -> FoundAgent | None:
    """What a file says fills what the definition in place doesn't."""
    inline = agent.definition
    target = _file(loader, name, agent)
    if target is None:
        if inline:
            return FoundAgent(inline, Target(agent.origin.collection, agent.origin.folder), agent.origin.at)
        loader.findings.problem(agent.origin.at, f"there is no agent {name!r:.200}")
        return None
    document = target.place.document(INVALID)
    definition = agent_of(document, target.place, target.collection)
    filled = {**definition, **{key: value for key, value in inline.items() if value not in (None, "", [], {})}}
    return FoundAgent(filled, target, target.place.shown)


def _file(loader: Loader, name: str, agent: Agent) -> Target | None:
    namespace, colon, stem = name.partition(":")
    origin = agent.origin
    if colon:
        root = loader.library.namespace(namespace, origin.collection, origin.folder.tree)
        return _below(root.collection, root.place, stem) if root is not None else None
    collection = loader.library.of(origin.collection)
    for home in (origin.folder, collection.home if collection is not None else None, Place(origin.folder.tree)):
        found = _below(origin.collection, home, name) if home is not None else None
        if found is not None:
            return found
    return None


def _below(collection: int, root: Place, stem: str) -> Target | None:
    """In the folder for agents; from nowhere else, whatever the name says."""
    place = root.below(f"agents/{stem.removesuffix('.md')}.md")
    folder = root.below("agents")
    if place is None or folder is None or not place.path.startswith(f"{folder.path}/") or not place.is_file():
        return None
    return Target(collection, place)
