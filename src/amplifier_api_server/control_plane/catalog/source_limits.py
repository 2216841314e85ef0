"""What one fetch may take, and what it brought: the words of everything that is fetched for a collection.

Bytes are room on the disk: whole blocks, and one at least for every file and every folder, so that a million empty ones
are not nothing. Files are files and folders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

BLOCK_BYTES = 4096  # of the usual file systems; an inode with its name takes less, and no more than that


def room_for(size_bytes: int) -> int:
    """What a file of this size takes on the disk."""
    return max(1, -(-size_bytes // BLOCK_BYTES)) * BLOCK_BYTES


@dataclass(slots=True)
class Footprint:
    """What a tree is going to take, added up before anything of it is written."""

    bytes: int = 0
    files: int = 0
    _folders: set[PurePosixPath] = field(default_factory=set)

    def add(self, path: PurePosixPath, size_bytes: int) -> None:
        """One more file, with the folders that it lies in."""
        self.bytes += room_for(size_bytes)
        self.files += 1
        for folder in path.parents[:-1]:
            if folder in self._folders:
                break
            self._folders.add(folder)
            self.bytes += BLOCK_BYTES
            self.files += 1

    def is_within(self, max_bytes: int, max_files: int) -> bool:
        return self.bytes <= max_bytes and self.files <= max_files


# Asked before a tree is written, from any thread. Raises InsufficientStorage where there is no room for it.
Admit = Callable[[Footprint], None]


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Of one source. A collection's job lowers them by what its earlier sources took."""

    max_bytes: int
    max_files: int
    timeout_seconds: float
    admit: Admit = lambda _: None


@dataclass(frozen=True, slots=True)
class FetchedTree:
    """A source as it was kept."""

    tree: str  # in Trees
    commit: str | None  # of git, in full; None for a zip
    size_bytes: int
    files: int
    warnings: tuple[str, ...] = ()  # links, submodules and odd names that were left out


@dataclass(frozen=True, slots=True)
class WheelFile:
    """One wheel that was downloaded."""

    file_name: str
    name: str  # normalised
    version: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FetchedWheels:
    """All wheels that were asked for and what they need, as one tree; None where that is nothing."""

    tree: str | None
    wheels: tuple[WheelFile, ...]
    size_bytes: int
