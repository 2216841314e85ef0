"""Profiles, compiled: a bundle, all that it includes, and the caller's context, as one pinned plan.

A plan is JSON. It holds the whole prompt, every module's configuration and where its code is, and the agents, so that a
session opened again next month is the same session, whatever happened to its profile meanwhile. What has to wait for a
session is kept by name: mentions of files in its folder, and those of agents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json

from amplifier_api_server.runtime.bundles.agents import FoundAgent, agents_of
from amplifier_api_server.runtime.bundles.composition import MODULE_LISTS, Composed, ContextFile, Settings, identity
from amplifier_api_server.runtime.bundles.documents import Part
from amplifier_api_server.runtime.bundles.findings import INVALID, Findings
from amplifier_api_server.runtime.bundles.library import Library, Target
from amplifier_api_server.runtime.bundles.loading import Loader
from amplifier_api_server.runtime.bundles.mentions import (
    MAX_PROMPT_CHARS,
    Blocks,
    MentionResolver,
    joined,
    plain_mentions,
    read,
)
from amplifier_api_server.runtime.bundles.module_use import ModuleUses, in_plan
from amplifier_api_server.runtime.bundles.trees import Place
from amplifier_api_server.runtime.events import encoded
from amplifier_api_server.runtime.failures import BadRequest
from amplifier_api_server.runtime.modules import IN_TREE
from amplifier_api_server.runtime.protocol import MAX_PLAN_BYTES, ProfileSpec

PLAN_VERSION = 2
MAX_MODULES = 100  # of one list
MAX_CONTEXT_CHARS = 100_000
DEFAULT_MODEL = "default"
DEFAULT_PROVIDER = "provider-openai"
_SESSION = ("orchestrator", "context")
_NOT_KEPT = {"name", "instruction", "description", "session", *MODULE_LISTS}  # of an agent, beside what is taken over

Plan = dict[str, Any]


class Defaults(NamedTuple):
    """What bundles leave to their host."""

    model: str = DEFAULT_MODEL
    provider: str = DEFAULT_PROVIDER


class Compiled(NamedTuple):
    spec: ProfileSpec
    plan: Plan
    warnings: list[str]


def compile_profile(
    library: Library, name: str, context: Mapping[str, Any] | None = None, defaults: Defaults | None = None
) -> Compiled:
    """The plan of the profile `name`. Blocking: it reads files.

    Raises Missing (profile_not_found), BadRequest (profile_invalid with file and line, context_too_large).
    """
    target = library.profile(name)
    findings = Findings(lacks=library.lacks)
    loader = Loader(library, findings)
    part, composed = loader.part(target), loader.composed(target)
    compiled = _Compiler(loader, target, part, composed).plan(defaults or Defaults())
    full_name = library.name_of(target, name.rpartition(":")[2])
    plan: Plan = {"version": PLAN_VERSION, "profile": full_name} | compiled
    plan["system_prompt"] = with_context(plan["system_prompt"], context or {})
    text = encoded(plan).encode()
    if len(text) > MAX_PLAN_BYTES:
        raise BadRequest(INVALID, f"{part.at()}: compiled it has {len(text)} bytes; {MAX_PLAN_BYTES} are allowed")
    # Read back: nothing of it is shared with the documents that are kept for other sessions, whatever modules do to it.
    return Compiled(spec_of(full_name, composed), from_json(text), findings.warnings)


def spec_of(name: str, composed: Composed) -> ProfileSpec:
    return ProfileSpec(name=name, description=composed.description, version=composed.version)


class _Compiler:
    """Of one profile."""

    def __init__(self, loader: Loader, target: Target, part: Part, composed: Composed) -> None:
        self._loader = loader
        self._library = loader.library
        self._findings = loader.findings
        self._target = target
        self._part = part
        self._composed = composed
        self._uses = ModuleUses(loader.library, loader.findings)
        self._names: dict[tuple[int, Path | None], dict[str, Place]] = {}

    def plan(self, defaults: Defaults) -> Plan:
        composed = self._composed
        session = {key: self._session_module(key) for key in _SESSION}
        providers = _with_model(composed, defaults.provider, self._part.at("providers"))
        lists = {key: self._modules(key, providers if key == "providers" else None) for key in MODULE_LISTS}
        agents = agents_of(self._loader, composed)
        namespaces = _written(self._library.namespaces(self._target.collection))
        prompt, plain = self._prompt()
        return {
            "model": str(lists["providers"][0]["config"].get("default_model") or defaults.model),
            "system_prompt": prompt,
            "mentions": plain,
            "session": session,
            **lists,
            "agents": {name: self._agent(name, agent, namespaces) for name, agent in agents.items()},
            "spawn": self._spawn(),
            "namespaces": namespaces,
            "modules": self._uses.table,
            "sources": self._uses.sources,
            "isolated": self._uses.is_isolated,
        }

    def _session_module(self, key: str) -> Settings:
        item = self._composed.session.get(key)
        if not isinstance(item, Mapping) or not item.get("module"):
            message = f"session.{key} should name a module: without one this is a part of profiles, and none itself"
            raise self._part.document.wrong(INVALID, message, "session", key)
        if not self._uses.add(item, self._target.collection):
            raise BadRequest(INVALID, f"{item['_at']}: session.{key} can't be left out")
        return in_plan(item, "session")

    def _modules(self, section: str, items: list[Mapping[str, Any]] | None) -> list[Settings]:
        given = getattr(self._composed, section) if items is None else items
        return self._listed(given, section, self._part.at(section))

    def _listed(self, given: Any, section: str, named_at: str) -> list[Settings]:
        found = []
        for item in given or []:
            if not item.get("module"):
                self._findings.problem(item["_at"], f"{section}: nothing has the id {identity(item)!r:.100}")
            elif self._uses.add(item, self._target.collection):
                found.append(in_plan(item, section))
        if len(found) > MAX_MODULES:
            raise BadRequest(INVALID, f"{named_at}: {section} has more than {MAX_MODULES} modules")
        if section == "providers" and given and not found:
            raise BadRequest(INVALID, f"{named_at}: no provider is left")
        return found

    def _spawn(self) -> Settings:
        spawn = dict(self._composed.spawn)
        if isinstance(spawn.get("tools"), list):
            named = [one for one in spawn["tools"] if isinstance(one, str)]
            made = [one for one in spawn["tools"] if not isinstance(one, str)]
            spawn["tools"] = [*named, *self._listed(made, "tools", self._part.at("spawn"))]
        return spawn

    def _agent(self, name: str, agent: FoundAgent, namespaces: Mapping[str, Any]) -> Plan:
        """As the plan has it: what of it is of modules is checked, the rest is kept as it was written."""
        given = agent.definition
        kept = {key: value for key, value in given.items() if key not in _NOT_KEPT}
        made: Plan = {
            **kept,
            "name": name,
            "description": str(given.get("description") or ""),
            "instruction": _instruction_of(given),
        }
        for section in MODULE_LISTS:
            if given.get(section) is not None:
                made[section] = self._listed(given[section], section, agent.at)
        session = given.get("session")
        if isinstance(session, Mapping):
            made["session"] = {
                key: in_plan(session[key], "session")
                for key in _SESSION
                if isinstance(session.get(key), Mapping)
                and session[key].get("module")
                and self._uses.add(session[key], self._target.collection)
            }
        other = _written(self._own_names(agent.home))
        if differs := {key: place for key, place in other.items() if namespaces.get(key) != place}:
            made["namespaces"] = differs
        return made

    def _own_names(self, home: Target) -> dict[str, Place]:
        """What namespaces mean for a file there, where that is not what they mean for the whole collection."""
        collection, tree = self._library.of(home.collection), home.place.tree
        if collection is None:
            return {}
        key = (home.collection, tree.root)
        if key not in self._names:
            own = {name: collection.namespace(name, tree) for name in collection.namespaces()}
            self._names[key] = {name: place for name, place in own.items() if place is not None}
        return self._names[key]

    def _prompt(self) -> tuple[str, list[str]]:
        """The rendered prompt, and the mentions in it that only a session can resolve."""
        composed, instruction = self._composed, self._composed.instruction
        home = instruction.home if instruction is not None else None
        names = self._library.namespaces(self._target.collection)
        if instruction is not None:
            names |= self._own_names(Target(instruction.origin.collection, instruction.origin.folder))
        base = home.on_disk if home is not None and home.tree.root is not None else None
        plain: dict[str, None] = {}
        blocks = Blocks(MentionResolver(_folders(names), base), lambda mention, why: self._missed(mention, why, plain))
        for name, file in composed.context.items():
            self._add_context(blocks, name, file)
        text = instruction.text if instruction is not None else ""
        blocks.gather(text)
        prompt = joined(text, blocks.render())
        if len(prompt) > MAX_PROMPT_CHARS:
            message = f"the prompt has {len(prompt)} characters with what it mentions; {MAX_PROMPT_CHARS} are allowed"
            raise BadRequest(INVALID, f"{self._part.at()}: {message}")
        return prompt, plain_mentions(plain)

    def _add_context(self, blocks: Blocks, name: str, file: ContextFile) -> None:
        place = self._context_place(file)
        if place is None or not place.is_file():
            self._findings.warn(f"{file.origin.at}: there is no context file {file.reference!r:.200}")
            return
        try:
            blocks.add(f"@{name}" if ":" in name else name, read(place.on_disk))
        except BadRequest as error:
            left_out = f"the context file {file.reference!r:.100} is left out"
            self._findings.warn(f"{file.origin.at}: {left_out}: {error.failure.detail}")

    def _context_place(self, file: ContextFile) -> Place | None:
        namespace, colon, path = file.reference.partition(":")
        origin = file.origin
        if not colon:
            return origin.folder.below(file.reference)
        root = self._library.namespace(namespace, origin.collection, origin.folder.tree)
        return root.place.below(path) if root is not None else None

    def _missed(self, mention: str, why: str, plain: dict[str, None]) -> None:
        if ":" not in mention:
            plain[mention] = None
        else:
            self._findings.warn(f"{self._part.document.name}: {mention} is left out: {why}")


def _with_model(composed: Composed, default_provider: str, named_at: str) -> list[Mapping[str, Any]]:
    """The providers, the host's where there are none; the older format's `profile.model` is its provider's model."""
    wanted, model_at = composed.model or ("", named_at)
    prefix, slash, model = wanted.partition("/")
    providers = list(composed.providers)
    if not providers:
        named = f"provider-{prefix}"
        providers = [{"module": named if slash and named in IN_TREE else default_provider, "_at": model_at}]
    if not wanted:
        return providers
    for index, item in enumerate(providers):
        if not slash or prefix in (str(item.get("module")).removeprefix("provider-"), identity(item)):
            config = {**(item.get("config") or {}), "default_model": model if slash else wanted}
            providers[index] = {**item, "config": config}
            return providers
    raise BadRequest(INVALID, f"{model_at}: profile.model names provider {prefix!r:.100}, which the profile hasn't")


