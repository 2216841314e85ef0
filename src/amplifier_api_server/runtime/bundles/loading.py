"""A bundle with all that it includes, followed through the pinned trees and composed.

Includes are composed in list order, the bundle itself last. Invariant: what a bundle is made of does not depend on what
was loaded before it: only results that skipped nothing are kept and used again. Circles are cut with a warning (an error
between profiles of the older format), depth and number are bounded.
"""

from __future__ import annotations

from dataclasses import replace

from amplifier_api_server.runtime.bundles.composition import Composed, compose, without
from amplifier_api_server.runtime.bundles.documents import Include, Part, is_bundle, part_of
from amplifier_api_server.runtime.bundles.findings import INVALID, Findings
from amplifier_api_server.runtime.bundles.library import BUNDLED_NAME, OWN, Library, Target, bundle_name
from amplifier_api_server.runtime.bundles.trees import Place
from amplifier_api_server.runtime.failures import BadRequest
from amplifier_api_server.runtime.protocol import SourceUri

MAX_DEPTH = 32
MAX_LOADS = 1000  # of documents, of which each may be included from several sides
BUNDLED_ROOT = "base"  # what `foundation` alone means where no collection has that name


class Loader:
    """For one compilation or inspection."""

    def __init__(self, library: Library, findings: Findings) -> None:
        self.library = library
        self.findings = findings
        self._parts: dict[Target, Part] = {}
        self._whole: dict[Target, Composed] = {}
        self._loads = 0

    def part(self, target: Target) -> Part:
        """Raises BadRequest with file and line."""
        held = self._parts.get(target)
        if held is None:
            collection = self.library.of(target.collection)
            document = self.library.document(target)
            home = collection.home if collection is not None else None
            held = self._parts[target] = part_of(document, target.place, target.collection, home)
            for section in held.unknown:
                self.findings.warn(f"{held.at(section)}: section {section!r:.60} means nothing here and is ignored")
            self._register(target, held)
        return held

    def composed(self, target: Target) -> Composed:
        """The bundle, whole. Raises BadRequest with file and line; when findings collect, what can be had of it."""
        return self._compose(target, ())[0]

    def _compose(self, target: Target, chain: tuple[Target, ...]) -> tuple[Composed, bool]:
        """And whether nothing of it was skipped because it is in `chain`."""
        if (held := self._whole.get(target)) is not None:
            return held, True
        self._loads += 1
        part = self.part(target)
        if len(chain) >= MAX_DEPTH or self._loads > MAX_LOADS:
            message = f"{part.at()}: bundles include each other deeper than {MAX_DEPTH} or more than {MAX_LOADS} times"
            raise BadRequest(INVALID, message)
        chain = (*chain, target)
        below, is_whole = Composed(), True
        for include in part.includes:
            found = self.resolve(include, target)
            if found is None:
                below = replace(below, is_partial=below.is_partial or self._is_foreign(include))
                continue
            if found in chain:
                self._circle(include, found, chain)
                is_whole = False
                continue
            included, is_included_whole = self._compose(found, chain)
            below = compose(below, included)
            is_whole = is_whole and is_included_whole
        result = compose(without(below, part.exclude), part.own)
        if is_whole:
            self._whole[target] = result
        return result, is_whole

    def resolve(self, include: Include, target: Target) -> Target | None:
        """The document that is meant; None when it isn't here, which the findings then know."""
        text = include.text
        if "://" in text or text.startswith(("git+", "zip+")):
            return self._by_address(include, target)
        if include.is_profile:
            found = self._profile(text, target)
        elif ":" in text:
            found = self._by_namespace(text, target)
        else:
            found = self._by_path_or_name(text, target)
        if found is None:
            self._missing(include, target)
        return found

    def _by_address(self, include: Include, target: Target) -> Target | None:
        try:
            uri = SourceUri.parse(include.text)
        except ValueError as error:
            self.findings.problem(include.at, f"include: {error}", optional=include.optional)
            return None
        held = self.library.tree(uri.key, target.collection)
        if held is None:
            self.findings.want(uri.key, include.at, optional=include.optional)
            return None
        index, tree = held
        place = Place(tree).find_bundle(uri.subdirectory)
        if place is None:
            if self.findings.part_is_left_out(f"{uri.key}#subdirectory={uri.subdirectory}", include.at):
                return None
            where = uri.subdirectory or "bundle.md or bundle.yaml"
            self.findings.problem(include.at, f"there is no {where} in {uri.key}", optional=include.optional)
            return None
        return Target(index, place)

    def _by_namespace(self, text: str, target: Target) -> Target | None:
        name, _, path = text.partition(":")
        root = self.library.namespace(name, target.collection, target.place.tree)
        place = root.place.find_bundle(path) if root is not None else None
        if root is not None and place is not None:
            return Target(root.collection, place)
        return self.library.profile_in(name, path)

    def _by_path_or_name(self, text: str, target: Target) -> Target | None:
        if text.startswith(("./", "../")) or "/" in text:
            place = target.place.folder.find_bundle(text)
            return Target(target.collection, place) if place is not None else None
        own = self.library.own(text) if target.collection == OWN else None
        return own or self._root_of(text, target)

    def _root_of(self, name: str, target: Target) -> Target | None:
        root = self.library.namespace(name, target.collection, target.place.tree)
        if root is None:
            return None
        collection = self.library.of(root.collection)
        if collection is not None and collection.is_bundled:
            return self.library.profile_in(BUNDLED_NAME, BUNDLED_ROOT)
        if collection is not None and root.place == collection.home:
            bundle = collection.root_bundle()
            return Target(root.collection, bundle) if bundle is not None else None
        place = root.place.bundle_file()
        return Target(root.collection, place) if place is not None else None

    def _profile(self, name: str, target: Target) -> Target | None:
        """The older format's `extends`: a profile's name, without a namespace one of the same collection."""
        namespace, _, stem = name.rpartition(":")
        if namespace:
            return self.library.profile_in(namespace, stem)
        collection = self.library.of(target.collection)
        if collection is None:
            return self.library.own(stem) or self.library.profile_in(BUNDLED_NAME, stem)
        return self.library.profile_in(collection.name, stem)

    def _is_foreign(self, include: Include) -> bool:
        """It names a profile of a collection that isn't here. Whoever inspects one collection can't know the others."""
        name, colon, _ = include.text.rpartition(":")
        return include.is_profile and bool(colon) and all(one.name != name for one in self.library.collections)

    def _missing(self, include: Include, target: Target) -> None:
        if self._is_foreign(include):
            self.findings.missing(include.at, f"there is no profile {include.text!r:.200}")
            return
        what = "profile" if include.is_profile else "bundle"
        name = include.text
        collection = self.library.of(target.collection)
        if include.is_profile and ":" not in name and collection is not None:
            name = f"{collection.name}:{name}"
        hint = ""
        namespace = name.partition(":")[0]
        if ":" in name and self.library.namespace(namespace, target.collection, target.place.tree) is None:
            hint = f": nothing here has the name {namespace!r}; include its repository by its address, or install it"
        self.findings.problem(include.at, f"there is no {what} {name!r:.200}{hint}", optional=include.optional)

    def _circle(self, include: Include, found: Target, chain: tuple[Target, ...]) -> None:
        names = [self._shown(one) for one in (*chain[chain.index(found) :], found)]
        path = " -> ".join(names)
        if include.is_profile:
            raise BadRequest(INVALID, f"{include.at}: profiles extend each other in a circle: {path}")
        self.findings.warn(f"{include.at}: left out, because bundles include each other in a circle: {path}")

    def _shown(self, target: Target) -> str:
        if not self.part(target).is_old:
            return target.place.shown
        return self.library.name_of(target, target.place.stem)

    def _register(self, target: Target, part: Part) -> None:
        """The names that a bundle brings along: its own, and that of the bundle above it in its tree."""
        collection = self.library.of(target.collection)
        if collection is None or collection.is_bundled:
            return
        folder = part.place.folder
        root = folder.below(part.namespace_root) if part.namespace_root else folder
        collection.register(folder.tree, part.name, root or folder)
        above = folder
        while above.path:
            above = above.folder
            found = above.bundle_file()
            if found is not None and found != part.place and is_bundle_at(found):
                collection.register(folder.tree, bundle_name(found), above)
                return


def is_bundle_at(place: Place) -> bool:
    try:
        return is_bundle(place.document(INVALID))
    except BadRequest:
        return False
