"""What an image holds, and what it still lacks; said without running any of it.

The control plane asks again and again, with what was wanted fetched meanwhile. Invariant: as long as something is
wanted, only what no fetched source can mend is an error; once nothing is, everything that is missing is one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from amplifier_api_server.runtime.bundles.agents import agents_of
from amplifier_api_server.runtime.bundles.compiling import compile_profile, spec_of
from amplifier_api_server.runtime.bundles.composition import MODULE_LISTS, Composed
from amplifier_api_server.runtime.bundles.findings import Findings
from amplifier_api_server.runtime.bundles.library import (
    BUNDLED_NAME,
    COLLECTION_INVALID,
    Collection,
    Library,
    Target,
    bundle_name,
    label_of,
)
from amplifier_api_server.runtime.bundles.loading import Loader
from amplifier_api_server.runtime.bundles.module_use import (
    PROJECT,
    ModuleUses,
    has_build_system,
    import_base,
    items_of,
)
from amplifier_api_server.runtime.bundles.projects import Projects, read_project
from amplifier_api_server.runtime.bundles.trees import YAML_SUFFIXES, Place
from amplifier_api_server.runtime.failures import BadRequest, Missing
from amplifier_api_server.runtime.modules import IN_TREE
from amplifier_api_server.runtime.protocol import (
    MAX_SOURCES,
    CollectionManifest,
    Image,
    Inspection,
    ModuleUse,
    OutsideModule,
    ProfileSpec,
    module_part,
)

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_SESSION = ("orchestrator", "context")
_UNNAMED = "collection"


class _Described(NamedTuple):
    name: str
    version: str
    description: str


def inspect(folder: Path, image: Image, use: ModuleUse = "own", *, skip_missing: bool = False) -> Inspection:
    """Blocking: it reads files. Raises BadRequest (collection_invalid, profile_invalid), Missing (collection_not_found)."""
    use = "source" if "source" in (use, image.modules) else "own"
    given = image.name  # what it is to be called, whatever it calls itself
    image = image.model_copy(update={"modules": use, "name": image.name or _UNNAMED})
    described = _described(Library(folder, [image]).collections[1], given)
    described = described._replace(name=given or described.name)
    image = image.model_copy(update={"name": described.name})
    library = Library(folder, [image])
    collection = library.collections[1]
    findings = Findings(collecting=True, lacks=image.lacks, skips_missing=skip_missing)
    survey = _Survey(library, findings)
    profiles = survey.profiles()
    modules = [one for one in _modules_of(collection) if module_part(image.root.uri, one) not in image.lacks]
    survey.finish()
    if not findings.is_waiting():
        findings.raise_problems()
        _check_compiled(library, profiles, findings)
    if not (profiles or modules or collection.agents() or survey.has_parts):
        raise BadRequest(
            COLLECTION_INVALID,
            "this is no collection: it has neither bundle.md, nor bundles/, profiles/, agents/, modules/",
        )
    manifest = CollectionManifest(
        name=described.name,
        version=described.version,
        description=described.description,
        profiles=profiles,
        agents=sorted(collection.agents()),
        modules=sorted({*modules, *survey.module_ids}),
    )
    return Inspection(
        manifest=manifest,
        wanted=findings.wanted,
        builds=survey.projects.builds,
        requirements=survey.projects.requirements(),
        warnings=findings.warnings,
        missing=findings.missing_parts,
        modules=survey.modules,
    )


class _Survey:
    """Every profile of a collection, and where there is none every behavior, followed to its modules."""

    def __init__(self, library: Library, findings: Findings) -> None:
        self._library = library
        self._findings = findings
        self._loader = Loader(library, findings)
        self._uses = ModuleUses(library, findings)
        self.projects = Projects(library, 1, findings)
        self.modules: list[OutsideModule] = []  # that are used from trees, or may be by others
        self.has_parts = False  # bundles that are no profiles

    @property
    def module_ids(self) -> list[str]:
        """Of the modules that come from trees."""
        return list(self._uses.places)

    def profiles(self) -> list[ProfileSpec]:
        collection = self._library.collections[1]
        specs = []
        for stem, place in sorted(collection.profiles().items()):
            composed = self._follow(Target(1, place))
            if composed.is_partial or _is_session(composed):
                specs.append(spec_of(f"{collection.name}:{stem}", composed))
            else:
                self.has_parts = True
        if not specs:
            self._follow_behaviors(collection)
        return specs

    def finish(self) -> None:
        """Projects of the modules that are used, and of those that lie in modules/."""
        for module_id, (place, named_at) in self._uses.places.items():
            self._add_module(module_id, place, named_at)
        for module_id, place in self._library.collections[1].modules().items():
            if module_id in IN_TREE and module_id not in self._uses.places:
                self._findings.warn(f"{place.shown}: module {module_id!r} is the runtime's own, which is used instead")
            elif module_id not in self._uses.places and not self._findings.is_left_out(
                module_part(place.tree.uri, module_id), place.shown
            ):
                self._add_module(module_id, place, place.shown)

    def _add_module(self, module_id: str, place: Place, named_at: str) -> None:
        self.projects.add_module(module_id, place, named_at)
        if len(self.modules) >= MAX_SOURCES:
            raise BadRequest(COLLECTION_INVALID, f"{named_at}: it has more than {MAX_SOURCES} modules")
        lies = None if has_build_system(place) else import_base(module_id, place)
        self.modules.append(
            OutsideModule(
                id=module_id,
                uri=place.tree.uri,
                named_at=named_at,
                optional=module_id in self._uses.optional,
                tree=lies.tree.content_hash if lies is not None else None,
                subdirectory=lies.path if lies is not None else "",
            )
        )

    def _follow(self, target: Target) -> Composed:
        composed = self._loader.composed(target)
        for item in _items_of(composed):
            self._add(item)
        for agent in agents_of(self._loader, composed).values():
            for item in items_of(agent.definition, MODULE_LISTS):
                self._add(item)
        return composed

    def _add(self, item: object) -> None:
        if isinstance(item, dict) and item.get("module"):
            self._uses.add(item, 1)

    def _follow_behaviors(self, collection: Collection) -> None:
        """A collection to be included by others' profiles brings along what its behaviors need."""
        folder = collection.home.below("behaviors")
        if collection.only is not None or folder is None:
            return
        for place in folder.entries(COLLECTION_INVALID):
            if place.is_file() and place.path.endswith((".md", *YAML_SUFFIXES)) and place.stem.lower() != "readme":
                self.has_parts = True
                self._follow(Target(1, place))


