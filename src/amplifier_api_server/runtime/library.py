"""The collections that a session can draw on: the bundled one and installed folders, found by convention.

Owns where profiles, agents and modules are; runs none of their code. Invariant: no symbolic link is followed, and every
listing is bounded.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amplifier_api_server.runtime.failures import BadRequest, Missing
from amplifier_api_server.runtime.frontmatter import Document, parse, read_text
from amplifier_api_server.runtime.modules import IN_TREE

BUNDLED_NAME = "foundation"
BUNDLED = Path(__file__).parent / "bundled"
MAX_FILES = 500  # of profiles, of agents, of modules
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PACKAGE_PREFIX = "amplifier_module_"
_FOLDER_PREFIX = "amplifier-module-"

INVALID = "collection_invalid"


@dataclass(frozen=True, slots=True)
class Collection:
    name: str
    version: str
    description: str
    root: Path  # where profiles/, agents/, modules/ and the targets of mentions are
    bundled: bool = False

    def profiles(self) -> dict[str, Path]:
        return _markdown(self.root if self.bundled else self.root / "profiles", self.name)

    def agents(self) -> dict[str, Path]:
        return _markdown(self.root / "agents", self.name)

    def modules(self) -> dict[str, Path]:
        """Module ids, each with the folder to import from. Raises BadRequest for an id of the runtime's own."""
        found: dict[str, Path] = {}
        for folder in _folders(self.root / "modules"):
            module_id = _module_id(folder)
            if module_id is None:
                raise BadRequest(
                    INVALID, f"modules/{folder.name} holds no package {_PACKAGE_PREFIX}*, so its module has no name"
                )
            if module_id in IN_TREE:
                raise BadRequest(INVALID, f"modules/{folder.name}: module id {module_id!r} is the runtime's own")
            if module_id in found:
                raise BadRequest(INVALID, f"modules/{folder.name}: module id {module_id!r} is there twice")
            found[module_id] = folder
        return found


class Library:
    """Collections by name, of which the first with a name wins, and the bundled one before all."""

    def __init__(self, installed: Iterable[Collection] = ()) -> None:
        self.collections: dict[str, Collection] = {BUNDLED_NAME: bundled()}
        for collection in installed:
            self.collections.setdefault(collection.name, collection)

    def document(self, name: str) -> tuple[Collection, Document]:
        """The profile `collection:profile`. Raises Missing (profile_not_found)."""
        namespace, _, stem = name.rpartition(":")
        collection = self.collections.get(namespace or BUNDLED_NAME)
        path = collection.profiles().get(stem) if collection is not None else None
        if collection is None or path is None:
            raise Missing("profile_not_found", f"there is no profile {name!r}")
        shown = f"{collection.name}:{path.relative_to(collection.root)}"
        return collection, parse(read_text(path, shown, "profile_invalid"), shown, "profile_invalid")

    def agent(self, name: str, home: Collection) -> Document | None:
        namespace, _, stem = name.rpartition(":")
        collection = self.collections.get(namespace) if namespace else home
        path = collection.agents().get(stem) if collection is not None else None
        if collection is None or path is None:
            return None
        shown = f"{collection.name}:{path.relative_to(collection.root)}"
        return parse(read_text(path, shown, "profile_invalid"), shown, "profile_invalid")

    def module_folders(self) -> dict[str, Path]:
        """Every module of the installed collections; of two with one id, the one of the first collection."""
        found: dict[str, Path] = {}
        for collection in self.collections.values():
            if not collection.bundled:
                found = collection.modules() | found
        return found

    def roots(self) -> Mapping[str, Path]:
        return {name: collection.root for name, collection in self.collections.items()}


def bundled() -> Collection:
    return Collection(BUNDLED_NAME, "1.0.0", "What comes with the server", BUNDLED, bundled=True)


def open_collection(folder: Path) -> Collection:
    """The collection in `folder`, by its pyproject.toml. Raises BadRequest (collection_invalid)."""
    text = read_text(folder / "pyproject.toml", "pyproject.toml", INVALID)
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise BadRequest(INVALID, f"pyproject.toml: {str(error)[:300]}") from None
    project = _table(data, "project")
    if "collection" not in _table(_table(data, "tool"), "amplifier"):
        raise BadRequest(INVALID, "pyproject.toml has no table [tool.amplifier.collection]: this is no collection")
    name = project.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name.lower().replace(".", "-")):
        raise BadRequest(
            INVALID, f"pyproject.toml: project.name is {name!r:.100}; it should be letters, digits, - and _"
        )
    name = name.lower().replace(".", "-")
    if name == BUNDLED_NAME:
        raise BadRequest(INVALID, f"pyproject.toml: project.name: {name!r} is the bundled collection's name")
    return Collection(
        name=name,
        version=str(project.get("version") or "0")[:64],
        description=str(project.get("description") or "")[:1000],
        root=_content_root(folder, name),
    )


def _table(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, Mapping):
        raise BadRequest(INVALID, f"pyproject.toml: {key} should be a table")
    return value


def _content_root(folder: Path, name: str) -> Path:
    """The folder itself, or a package in it that holds the parts (both are found in the wild)."""
    parts = ("profiles", "agents", "modules", "context")
    if any((folder / part).is_dir() for part in parts):
        return folder
    for nested in (folder / name.replace("-", "_"), folder / "src" / name.replace("-", "_"), folder / name):
        if nested.is_dir() and not nested.is_symlink() and any((nested / part).is_dir() for part in parts):
            return nested
    return folder


def _entries(folder: Path) -> Iterator[Path]:
    """What is in a folder, sorted; nothing when it is none. Raises BadRequest when there is too much or a link."""
    if folder.is_symlink():
        raise BadRequest(INVALID, f"{folder.name} is a symbolic link, which is not taken here")
    if not folder.is_dir():
        return
    for count, entry in enumerate(sorted(folder.iterdir())):
        if entry.is_symlink():
            raise BadRequest(INVALID, f"{folder.name}/{entry.name} is a symbolic link, which is not taken here")
        if count >= MAX_FILES:
            raise BadRequest(INVALID, f"{folder.name} holds more than {MAX_FILES} entries")
        yield entry


def _markdown(folder: Path, collection: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for entry in _entries(folder):
        if entry.suffix != ".md" or not entry.is_file() or entry.stem.lower() == "readme":
            continue
        if not _STEM.fullmatch(entry.stem):
            raise BadRequest(
                INVALID,
                f"{collection}: {folder.name}/{entry.name!r:.100}: a name should be letters, digits, ., - and _",
            )
        found[entry.stem] = entry
    return found


def _folders(folder: Path) -> Iterator[Path]:
    for entry in _entries(folder):
        if entry.is_dir() and not entry.name.startswith((".", "__")):
            yield entry


def _module_id(folder: Path) -> str | None:
    """By the package inside, which is what will be imported: amplifier_module_tool_x is `tool-x`."""
    for entry in _entries(folder):
        if entry.is_dir() and entry.name.startswith(_PACKAGE_PREFIX) and (entry / "__init__.py").is_file():
            return entry.name.removeprefix(_PACKAGE_PREFIX).replace("_", "-")
    return None
