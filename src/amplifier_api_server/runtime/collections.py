"""What an installed folder holds, said without running any of it; and the folders that a session is to use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from amplifier_api_server.runtime.failures import BadRequest, Missing, Refused
from amplifier_api_server.runtime.library import Collection, Library, open_collection
from amplifier_api_server.runtime.profiles import compile_plan, spec_of
from amplifier_api_server.runtime.protocol import CollectionManifest, Image, Inspection, ProfileSpec

_HASH = re.compile(r"[A-Za-z0-9_-]{1,128}")


def folder_of(collections: Path, content_hash: str) -> Path:
    """Raises Missing (collection_not_found)."""
    folder = collections / content_hash
    if not _HASH.fullmatch(content_hash) or folder.is_symlink() or not folder.is_dir():
        raise Missing("collection_not_found", f"no collection {content_hash!r:.140} is installed here")
    return folder


def library_of(collections: Path, images: Sequence[Image]) -> Library:
    return Library(open_collection(root_of(collections, one)) for one in images)


def root_of(collections: Path, image: Image) -> Path:
    """Where the collection itself begins. Raises Missing (collection_not_found)."""
    folder = folder_of(collections, image.root.tree)
    return folder / image.subdirectory if image.subdirectory else folder


def inspect(collections: Path, image: Image) -> Inspection:
    """What is in an image. Blocking. Raises BadRequest (collection_invalid, profile_invalid)."""
    collection = open_collection(root_of(collections, image))
    library = Library([collection])
    manifest = CollectionManifest(
        name=collection.name,
        version=collection.version,
        description=collection.description,
        profiles=[_checked(library, collection, stem) for stem in sorted(collection.profiles())],
        agents=sorted(collection.agents()),
        modules=sorted(collection.modules()),
    )
    return Inspection(manifest=manifest)


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