def _items_of(composed: Composed) -> list[object]:
    found: list[object] = [composed.session.get(key) for key in _SESSION]
    for section in MODULE_LISTS:
        found.extend(getattr(composed, section))
    spawned = composed.spawn.get("tools")
    return [*found, *spawned] if isinstance(spawned, list) else found


def _is_session(composed: Composed) -> bool:
    """It names what a session needs, so that it is a profile; a behavior doesn't."""
    return all(isinstance(composed.session.get(key), dict) and composed.session[key].get("module") for key in _SESSION)


def _check_compiled(library: Library, profiles: list[ProfileSpec], findings: Findings) -> None:
    """Each profile as a session would have it. What it takes from other collections can't be known yet."""
    for spec in profiles:
        try:
            compiled = compile_profile(library, spec.name)
        except Missing as missing:
            findings.warn(f"{spec.name}: {missing.failure.detail}")
            continue
        for warning in compiled.warnings:
            findings.warn(warning)


def _modules_of(collection: Collection) -> list[str]:
    modules = collection.modules()
    folder = collection.home.below("modules")
    for entry in folder.entries(COLLECTION_INVALID) if folder is not None and collection.only is None else ():
        if entry.is_folder() and entry not in modules.values():
            raise BadRequest(
                COLLECTION_INVALID, f"{entry.shown} holds no package amplifier_module_*, so its module has no name"
            )
    return [module_id for module_id in modules if module_id not in IN_TREE]


def _described(collection: Collection, given: str) -> _Described:
    """Name, version, description: as it was `given`, else of pyproject.toml, the root bundle, the address."""
    project_file = collection.home.below(PROJECT) if collection.only is None else None
    project: object = {}
    if project_file is not None and project_file.kind() is not None:
        project = read_project(project_file).get("project", {})
    if not isinstance(project, dict):
        raise BadRequest(COLLECTION_INVALID, f"{PROJECT}: project should be a table")
    root = collection.root_bundle()
    head: dict[str, object] = {}
    if root is not None:
        data = root.document(COLLECTION_INVALID).data
        found = data.get("bundle") or data.get("profile")
        head = dict(found) if isinstance(found, dict) else {}
    assert collection.image is not None
    names = [
        given,
        _as_name(project.get("name"), f"{PROJECT}: project.name"),
        _as_name(bundle_name(root), "bundle.name") if root is not None else "",
        _from_address(collection.image.root.uri),
    ]
    name = next((one for one in names if one and one != BUNDLED_NAME), "")
    if not name:
        raise BadRequest(
            COLLECTION_INVALID,
            f"its name is {BUNDLED_NAME!r}, as the bundled one's; give it another in {PROJECT}, or install it by a `name`",
        )
    return _Described(
        name=name,
        version=str(project.get("version") or head.get("version") or "0")[:64],
        description=str(project.get("description") or head.get("description") or "").strip()[:1000],
    )


def _as_name(given: object, what: str) -> str:
    """Raises BadRequest for what can't be made a name of."""
    if given is None or given == "":
        return ""
    name = re.sub(r"[ .]+", "-", given.strip().lower()) if isinstance(given, str) else ""
    if not _NAME.fullmatch(name):
        raise BadRequest(COLLECTION_INVALID, f"{what} is {given!r:.100}; it should be letters, digits, - and _")
    return name


def _from_address(uri: str) -> str:
    name = re.sub(r"[^a-z0-9_-]+", "-", label_of(uri, "").lower()).strip("-_")
    return name if _NAME.fullmatch(name) else _UNNAMED
