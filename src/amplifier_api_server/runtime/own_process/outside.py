"""Where the modules from outside of a plan are imported from.

Owns the translation of `plan["modules"]` (id -> "own", or the source that was pinned) into folders of COLLECTIONS. Runs
nothing. Invariant: what is given lies in a tree of an image of the session.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amplifier_api_server.runtime.failures import BadRequest, Missing
from amplifier_api_server.runtime.module_loader import package_name
from amplifier_api_server.runtime.protocol import Image

OWN = "own"
_HASH = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True, slots=True)
class Outside:
    """`folders`: of each module from outside, the folder to import it from. `packages`: what all of them may import."""

    folders: Mapping[str, Path]
    packages: Sequence[Path]


def is_isolated(plan: Mapping[str, Any]) -> bool:
    """Whether a session of this plan needs a process of its own."""
    return bool(plan.get("isolated"))


def outside_of(plan: Mapping[str, Any], images: Sequence[Image], collections: Path) -> Outside:
    """Raises BadRequest (module_failed), Missing (collection_not_found)."""
    packages = {image.packages: _tree(collections, image.packages) for image in images if image.packages}
    folders: dict[str, Path] = {}
    for module_id, source in plan.get("modules", {}).items():
        if source == OWN:
            continue
        image = next((one for one in images if source["tree"] in one.trees()), None)
        if image is None:
            raise BadRequest("module_failed", f"module {module_id!r:.100}: its source is in none of the collections")
        if source.get("path"):
            folders[module_id] = _import_root(_below(collections, source), module_id)
        elif image.packages:
            folders[module_id] = packages[image.packages]
        else:
            raise BadRequest("module_failed", f"module {module_id!r:.100} was not built: {image.name} has no packages")
    return Outside(folders, list(packages.values()))


def _tree(collections: Path, content_hash: str) -> Path:
    folder = collections / content_hash
    if not _HASH.fullmatch(content_hash) or folder.is_symlink() or not folder.is_dir():
        raise Missing("collection_not_found", f"no tree {content_hash!r:.140} is installed here")
    return folder


def _below(collections: Path, source: Mapping[str, Any]) -> Path:
    tree = _tree(collections, source["tree"])
    folder = (tree / str(source.get("subdirectory") or "")).resolve()
    if not folder.is_relative_to(tree.resolve()) or not folder.is_dir():
        raise BadRequest("module_failed", f"there is no folder {source.get('subdirectory')!r:.200} in {source['uri']}")
    return folder


def _import_root(folder: Path, module_id: str) -> Path:
    """Where the module's package is seen from: the folder may be the project, or the package itself."""
    package = package_name(module_id)
    if folder.name == package and (folder / "__init__.py").is_file():
        return folder.parent
    return folder / "src" if (folder / "src" / package).is_dir() else folder
