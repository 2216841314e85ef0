"""The collections that a session can draw on, the tenant's own profiles, and what their names mean.

Owns two kinds of names. A profile's is `collection:profile`, or plain for a tenant's own. A namespace (`ns:path`) is
lexical: what it means depends on the file that says it. First come the names of the file's own tree, then those of its
collection, then those of the other collections, at last the bundled collection. Invariant: nothing is found outside of
pinned trees, and every listing is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from amplifier_api_server.runtime.bundles.documents import is_bundle
from amplifier_api_server.runtime.bundles.findings import INVALID
from amplifier_api_server.runtime.bundles.trees import YAML_SUFFIXES, Place, Tree
from amplifier_api_server.runtime.failures import BadRequest, Missing
from amplifier_api_server.runtime.frontmatter import Document, parse, parse_yaml
from amplifier_api_server.runtime.protocol import Image

BUNDLED_NAME = "foundation"
BUNDLED = Path(__file__).parent.parent / "bundled"
OWN = -1  # the collection of the tenant's own profiles: none
COLLECTION_INVALID = "collection_invalid"
PACKAGE_PREFIX = "amplifier_module_"
_HASH = re.compile(r"[A-Za-z0-9_-]{1,128}")
_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PARTS = ("profiles", "bundles", "agents", "modules", "context", "behaviors")


class Target(NamedTuple):
    """A bundle's document: in a collection's tree, or (collection OWN) one of the tenant's own."""

    collection: int
    place: Place


class Collection:
    """One image, or the bundled collection (without one)."""

    def __init__(self, name: str, home: Place, trees: Mapping[str, Tree], image: Image | None) -> None:
        self.name = name
        self.image = image
        self.trees = trees  # by `SourceUri.key`, the root's first
        self.only = home if home.is_file() else None  # the one bundle that it consists of
        self.home = _content_home(home.folder if self.only else home, name)  # where agents/, context/ and others are
        self._modules: dict[str, Place] | None = None
        self._names: dict[str, dict[str, Place]] = {}  # of each tree's root bundle
        self._loaded: dict[tuple[Path | None, str], Place] = {}

    @property
    def is_bundled(self) -> bool:
        return self.image is None

    def profiles(self) -> dict[str, Place]:
        """Documents by the names of their profiles, of what may be one. Raises BadRequest."""
        found: dict[str, Place] = {}
        if self.is_bundled:
            return dict(self._stems(self.home))
        if (root := self.root_bundle()) is not None:
            name = bundle_name(root)
            found[name if _STEM.fullmatch(name) else self.name] = root
        if self.only is None:
            for place in (self.home.below("bundles"), self.home.below("profiles")):
                for stem, document in self._stems(place) if place is not None else ():
                    found.setdefault(stem, document)
        return found

    def root_bundle(self) -> Place | None:
        return self.only or self.home.bundle_file()

    def agents(self) -> dict[str, Place]:
        folder = self.home.below("agents")
        entries = folder.entries(COLLECTION_INVALID) if folder is not None else []
        return {one.stem: one for one in entries if one.path.endswith(".md") and one.stem.lower() != "readme"}

    def modules(self) -> dict[str, Place]:
        """Module ids, each with the folder in modules/ that holds it. Raises BadRequest."""
        if self._modules is None:
            self._modules = self._found_modules()
        return self._modules

    def _found_modules(self) -> dict[str, Place]:
        folder = self.home.below("modules")
        found: dict[str, Place] = {}
        if self.only is not None or folder is None:
            return found
        for entry in folder.entries(COLLECTION_INVALID):
            module_id = module_id_of(entry) if entry.is_folder() else None
            if module_id is not None and module_id in found:
                raise BadRequest(COLLECTION_INVALID, f"{entry.shown}: module id {module_id!r} is there twice")
            if module_id is not None:
                found[module_id] = entry
        return found

    def register(self, tree: Tree, name: str, place: Place) -> None:
        """A bundle of that name was read from this tree: its namespace begins at `place`. The first one stays."""
        if name:
            self._loaded.setdefault((tree.root, name), place)

    def namespace(self, name: str, tree: Tree) -> Place | None:
        """Where `name` begins for a file of `tree`."""
        found = self._of_tree(tree).get(name) or self._loaded.get((tree.root, name))
        return found or self.namespaces().get(name)

    def namespaces(self) -> dict[str, Place]:
        """Every name that means something to all of the collection."""
        found: dict[str, Place] = {}
        if self.only is None and not self.is_bundled and (root := self.root_bundle()) is not None:
            found[bundle_name(root)] = self.home
        for tree in dict.fromkeys(self.trees.values()):
            found = self._of_tree(tree) | found
        for (_, name), place in self._loaded.items():
            found.setdefault(name, place)
        found.setdefault(self.name, self.home)
        found.pop("", None)
        return found

    def _of_tree(self, tree: Tree) -> dict[str, Place]:
        key = str(tree.root)
        if key not in self._names:
            root = Place(tree)
            document = None if self.is_bundled else root.bundle_file()
            name = bundle_name(document) if document is not None else ""
            self._names[key] = {name: root} if name else {}
        return self._names[key]

    def _stems(self, folder: Place) -> Iterator[tuple[str, Place]]:
        for entry in folder.entries(COLLECTION_INVALID):
            document = entry.bundle_file()
            if document is None or entry.stem.lower() == "readme":
                continue
            if entry.is_file() and not entry.path.endswith((".md", *YAML_SUFFIXES)):
                continue
            stem = entry.stem if entry.is_file() else entry.name
            if not _STEM.fullmatch(stem):
                message = f"{entry.shown!r:.200}: a profile's name should be letters, digits, ., - and _"
                raise BadRequest(COLLECTION_INVALID, message)
            if is_bundle_or_broken(document):
                yield stem, document


