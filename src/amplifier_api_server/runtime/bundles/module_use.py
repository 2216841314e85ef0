"""Which implementation each module id means: the runtime's own, or a package from a pinned tree.

One id means one implementation for a whole session, its agents included: core's modules are global to a process. The
first item that names it decides. Nothing is imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from amplifier_api_server.runtime.bundles.findings import Findings
from amplifier_api_server.runtime.bundles.library import OWN, PACKAGE_PREFIX, Collection, Library, is_package
from amplifier_api_server.runtime.bundles.trees import Place, Tree
from amplifier_api_server.runtime.modules import IN_TREE
from amplifier_api_server.runtime.protocol import SourceUri, module_part

OWN_MODULE = "own"
PROJECT = "pyproject.toml"

Use = str | dict[str, Any]


class ModuleUses:
    """The table that a plan keeps under `modules`, as it is filled."""

    def __init__(self, library: Library, findings: Findings) -> None:
        self._library = library
        self._findings = findings
        self.table: dict[str, Use] = {}
        self.places: dict[str, tuple[Place, str]] = {}  # of what comes from trees: its folder, and who names it
        self.optional: set[str] = set()  # of those, what nothing but its own line needs
        self.sources: dict[
            str, dict[str, str]
        ] = {}  # addresses in configurations -> tree and path, as a plan keeps them
        self._first: dict[str, Mapping[str, Any]] = {}

    @property
    def is_isolated(self) -> bool:
        """Some module is not the runtime's own."""
        return any(use != OWN_MODULE for use in self.table.values())

    def add(self, item: Mapping[str, Any], home: int) -> bool:
        """Decide on an item's module; `home` is the collection of the profile. False: it is left out."""
        module_id = str(item["module"])
        if module_id in self.table:
            self._warn_of_another(module_id, item)
        else:
            use = self._decide(module_id, item, home)
            if use is None:
                return False
            self.table[module_id] = use
            self._first[module_id] = item
            if item.get("optional") is True:
                self.optional.add(module_id)
        if self.table[module_id] != OWN_MODULE:
            self._place_addresses(module_id, item.get("_addresses") or {})
        return True

    def _decide(self, module_id: str, item: Mapping[str, Any], home: int) -> Use | None:
        source = item.get("_source") or {}
        index = int(source.get("collection", home))
        wants_source = self._wants_source(index) and ("uri" in source or self._is_carried(module_id, index))
        if module_id in IN_TREE and not wants_source:
            return OWN_MODULE
        optional = item.get("optional") is True
        if "bad" in source:
            self._findings.problem(item["_at"], f"module {module_id!r}: {source['bad']}", optional=optional)
            return None
        if source:
            found = self._from_source(module_id, source, index, item["_at"], optional=optional)
        else:
            found = self._from_collections(module_id, home, item["_at"], optional=optional)
        return OWN_MODULE if found is None and module_id in IN_TREE else found

    def _wants_source(self, index: int) -> bool:
        collection = self._library.of(index)
        return collection is not None and collection.image is not None and collection.image.modules == "source"

    def _is_carried(self, module_id: str, index: int) -> bool:
        collection = self._library.of(index)
        return collection is not None and module_id in collection.modules()

    def _from_source(
        self, module_id: str, source: Mapping[str, str], index: int, named_at: str, *, optional: bool
    ) -> Use | None:
        held = self._library.tree(source["uri"], index)
        if held is None:
            self._findings.want(source["uri"], named_at, optional=optional)
            return None
        _, tree = held
        place = Place(tree).below(source["subdirectory"])
        if place is None or not place.is_folder():
            if self._findings.part_is_left_out(f"{source['uri']}#subdirectory={source['subdirectory']}", named_at):
                return None
            message = f"module {module_id!r}: there is no folder {source['subdirectory']!r:.200} in {source['uri']}"
            self._findings.problem(named_at, message, optional=optional)
            return None
        return self._use(module_id, place, named_at)

    def _from_collections(self, module_id: str, home: int, named_at: str, *, optional: bool) -> Use | None:
        """Of a module without a source: a folder in a collection's modules/, or what was installed with it."""
        collections = self._ordered(home)
        is_left_out = False
        for collection in collections:
            folder = collection.modules().get(module_id)
            if folder is not None:
                if (use := self._use(module_id, folder, named_at)) is not None:
                    return use
                is_left_out = True
        for collection in collections:
            packages = _packages_of(collection)
            package = packages.below(package_name(module_id)) if packages is not None else None
            if package is not None and is_package(package):
                uri = collection.image.root.uri if collection.image else ""
                if not self._findings.is_left_out(module_part(uri, module_id), named_at):
                    return {"uri": uri, "subdirectory": "", "tree": package.tree.content_hash, "path": True}
                is_left_out = True
        if not is_left_out:
            message = f"there is no module {module_id!r}, neither bundled nor in the session's collections"
            self._findings.problem(named_at, message, optional=optional)
        return None

    def _ordered(self, home: int) -> list[Collection]:
        first = self._library.of(home) if home != OWN else None
        others = [one for one in self._library.collections[1:] if one is not first]
        return [*([first] if first is not None and not first.is_bundled else []), *others]

    def _use(self, module_id: str, place: Place, named_at: str) -> Use | None:
        if self._findings.is_left_out(module_part(place.tree.uri, module_id), named_at):
            return None
        self.places[module_id] = (place, named_at)
        base = import_base(module_id, place)
        if base is not None and not has_build_system(place):
            return lying_at(base)
        return _entry(place)

    def _place_addresses(self, module_id: str, addresses: Mapping[str, Mapping[str, str]]) -> None:
        """Repositories that a configuration names: the module has no network to fetch them with, so they are pinned too.

        Only the module knows how much it needs them; what can't be had is told, and stays as it is written.
        """
        for text, noted in addresses.items():
            uri = SourceUri.parse(text)
            named_at = f"{noted['at']} (configuration of {module_id})"
            held = self._library.tree(uri.key, int(noted["collection"]))
            if held is None:
                self._findings.want(uri.key, named_at, optional=True)
                continue
            place = Place(held[1]).below(uri.subdirectory)
            if place is None or place.kind() is None:
                self._findings.warn(f"{named_at}: there is no {uri.subdirectory!r:.200} in {uri.key}")
                continue
            self.sources[text] = {"tree": place.tree.content_hash, "path": place.path}

    def _warn_of_another(self, module_id: str, item: Mapping[str, Any]) -> None:
        first, source = self._first[module_id], item.get("_source") or {}
        held = first.get("_source") or {}
        if self.table[module_id] != OWN_MODULE and source and _where(source) != _where(held):
            self._findings.warn(
                f"{item['_at']}: module {module_id!r} is another one at {first['_at']}, which all of the session uses"
            )