def _instruction_of(given: Mapping[str, Any]) -> str:
    text = given.get("instruction")
    return text if isinstance(text, str) else ""


def _written(names: Mapping[str, Place]) -> dict[str, dict[str, str]]:
    """Places as a plan keeps them; a tree without a hash is what comes with the runtime."""
    return {name: {"tree": place.tree.content_hash, "path": place.path} for name, place in names.items()}


def _folders(names: Mapping[str, Place]) -> dict[str, Any]:
    return {name: place.on_disk for name, place in names.items() if place.tree.root is not None}


def with_context(prompt: str, context: Mapping[str, Any]) -> str:
    """The caller's context as a part of the prompt, marked as data. Raises BadRequest (context_too_large)."""
    if not context:
        return prompt
    text = encoded(context)
    if len(text) > MAX_CONTEXT_CHARS:
        raise BadRequest(
            "context_too_large", f"context has {len(text)} characters as JSON; {MAX_CONTEXT_CHARS} are allowed"
        )
    block = f"What the caller told about this session, as data:\n<session_context>\n{text}\n</session_context>"
    return f"{prompt}\n\n{block}" if prompt else block


def default_specs(library: Library) -> list[ProfileSpec]:
    """What comes with the runtime."""
    loader = Loader(library, Findings())
    specs = []
    for stem in sorted(library.bundled.profiles()):
        name = f"{library.bundled.name}:{stem}"
        specs.append(spec_of(name, loader.composed(library.profile(name))))
    return specs
