"""Profiles, compiled: `collection:profile`, all that it extends, and the caller's context, as one pinned mount plan.

A plan is JSON. It holds the whole prompt and every module's configuration, so that a session opened again next month is
the same session, whatever happened to its profile meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from amplifier_api_server.runtime.events import encoded
from amplifier_api_server.runtime.failures import BadRequest
from amplifier_api_server.runtime.frontmatter import Document
from amplifier_api_server.runtime.library import BUNDLED_NAME, Collection, Library
from amplifier_api_server.runtime.mentions import with_mentions
from amplifier_api_server.runtime.merging import MODULE_LISTS, identity, merged, without
from amplifier_api_server.runtime.modules import IN_TREE
from amplifier_api_server.runtime.protocol import ProfileSpec

PLAN_VERSION = 1
MAX_EXTENDS = 16
MAX_MODULES = 100
MAX_CONTEXT_CHARS = 100_000
INVALID = "profile_invalid"
_MODULE_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")
_SECTIONS = ("session", *MODULE_LISTS, "agents")

Plan = dict[str, Any]


def spec_of(name: str, document: Document) -> ProfileSpec:
    head = head_of(document)
    version = head.get("version")
    return ProfileSpec(
        name=name,
        description=str(head.get("description") or "")[:1000],
        version=None if version is None else str(version)[:64],
    )


def compile_plan(library: Library, name: str, context: Mapping[str, Any], default_model: str) -> Plan:
    """The plan of `name`. Raises Missing (profile_not_found), BadRequest (profile_invalid) with file and line."""
    settings = _resolved(library, name, ())
    document: Document = settings.pop("_document")
    home: Collection = settings.pop("_home")
    _apply_model(settings, document)
    session = _session(settings, document)
    lists = {section: _modules(settings, section, document, library) for section in MODULE_LISTS}
    for key in ("orchestrator", "context"):
        _require_known(session[key]["module"], document, library, "session", key)
    if not lists["providers"]:
        raise document.wrong(INVALID, "the profile has no provider", "providers")
    instruction = with_mentions(settings.pop("_instruction", ""), home.root, library.roots())
    return {
        "version": PLAN_VERSION,
        "profile": f"{home.name}:{name.rpartition(':')[2]}",
        "model": _model(lists["providers"], default_model),
        "system_prompt": _with_context(instruction, context),
        "session": session,
        **lists,
        "agents": _agents(settings.get("agents"), library, home, document),
    }


def check_plan(plan: Mapping[str, Any]) -> Plan:
    """A plan that comes back from the control plane, as the one that was given. Raises BadRequest (plan_invalid)."""
    session = plan.get("session")
    whole = (
        plan.get("version") == PLAN_VERSION
        and isinstance(session, Mapping)
        and all(
            isinstance(session.get(key), Mapping) and session[key].get("module") for key in ("orchestrator", "context")
        )
        and all(isinstance(plan.get(section), list) for section in MODULE_LISTS)
        and all(isinstance(plan.get(key), str) for key in ("profile", "model", "system_prompt"))
    )
    if not whole:
        raise BadRequest("plan_invalid", f"this is no plan of version {PLAN_VERSION}")
    return dict(plan)


def head_of(document: Document) -> Mapping[str, Any]:
    """The `profile:` mapping of a file. Raises BadRequest."""
    head = document.data.get("profile")
    if not isinstance(head, Mapping):
        raise document.wrong(INVALID, "the frontmatter should have a mapping `profile`", "profile")
    return head


def _resolved(library: Library, name: str, chain: tuple[str, ...]) -> dict[str, Any]:
    """A profile's settings over those that it extends. Document, home and instruction go along under `_` keys."""
    if name in chain:
        raise BadRequest(INVALID, f"profiles extend each other in a circle: {' -> '.join((*chain, name))}")
    if len(chain) >= MAX_EXTENDS:
        raise BadRequest(INVALID, f"profiles extend each other deeper than {MAX_EXTENDS}: {' -> '.join(chain)}")
    home, document = library.document(name)
    head = head_of(document)
    below: dict[str, Any] = {}
    for parent in _parents(head, document):
        full = parent if ":" in parent else f"{home.name}:{parent}"
        below = merged(below, _resolved(library, full, (*chain, name)))
    own = {section: document.data[section] for section in _SECTIONS if document.data.get(section) is not None}
    _check_shapes(own, document)
    settings = merged(without(below, _exclude(document)), own)
    if head.get("model") is not None:
        settings["_model"] = head["model"]
    return settings | {
        "_instruction": document.body or below.get("_instruction", ""),
        "_document": document,
        "_home": home,
    }


def _parents(head: Mapping[str, Any], document: Document) -> list[str]:
    extends = head.get("extends")
    parents = extends if isinstance(extends, list) else [] if extends is None else [extends]
    if not all(isinstance(parent, str) and parent for parent in parents):
        raise document.wrong(INVALID, "extends should be a profile's name, or a list of names", "profile", "extends")
    return parents


def _exclude(document: Document) -> Any:
    exclude = document.data.get("exclude") or {}
    names = exclude.values() if isinstance(exclude, Mapping) else [exclude]
    for value in names:
        if value not in ("all", True) and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            raise document.wrong(
                INVALID, "exclude should be {section: all or a list of ids}, or a list of ids", "exclude"
            )
    return exclude


