"""Python projects in pinned trees, read without running them: what has to be built, and what that needs.

Owns `pyproject.toml`: PEP 518's build-system, PEP 621's static dependencies. A project that doesn't say how it is built
is not built: its package is imported from where it lies. Modules that import a library of the ecosystem without saying
so (upstream's hosts have it installed) get it built too. Invariant: everything read is bounded, nothing is imported.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from amplifier_api_server.runtime.bundles.findings import Findings
from amplifier_api_server.runtime.bundles.library import COLLECTION_INVALID, Library, is_package
from amplifier_api_server.runtime.bundles.module_use import PROJECT, import_base
from amplifier_api_server.runtime.bundles.trees import Place
from amplifier_api_server.runtime.failures import BadRequest
from amplifier_api_server.runtime.protocol import SourceUri, ToBuild

MAX_BUILDS = 200
MAX_REQUIREMENTS = 500
MAX_SOURCE_FILES = 200  # of one module, searched for imports
_DEFAULT_BUILD_SYSTEM = ("setuptools", "wheel")
# What a runtime consists of: what modules bring of it is not installed a second time.
_RUNTIME = ("amplifier-core", "pydantic", "pyyaml", "httptools", "uvloop", "packaging")
# Libraries that modules import without declaring them, and where they are to be had: no registry has them.
_UNDECLARED = {"amplifier_foundation": "git+https://github.com/microsoft/amplifier-foundation@main"}
_IMPORT = re.compile(r"^[ \t]*(?:from|import)[ \t]+(amplifier_\w+)", re.MULTILINE)
_LINE = "\n"


class Projects:
    """What one image needs built, found by following projects' dependencies."""

    def __init__(self, library: Library, collection: int, findings: Findings) -> None:
        self._library = library
        self._collection = collection
        self._findings = findings
        self._builds: dict[Place, ToBuild] = {}
        self._requirements: dict[str, Requirement] = {}
        self._seen: set[Place] = set()

    @property
    def builds(self) -> list[ToBuild]:
        return list(self._builds.values())

    def requirements(self) -> list[str]:
        """PEP 508, less what is built here and what the runtime has."""
        built = {canonicalize_name(one.name) for one in self.builds}
        runtime = _runtime_versions()
        kept = []
        for text, requirement in sorted(self._requirements.items()):
            name = canonicalize_name(requirement.name)
            version = runtime.get(name)
            if version is not None and not requirement.specifier.contains(version, prereleases=True):
                self._findings.warn(f"{text} is asked for, but the runtime has {name} {version}, which is what it gets")
            if version is None and name not in built:
                kept.append(text)
        return kept

    def add_module(self, module_id: str, place: Place, named_at: str) -> None:
        """A module that is used from `place`. Raises BadRequest (collection_invalid) for a project that can't be read."""
        self.add(place, f"module {module_id!r}", named_at)
        if place not in self._builds and import_base(module_id, place) is None:
            message = f"module {module_id!r}: {place.shown} holds no package that can be imported, and no build-system"
            self._findings.problem(named_at, message)
        self._add_undeclared(place)

    def add(self, place: Place, what: str, named_at: str) -> None:
        """A project, when there is one at `place`, with what it depends on."""
        if place in self._seen:
            return
        self._seen.add(place)
        project_file = place.below(PROJECT)
        if project_file is None or not project_file.is_file():
            return
        data = read_project(project_file)
        project = _table(data, "project", project_file)
        build_system = data.get("build-system")
        if isinstance(build_system, Mapping):
            self._build(place, project, build_system, what)
        else:
            self._findings.warn(
                f"{project_file.shown}: it has no build-system, so {what} is imported from where it lies"
            )
        if "dependencies" in (project.get("dynamic") or []):
            self._findings.warn(f"{project_file.shown}: its dependencies are dynamic and are not installed with it")
        for text in _strings(project.get("dependencies"), project_file, "project.dependencies"):
            self._depend(text, project_file)

    def _build(self, place: Place, project: Mapping[str, Any], build_system: Mapping[str, Any], what: str) -> None:
        if len(self._builds) >= MAX_BUILDS:
            raise BadRequest(COLLECTION_INVALID, f"{place.shown}: there are more than {MAX_BUILDS} projects to build")
        project_file = place.below(PROJECT) or place
        name = project.get("name")
        shown = name if isinstance(name, str) and name else what
        self._builds[place] = ToBuild(
            tree=place.tree.content_hash, subdirectory=place.path, uri=place.tree.uri, name=shown[:200]
        )
        requires = _strings(build_system.get("requires"), project_file, "build-system.requires")
        for text in requires if "requires" in build_system else _DEFAULT_BUILD_SYSTEM:
            self._depend(text, project_file)

    def _depend(self, text: str, project_file: Place) -> None:
        named_at = line_of(project_file, text)
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            reason = str(error).partition(_LINE)[0]
            raise BadRequest(COLLECTION_INVALID, f"{named_at}: {text!r:.200} is no requirement: {reason}") from None
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            return
        if canonicalize_name(requirement.name) == "amplifier-core":
            return
        if requirement.url:
            self._depend_on_source(requirement, named_at)
            return
        if len(self._requirements) >= MAX_REQUIREMENTS:
            raise BadRequest(COLLECTION_INVALID, f"{named_at}: there are more than {MAX_REQUIREMENTS} requirements")
        self._requirements.setdefault(str(requirement), requirement)

    def _depend_on_source(self, requirement: Requirement, named_at: str) -> None:
        try:
            uri = SourceUri.parse(str(requirement.url))
        except ValueError as error:
            raise BadRequest(COLLECTION_INVALID, f"{named_at}: {requirement.name}: {error}") from None
        self._add_source(uri, requirement.name, named_at)

    def _add_source(self, uri: SourceUri, what: str, named_at: str) -> None:
        held = self._library.tree(uri.key, self._collection)
        if held is None:
            self._findings.want(uri.key, named_at)
            return
        place = Place(held[1]).below(uri.subdirectory)
        if place is None or not place.is_folder():
            self._findings.problem(named_at, f"there is no folder {uri.subdirectory!r:.200} in {uri.key}")
            return
        self.add(place, what, named_at)
        if place not in self._builds:
            self._findings.problem(named_at, f"{what}: {place.shown} holds no project that can be built")

    def _add_undeclared(self, place: Place) -> None:
        """Libraries that a module's code imports: of its own repository, or of the ecosystem."""
        for name, named_at in _imported(place):
            home = self._provider_of(name, place)
            if home is not None:
                self.add(home, name, named_at)
            elif name in _UNDECLARED:
                self._add_source(SourceUri.parse(_UNDECLARED[name]), name, named_at)

    def _provider_of(self, name: str, place: Place) -> Place | None:
        """The root of a tree that has that package and says how it is built; the module's own tree first."""
        collection = self._library.of(self._collection)
        trees = [place.tree, *(collection.trees.values() if collection is not None else ())]
        for tree in dict.fromkeys(trees):
            root = Place(tree)
            if _has_package(root, name) and _is_built(root):
                return root
        return None