class Library:
    """The bundled collection, the images of a session, and the tenant's own profiles.

    Of two collections with one name, the first wins, and the bundled one before all.
    """

    def __init__(
        self, folder: Path | None = None, images: Sequence[Image] = (), documents: Mapping[str, str] | None = None
    ) -> None:
        """`folder` holds the trees. Raises Missing (collection_not_found)."""
        bundled = Place(Tree("", root=BUNDLED))
        self.collections = [Collection(BUNDLED_NAME, bundled, {}, None)]
        for image in images:
            assert folder is not None
            self.collections.append(_opened(folder, image))
        self._documents = dict(documents or {})

    @property
    def bundled(self) -> Collection:
        return self.collections[0]

    @property
    def lacks(self) -> set[str]:
        return {uri for one in self.collections if one.image for uri in one.image.lacks}

    def profile(self, name: str) -> Target:
        """Raises Missing (profile_not_found)."""
        namespace, _, stem = name.rpartition(":")
        found = self.own(name) if not namespace else None
        if found is None:
            found = self.profile_in(namespace or BUNDLED_NAME, stem)
        if found is None:
            raise Missing("profile_not_found", f"there is no profile {name!r:.200}")
        return found

    def profile_in(self, collection: str, stem: str) -> Target | None:
        for index, one in enumerate(self.collections):
            if one.name == collection:
                place = one.profiles().get(stem)
                return None if place is None else Target(index, place)
        return None

    def own(self, name: str) -> Target | None:
        """The tenant's own profile of this name."""
        return Target(OWN, Place(Tree(f"profile {name}"))) if name in self._documents else None

    def document(self, target: Target) -> Document:
        """Raises BadRequest with file and line."""
        if target.collection != OWN:
            return target.place.document(INVALID)
        name = target.place.tree.label.removeprefix("profile ")
        return own_document(name, self._documents[name])

    def of(self, index: int) -> Collection | None:
        return None if index == OWN else self.collections[index]

    def name_of(self, target: Target, stem: str) -> str:
        collection = self.of(target.collection)
        return stem if collection is None else f"{collection.name}:{stem}"

    def namespace(self, name: str, index: int, tree: Tree) -> Target | None:
        """Where `name` begins, for a file of `tree` in the collection `index`."""
        own = self.of(index)
        if own is not None and (place := own.namespace(name, tree)) is not None:
            return Target(index, place)
        for other, collection in enumerate(self.collections[1:], 1):
            if other != index and (place := collection.namespaces().get(name)) is not None:
                return Target(other, place)
        return Target(0, self.bundled.home) if name == BUNDLED_NAME else None

    def tree(self, uri: str, index: int) -> tuple[int, Tree] | None:
        """The pinned source of that address: the collection's own, or another one's."""
        own = self.of(index)
        if own is not None and uri in own.trees:
            return index, own.trees[uri]
        for other, collection in enumerate(self.collections):
            if uri in collection.trees:
                return other, collection.trees[uri]
        return None

    def namespaces(self, index: int) -> dict[str, Place]:
        """Every name, as the collection `index` sees it."""
        own = self.of(index)
        found = own.namespaces() if own is not None else {}
        for collection in self.collections[1:]:
            found = collection.namespaces() | found
        return {BUNDLED_NAME: self.bundled.home} | found