def package_name(module_id: str) -> str:
    return f"{PACKAGE_PREFIX}{module_id.replace('-', '_')}"


def import_base(module_id: str, place: Place) -> Place | None:
    """The folder to import a module's package from, as it lies there."""
    for base in (place, place.below("src")):
        package = base.below(package_name(module_id)) if base is not None else None
        if package is not None and is_package(package):
            return base
    return None


def lying_at(base: Place) -> dict[str, Any]:
    """The entry of a plan's `modules` for a package that is imported from `base`, without having been built."""
    return _entry(base) | {"path": True}


def has_build_system(place: Place) -> bool:
    """It says how it is built. Only looked for as text here; `projects` reads it."""
    project = place.below(PROJECT)
    return project is not None and project.is_file() and "[build-system]" in project.text("collection_invalid")


def in_plan(item: Mapping[str, Any], section: str) -> dict[str, Any]:
    """An item as a plan has it."""
    one: dict[str, Any] = {"module": item["module"], "config": item.get("config") or {}}
    own_id = item.get("id") if item.get("id") != item["module"] else None
    if own_id:
        one["id"] = str(own_id)
    if section == "providers" and (item.get("instance_id") or own_id):
        one["instance_id"] = str(item.get("instance_id") or own_id)
    return one


def items_of(definition: Mapping[str, Any], sections: Iterable[str]) -> list[Mapping[str, Any]]:
    """Every module item of a profile's or an agent's sections."""
    session = definition.get("session") or {}
    found = [session[key] for key in ("orchestrator", "context") if isinstance(session.get(key), Mapping)]
    for section in sections:
        found.extend(definition.get(section) or [])
    return found


def _packages_of(collection: Collection) -> Place | None:
    image = collection.image
    if image is None or image.packages is None:
        return None
    root = next(iter(collection.trees.values())).root
    assert root is not None
    return Place(Tree("packages", content_hash=image.packages, root=root.parent / image.packages))


def _entry(place: Place) -> dict[str, Any]:
    return {"uri": place.tree.uri, "subdirectory": place.path, "tree": place.tree.content_hash}


def _where(source: Mapping[str, str]) -> tuple[str | None, str | None]:
    return source.get("uri"), source.get("subdirectory")
