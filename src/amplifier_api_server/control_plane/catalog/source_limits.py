"""What one fetch may take, and what it brought: the words of everything that is fetched for a collection."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Of one source. A collection's job lowers them by what its earlier sources took."""

    max_bytes: int
    max_files: int
    timeout_seconds: float


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