def own_document(name: str, text: str) -> Document:
    """A tenant's own profile: Markdown with frontmatter, or YAML alone. Raises BadRequest (profile_invalid)."""
    lines = text.lstrip("\ufeff").split("\n")
    ends = any(line.rstrip() in ("---", "...") for line in lines[1:])
    is_markdown = lines[0].rstrip() == "---" and ends
    return (parse if is_markdown else parse_yaml)(text, f"profile {name}", INVALID)


def bundle_name(place: Place) -> str:
    """What a bundle calls itself; empty when it doesn't, or can't be read: whoever loads it says why."""
    try:
        document = place.document(INVALID)
    except BadRequest:
        return ""
    head = document.data.get("bundle") or document.data.get("profile")
    name = head.get("name") if isinstance(head, Mapping) else None
    return name if isinstance(name, str) else ""


def is_bundle_or_broken(place: Place) -> bool:
    """Prose and data of other kinds lie beside bundles; a broken file may have been meant as one."""
    try:
        return is_bundle(place.document(INVALID)) or place.folder.name == "profiles"
    except BadRequest:
        return True


def module_id_of(folder: Place) -> str | None:
    """By the package inside, which is what will be imported: amplifier_module_tool_x is `tool-x`."""
    for base in (folder, folder.below("src")):
        for entry in base.entries(COLLECTION_INVALID) if base is not None else ():
            if entry.name.startswith(PACKAGE_PREFIX) and is_package(entry):
                return entry.name.removeprefix(PACKAGE_PREFIX).replace("_", "-")
    return None


def is_package(folder: Place) -> bool:
    init = folder.below("__init__.py")
    return init is not None and init.is_file()


def label_of(uri: str, otherwise: str) -> str:
    """A source's short name: the last word of its address."""
    address = uri.rpartition("@")[0] if uri.startswith("git+") else uri
    return address.rstrip("/").rpartition("/")[2].removesuffix(".zip")[:64] or otherwise


def is_tree(content_hash: str) -> bool:
    """It can be the name of a tree's folder."""
    return _HASH.fullmatch(content_hash) is not None


def open_tree(folder: Path, content_hash: str, uri: str, label: str) -> Tree:
    """Raises Missing (collection_not_found)."""
    root = folder / content_hash
    if not is_tree(content_hash) or root.is_symlink() or not root.is_dir():
        raise Missing("collection_not_found", f"no tree {content_hash!r:.140} is installed here")
    return Tree(label, uri, content_hash, root)


def _opened(folder: Path, image: Image) -> Collection:
    root = open_tree(folder, image.root.tree, image.root.uri, label_of(image.root.uri, image.name))
    trees = {image.root.uri: root}
    for source in image.sources:
        label = label_of(source.uri, source.tree)
        trees.setdefault(source.uri, open_tree(folder, source.tree, source.uri, label))
    home = Place(root).below(image.subdirectory)
    if home is None or home.kind() is None:
        raise BadRequest(COLLECTION_INVALID, f"there is no {image.subdirectory!r:.200} in {image.root.uri}")
    return Collection(image.name, home, trees, image)


def _content_home(folder: Place, name: str) -> Place:
    """The folder itself, or a package in it that holds the parts (both are found in the wild)."""
    if folder.bundle_file() not in (None, folder) or any(_is_folder(folder, part) for part in _PARTS):
        return folder
    package = name.replace("-", "_")
    for nested in (package, f"src/{package}", name):
        place = folder.below(nested)
        if place is not None and any(_is_folder(place, part) for part in _PARTS):
            return place
    return folder


def _is_folder(place: Place, part: str) -> bool:
    below = place.below(part)
    return below is not None and below.is_folder()
