"""What an installed folder holds, said without running any of it; and the folders that a session is to use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from amplifier_api_server.runtime.failures import BadRequest, Missing, Refused
from amplifier_api_server.runtime.library import INVALID, Collection, Library, open_collection
from amplifier_api_server.runtime.profiles import compile_plan, spec_of
from amplifier_api_server.runtime.protocol import CollectionManifest, ProfileSpec

_HASH = re.compile(r"[A-Za-z0-9_-]{1,128}")


def folder_of(collections: Path, content_hash: str) -> Path:
    """Raises Missing (collection_not_found)."""
    folder = collections / content_hash
    if not _HASH.fullmatch(content_hash) or folder.is_symlink() or not folder.is_dir():
        raise Missing("collection_not_found", f"no collection {content_hash!r:.140} is installed here")
    return folder


def library_of(collections: Path, hashes: Sequence[str]) -> Library:
    return Library(open_collection(folder_of(collections, one)) for one in hashes)


def inspect(folder: Path, expected_name: str | None) -> CollectionManifest:
    """The manifest of what is in `folder`. Blocking. Raises BadRequest (collection_invalid, profile_invalid)."""
    collection = open_collection(folder)
    if expected_name is not None and collection.name != expected_name:
        raise BadRequest(INVALID, f"pyproject.toml: project.name is {collection.name!r}, not {expected_name!r}")
    library = Library([collection])
    return CollectionManifest(
        name=collection.name,
        version=collection.version,
        description=collection.description,
        profiles=[_checked(library, collection, stem) for stem in sorted(collection.profiles())],
        agents=sorted(collection.agents()),
        modules=sorted(collection.modules()),
    )


def _checked(library: Library, collection: Collection, stem: str) -> ProfileSpec:
    """A profile that compiles, but for what it takes from collections that aren't here, which can't be known yet."""
    name = f"{collection.name}:{stem}"
    spec = spec_of(name, library.document(name)[1])
    try:
        compile_plan(library, name, {}, "default")
    except Missing as missing:
        if _is_ours(missing, library):
            raise BadRequest("profile_invalid", f"{name}: {missing.failure.detail}") from None
    return spec


def _is_ours(missing: Refused, library: Library) -> bool:
    return any(f"'{name}:" in missing.failure.detail for name in library.collections)