def _check_shapes(own: Mapping[str, Any], document: Document) -> None:
    """What merging relies on."""
    for section in MODULE_LISTS:
        items = own.get(section, [])
        if not isinstance(items, list):
            raise document.wrong(INVALID, f"{section} should be a list", section)
        for index, item in enumerate(items):
            if isinstance(item, str):
                items[index] = item = {"module": item}  # noqa: PLW2901 - a bare id is short for this
            if not isinstance(item, dict) or not _MODULE_ID.fullmatch(str(item.get("module"))):
                raise document.wrong(
                    INVALID, f"{section}: item {index + 1} should be {{module: id, config: {{...}}}}", section, index
                )
            if not isinstance(item.get("config") or {}, dict):
                raise document.wrong(
                    INVALID, f"{section}: {item['module']}: config should be a mapping", section, index, "config"
                )
    session = own.get("session", {})
    if not isinstance(session, dict):
        raise document.wrong(INVALID, "session should be a mapping", "session")
    for key in ("orchestrator", "context"):
        if isinstance(session.get(key), str):
            session[key] = {"module": session[key]}
        if session.get(key) is not None and not isinstance(session[key], dict):
            raise document.wrong(INVALID, f"session.{key} should be {{module: id, config: {{...}}}}", "session", key)


def _apply_model(settings: dict[str, Any], document: Document) -> None:
    """`profile.model`, "provider/model", is its provider's default_model."""
    wanted = settings.pop("_model", None)
    if wanted is None:
        return
    if not isinstance(wanted, str) or not wanted:
        raise document.wrong(INVALID, "profile.model should be provider/model", "profile", "model")
    provider, slash, model = wanted.partition("/")
    providers = settings.get("providers") or []
    for item in providers:
        if not slash or provider in (item["module"].removeprefix("provider-"), identity(item)):
            item["config"] = {**(item.get("config") or {}), "default_model": model if slash else wanted}
            return
    raise document.wrong(
        INVALID, f"profile.model names provider {provider!r}, which the profile hasn't", "profile", "model"
    )


def _session(settings: Mapping[str, Any], document: Document) -> dict[str, Any]:
    given = settings.get("session") or {}
    found: dict[str, Any] = {}
    for key in ("orchestrator", "context"):
        spec = given.get(key)
        if not isinstance(spec, Mapping) or not _MODULE_ID.fullmatch(str(spec.get("module"))):
            raise document.wrong(INVALID, f"session.{key} should name a module", "session", key)
        found[key] = {"module": spec["module"], "config": spec.get("config") or {}}
    return found


def _modules(settings: Mapping[str, Any], section: str, document: Document, library: Library) -> list[dict[str, Any]]:
    """The list as the plan has it. A `source` is dropped: what is installed is what runs."""
    found: list[dict[str, Any]] = []
    for index, item in enumerate(settings.get(section) or []):
        _require_known(item["module"], document, library, section, index)
        one = {"module": item["module"], "config": item.get("config") or {}}
        if section == "providers" and item.get("instance_id"):
            one["instance_id"] = str(item["instance_id"])
        found.append(one)
    if len(found) > MAX_MODULES:
        raise document.wrong(INVALID, f"{section} has more than {MAX_MODULES} modules", section)
    return found


def _require_known(module_id: str, document: Document, library: Library, *path: str | int) -> None:
    if module_id not in IN_TREE and module_id not in library.module_folders():
        raise document.wrong(
            INVALID, f"there is no module {module_id!r}, neither bundled nor in the session's collections", *path
        )


def _model(providers: list[dict[str, Any]], default_model: str) -> str:
    return str(providers[0]["config"].get("default_model") or default_model)


def _agents(wanted: Any, library: Library, home: Collection, document: Document) -> dict[str, Any]:
    """The agents by name, as modules that delegate look for them in the session's configuration."""
    if isinstance(wanted, Mapping):
        wanted = wanted.get("include")
    if wanted in (None, "none", []):
        return {}
    names = sorted(home.agents()) if wanted == "all" else wanted
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise document.wrong(INVALID, "agents should be all, none, or a list of names", "agents")
    found: dict[str, Any] = {}
    for name in names:
        agent = library.agent(name, home)
        if agent is None:
            raise document.wrong(INVALID, f"there is no agent {name!r}", "agents")
        meta = agent.data.get("meta")
        meta = meta if isinstance(meta, Mapping) else {}
        kept = {section: agent.data[section] for section in _SECTIONS if agent.data.get(section) is not None}
        found[name] = {"description": str(meta.get("description") or ""), "instruction": agent.body, **kept}
    return found


def _with_context(instruction: str, context: Mapping[str, Any]) -> str:
    """The caller's context as a part of the prompt, marked as data."""
    if not context:
        return instruction
    text = encoded(context)
    if len(text) > MAX_CONTEXT_CHARS:
        raise BadRequest(
            "context_too_large", f"context has {len(text)} characters as JSON; {MAX_CONTEXT_CHARS} are allowed"
        )
    block = f"What the caller told about this session, as data:\n<session_context>\n{text}\n</session_context>"
    return f"{instruction}\n\n{block}" if instruction else block


def bundled_specs(library: Library) -> list[ProfileSpec]:
    """What comes with the runtime."""
    collection = library.collections[BUNDLED_NAME]
    names = [f"{BUNDLED_NAME}:{stem}" for stem in sorted(collection.profiles())]
    return [spec_of(name, library.document(name)[1]) for name in names]
