"""Plans that come back: checked, and what their names mean on this disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amplifier_api_server.runtime.bundles.compiling import PLAN_VERSION, Plan
from amplifier_api_server.runtime.bundles.composition import MODULE_LISTS
from amplifier_api_server.runtime.bundles.library import BUNDLED, Library, is_tree
from amplifier_api_server.runtime.bundles.mentions import MentionResolver
from amplifier_api_server.runtime.bundles.module_use import OWN_MODULE, import_base, lying_at
from amplifier_api_server.runtime.failures import BadRequest
from amplifier_api_server.runtime.modules import IN_TREE
from amplifier_api_server.runtime.protocol import Image

_READ_VERSIONS = (1, PLAN_VERSION)


def check_plan(plan: Mapping[str, Any], images: Sequence[Image] = (), collections: Path | None = None) -> Plan:
    """A plan that was given to the control plane, of this version or the one before. Raises BadRequest (plan_invalid).

    What version 1 did not say is added: its modules are the runtime's own, or in modules/ of the session's images.
    """
    session = plan.get("session")
    is_whole = (
        plan.get("version") in _READ_VERSIONS
        and isinstance(session, Mapping)
        and all(
            isinstance(session.get(key), Mapping) and session[key].get("module") for key in ("orchestrator", "context")
        )
        and all(_is_list_of_modules(plan.get(section)) for section in MODULE_LISTS)
        and all(isinstance(plan.get(key), str) for key in ("profile", "model", "system_prompt"))
        and all(
            isinstance(plan.get(key, {}), Mapping) for key in ("agents", "spawn", "namespaces", "modules", "sources")
        )
        and isinstance(plan.get("mentions", []), list)
    )
    if not is_whole:
        raise BadRequest("plan_invalid", f"this is no plan of version {' or '.join(map(str, _READ_VERSIONS))}")
    added: Plan = {"agents": {}, "spawn": {}, "mentions": [], "namespaces": {}, "modules": {}, "isolated": False}
    known = added | dict(plan)
    if plan["version"] == 1:
        ids = [str(item["module"]) for item in module_items(known)]
        outside = _carried([one for one in ids if one not in IN_TREE], images, collections)
        known["modules"] = {one: OWN_MODULE for one in ids if one in IN_TREE} | outside
        known["isolated"] = bool(outside)
    return known


def _carried(ids: Sequence[str], images: Sequence[Image], collections: Path | None) -> dict[str, Any]:
    """Those modules in modules/ of the images, as a plan says where they are."""
    found: dict[str, Any] = {}
    for collection in Library(collections, images).collections[1:] if ids else ():
        for module_id, place in collection.modules().items():
            base = import_base(module_id, place)
            if module_id in ids and base is not None:
                found.setdefault(module_id, lying_at(base))
    return found


def module_items(plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every module item of a plan, without its agents'."""
    session = plan["session"]
    found = [session[key] for key in ("orchestrator", "context")]
    for section in MODULE_LISTS:
        found.extend(plan[section])
    return found


def resolver_of(plan: Mapping[str, Any], collections: Path, working_dir: Path | None) -> MentionResolver:
    """What a plan's namespaces mean on this disk: for the capability `mention_resolver`."""
    return MentionResolver(folders_of(plan.get("namespaces") or {}, collections), working_dir)


def folders_of(namespaces: Mapping[str, Any], collections: Path) -> dict[str, Path]:
    """The namespaces of a plan, or of an agent of it that sees other ones, as folders.

    A plan is the control plane's, which keeps what a sandbox said: no name in it leads out of `collections`.
    """
    return _places(namespaces, collections)


def sources_of(plan: Mapping[str, Any], collections: Path) -> dict[str, Path]:
    """What a plan's configurations name by its address, as it was pinned."""
    return _places(plan.get("sources") or {}, collections)


def _places(given: Mapping[str, Any], collections: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, place in given.items():
        tree, path = str(place.get("tree") or ""), str(place.get("path") or "")
        if _is_inside(tree or "bundled", path):
            found[name] = (collections / tree if tree else BUNDLED) / path
    return found


def _is_inside(tree: str, path: str) -> bool:
    return is_tree(tree) and ".." not in path.split("/") and not path.startswith("/")


def _is_list_of_modules(items: Any) -> bool:
    return isinstance(items, list) and all(isinstance(one, Mapping) and one.get("module") for one in items)