def read_project(place: Place) -> dict[str, Any]:
    """A pyproject.toml. Raises BadRequest (collection_invalid)."""
    try:
        return tomllib.loads(place.text(COLLECTION_INVALID))
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise BadRequest(COLLECTION_INVALID, f"{place.shown}: {str(error)[:200]}") from None


def line_of(place: Place, text: str) -> str:
    """file:line of the first place where `text` stands: TOML's parser keeps no lines."""
    for number, line in enumerate(place.text(COLLECTION_INVALID).split(_LINE), 1):
        if text in line:
            return f"{place.shown}:{number}"
    return place.shown


def _table(data: Mapping[str, Any], key: str, place: Place) -> Mapping[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, Mapping):
        raise BadRequest(COLLECTION_INVALID, f"{place.shown}: {key} should be a table")
    return value


def _strings(value: Any, place: Place, what: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) and len(one) < 1000 for one in value):  # noqa: PLR2004
        raise BadRequest(COLLECTION_INVALID, f"{place.shown}: {what} should be a list of requirements")
    return value


def _has_package(root: Place, name: str) -> bool:
    for base in (root, root.below("src")):
        package = base.below(name) if base is not None else None
        if package is not None and is_package(package):
            return True
    return False


def _is_built(root: Place) -> bool:
    project = root.below(PROJECT)
    return project is not None and project.is_file() and isinstance(read_project(project).get("build-system"), Mapping)


def _imported(place: Place) -> Iterator[tuple[str, str]]:
    """Packages named amplifier_* that a module's own package imports, each with a line that does."""
    found: dict[str, str] = {}
    for file in _python_files(place):
        try:
            text = file.text(COLLECTION_INVALID)
        except BadRequest:
            continue  # not text, or too large: whether it can be imported shows when it is
        for match in _IMPORT.finditer(text):
            name = match.group(1)
            if name != "amplifier_core" and not name.startswith("amplifier_module_"):
                found.setdefault(name, f"{file.shown}:{text.count(_LINE, 0, match.start(1)) + 1}")
    yield from found.items()


def _python_files(place: Place) -> Iterator[Place]:
    """Of a module's package, whichever way it lies; not its tests."""
    left = [
        entry
        for base in (place, place.below("src"))
        if base is not None
        for entry in base.entries(COLLECTION_INVALID)
        if entry.name.startswith("amplifier_module_") and entry.is_folder()
    ]
    count = 0
    while left and count < MAX_SOURCE_FILES:
        folder = left.pop()
        init = folder.below("__init__.py")
        for entry in [*([init] if init is not None else []), *folder.entries(COLLECTION_INVALID)]:
            if entry.is_folder():
                left.append(entry)
            elif entry.path.endswith(".py") and entry.is_file():
                count += 1
                yield entry


def _runtime_versions() -> dict[str, str]:
    """The runtime's own distributions with all that they need, by canonical name."""
    found: dict[str, str] = {}
    left = list(_RUNTIME)
    while left:
        name = canonicalize_name(left.pop())
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
    return found
