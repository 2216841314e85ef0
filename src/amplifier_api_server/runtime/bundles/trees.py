"""Places in pinned trees: paths that can't leave.

Invariant: a `Place` is below its tree's root, by its words (no `..` leads out) and on the disk (no component is a
symbolic link). Trees are named by their content, so what was parsed from one is kept and used again.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from amplifier_api_server.runtime.failures import BadRequest
from amplifier_api_server.runtime.frontmatter import Document, parse, parse_yaml, read_text

YAML_SUFFIXES = (".yaml", ".yml")
BUNDLE_FILES = ("bundle.md", "bundle.yaml", "bundle.yml")  # what a folder means, in this order
MAX_ENTRIES = 500  # of one folder
_MAX_KEPT_CHARS = 4 * 1024 * 1024  # of parsed documents' text: five times foundation's whole bundle
_KEEPING_CHARS = 256  # what a document costs beside its text


@dataclass(frozen=True, slots=True)
class Tree:
    """One repository or archive on the disk. Without `root` there is nothing in it."""

    label: str  # how errors name it
    uri: str = ""  # `SourceUri.key`
    content_hash: str = ""  # empty: what comes with the runtime
    root: Path | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A path in a tree: `path` is relative, with slashes, normal; empty for the root."""

    tree: Tree
    path: str = ""

    @property
    def shown(self) -> str:
        """As errors name it."""
        return posixpath.join(self.tree.label, self.path) if self.tree.label else self.path

    @property
    def on_disk(self) -> Path:
        assert self.tree.root is not None
        return self.tree.root / self.path

    @property
    def folder(self) -> Place:
        return Place(self.tree, posixpath.dirname(self.path))

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]

    def below(self, relative: str) -> Place | None:
        """The place that `relative` names from here; None when that leaves the tree or is no path."""
        if "\x00" in relative or "\\" in relative:
            return None
        path = posixpath.normpath(posixpath.join(self.path, relative.lstrip("/")))
        if path == ".." or path.startswith("../"):
            return None
        return Place(self.tree, "" if path == "." else path)

    def kind(self) -> Literal["file", "folder"] | None:
        """What is there; None for nothing, for what is neither, and for anything behind a link."""
        if self.tree.root is None:
            return None
        at = str(self.tree.root)
        mode = stat.S_IFDIR
        for part in self.path.split("/") if self.path else ():
            at = f"{at}/{part}"
            try:
                mode = os.lstat(at).st_mode
            except (OSError, ValueError):
                return None
            if stat.S_ISLNK(mode):
                return None
        return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else None

    def is_file(self) -> bool:
        return self.kind() == "file"

    def is_folder(self) -> bool:
        return self.kind() == "folder"

    def entries(self, code: str) -> list[Place]:
        """What is in this folder, by name, hidden ones and links left out. Raises BadRequest when it is too much."""
        if not self.is_folder():
            return []
        found: list[str] = []
        with os.scandir(self.on_disk) as listing:
            for entry in listing:
                if not entry.name.startswith((".", "__")) and not entry.is_symlink():
                    found.append(entry.name)
                if len(found) > MAX_ENTRIES:
                    raise BadRequest(code, f"{self.shown or 'it'} holds more than {MAX_ENTRIES} entries")
        return [Place(self.tree, posixpath.join(self.path, name)) for name in sorted(found)]

    def text(self, code: str) -> str:
        """Raises BadRequest with `code`."""
        if not self.is_file():
            raise BadRequest(code, f"{self.shown} is no regular file")
        return read_text(self.on_disk, self.shown, code)

    def document(self, code: str) -> Document:
        """The Markdown or YAML document here. Raises BadRequest with `code`."""
        return _documents.get(self, code)

    def bundle_file(self) -> Place | None:
        """The bundle that this place means: itself, or a folder's bundle file."""
        match self.kind():
            case "file":
                return self
            case "folder":
                for name in BUNDLE_FILES:
                    found = self.below(name)
                    if found is not None and found.is_file():
                        return found
        return None

    def find_bundle(self, relative: str) -> Place | None:
        """The bundle that `relative` means from here: exactly that, or with an ending, or in a folder of that name."""
        for ending in ("", ".yaml", ".yml", ".md"):
            place = self.below(f"{relative}{ending}")
            found = place.bundle_file() if place is not None else None
            if found is not None:
                return found
        return None


class _Documents:
    """Parsed documents of trees named by content: the same file is not parsed for each session. Bounded by text."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], tuple[Document, int]] = OrderedDict()
        self._chars = 0

    def get(self, place: Place, code: str) -> Document:
        key = (str(place.tree.root), place.path)
        if place.tree.content_hash and (held := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return held[0]
        text = place.text(code)
        read = parse_yaml if place.path.endswith(YAML_SUFFIXES) else parse
        document = read(text, place.shown, code)
        if place.tree.content_hash:
            self._keep(key, document, len(text) + _KEEPING_CHARS)
        return document

    def _keep(self, key: tuple[str, str], document: Document, chars: int) -> None:
        self._kept[key] = (document, chars)
        self._chars += chars
        while self._chars > _MAX_KEPT_CHARS:
            _, (_, gone) = self._kept.popitem(last=False)
            self._chars -= gone


_documents = _Documents()
