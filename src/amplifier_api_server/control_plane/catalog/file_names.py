"""Which names of strangers' files may become files here: one rule for repositories and archives.

Owns what a relative path must look like, and that no two of one tree mean the same file anywhere. Invariant: a path that
passed leads to a plain file below the folder that it is joined to, on Linux and on file systems that fold case.
"""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath

MAX_PATH_CHARS = 400
MAX_DEPTH = 20
_MAX_NAME_BYTES = 255  # NAME_MAX
_FIRST_PRINTABLE = 32
_DELETE = 127


class UnsafeName(ValueError):
    """A name that is not taken; the message says why, in a clause."""


def safe_path(name: str) -> PurePosixPath:
    """The relative path that `name` is. Raises UnsafeName."""
    path = PurePosixPath(name)
    if not name or not path.parts or name.endswith("/") or "//" in name:
        raise UnsafeName("is no file's name")
    if path.is_absolute() or ".." in path.parts or "." in name.split("/") or "\\" in name:
        raise UnsafeName("does not stay in its folder")
    if any(ord(char) < _FIRST_PRINTABLE or ord(char) == _DELETE or 0xD800 <= ord(char) < 0xE000 for char in name):  # noqa: PLR2004 - surrogates: bytes that are no UTF-8
        raise UnsafeName("holds control characters or is no UTF-8")
    if len(name) > MAX_PATH_CHARS or any(len(part.encode()) > _MAX_NAME_BYTES for part in path.parts):
        raise UnsafeName("is too long")
    if len(path.parts) > MAX_DEPTH:
        raise UnsafeName("is nested too deeply")
    return path


def is_git_folder(part: str) -> bool:
    """Whether some file system takes this name for `.git`: other case, ignorable characters, NTFS's short form."""
    bare = "".join(char for char in part if unicodedata.category(char) != "Cf")
    folded = unicodedata.normalize("NFKC", bare).casefold().partition(":")[0].rstrip(". ")
    return folded in {".git", "git~1"}


def is_of_a_desktop(path: PurePosixPath) -> bool:
    """Whether it is what macOS and Windows put beside people's files, and into their archives."""
    return path.parts[0] == "__MACOSX" or path.name.startswith("._") or path.name in {".DS_Store", "Thumbs.db"}


class TakenNames:
    """The paths of one tree, so that none is another's double."""

    def __init__(self) -> None:
        self._taken: dict[str, tuple[str, bool]] = {}  # by folded path: as it is written, and whether it is a folder

    def take(self, path: PurePosixPath) -> None:
        """Raises UnsafeName where the file, or a folder it lies in, collides with one that was taken."""
        steps = [(path.as_posix(), False), *((above.as_posix(), True) for above in path.parents if above.parts)]
        for text, is_folder in steps:
            there = self._taken.get(_folded(text))
            if there is not None and (there != (text, is_folder) or not is_folder):
                raise UnsafeName("is there twice" if there == (text, False) else f"collides with {there[0][:100]!r}")
        self._taken.update({_folded(text): (text, is_folder) for text, is_folder in steps})


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
