"""Trees: folders of plain files, each kept once under the hash of its content.

Owns keeping, finding and deleting them; what is still needed is its caller's to know. Invariants: a kept folder is never
changed; it holds regular files and folders only, with modes of ours; the same names, bytes and executable bits are the
same hash anywhere; what has its hash's name is on the disk, whatever happens to the machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from amplifier_api_server.control_plane.catalog.source_limits import Footprint
from amplifier_api_server.control_plane.pods import syscalls
from amplifier_api_server.control_plane.pods.trees import Size, open_folder
from amplifier_api_server.control_plane.pods.trees import measure as measure_folder
from amplifier_api_server.tenants.errors import Invalid

_CHUNK_BYTES = 256 * 1024
_HASH = re.compile(r"[0-9a-f]{64}")
_MOST_ENTRIES = 1_000_000  # of one tree: far more than `collections.max_files`
_MOST_SIZES = 20_000
_STAGING = ".new-"
_ASIDE = ".old-"


@dataclass(frozen=True, slots=True)
class KeptTree:
    """What was kept: its room on the disk, and its files and folders (`source_limits`)."""

    hash: str
    size_bytes: int
    files: int


class Trees:
    """The folders below one folder. Everything here that touches many files blocks: call it in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[str, Size] = {}  # a tree is never changed

    def new_folder(self) -> Path:
        """A new empty folder on the same file system, to make a tree in; `delete` it, whatever is left in it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=_STAGING, dir=self._folder))

    def path(self, tree: str) -> Path:
        """Where a tree's files lie, whether it is there or not."""
        if not _HASH.fullmatch(tree):
            raise ValueError(f"{tree[:80]!r} is no tree's hash")
        return self._folder / tree

    def has(self, tree: str) -> bool:
        return self.path(tree).is_dir()

    def keep(self, folder: Path) -> KeptTree:
        """Move `folder` (of this file system) to its hash's place; a tree that is there already stays, and is young again.

        It is durable when this returns. One sync of the file system: of 20,000 files it took 0.4 s, an fsync of each 42 s.
        Blocks. Raises Invalid (`invalid_archive`) for anything but regular files and folders.
        """
        kept = measure(folder)
        target = self.path(kept.hash)
        is_there = target.is_dir()
        if not is_there:
            syscalls.syncfs(folder)  # before it has its name, so that no crash leaves that with half of its content
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(folder, ignore_errors=True)
        else:
            if is_there:  # and was deleted since
                syscalls.syncfs(target)
        os.utime(target)
        _sync_names_in(self._folder)
        return kept

    def size(self, tree: str) -> Size:
        """What a kept tree takes on the disk; nothing where it is not there. Blocks where it is asked for the first time."""
        found = self._sizes.get(tree)
        if found is None:
            try:
                folder = open_folder(self.path(tree))
            except OSError:
                return Size()
            try:
                found = measure_folder(folder, most_entries=_MOST_ENTRIES)
            finally:
                os.close(folder)
            while len(self._sizes) >= _MOST_SIZES:
                self._sizes.pop(next(iter(self._sizes)), None)
            self._sizes[tree] = found
        return found

    def touch(self, tree: str) -> None:
        """Its age begins anew."""
        with contextlib.suppress(OSError):
            os.utime(self.path(tree))

    def unchanged_for(self, seconds: float) -> list[str]:
        """Trees that nobody kept or touched since; leavings of a process that was killed are deleted. Blocks."""
        oldest = time.time() - seconds
        found = []
        for entry in os.scandir(self._folder) if self._folder.is_dir() else ():
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_mtime > oldest:
                    continue
                if _HASH.fullmatch(entry.name):
                    found.append(entry.name)
                elif entry.name.startswith((_STAGING, _ASIDE)):
                    shutil.rmtree(entry.path, ignore_errors=True)
        return found

    def set_aside(self, tree: str) -> Path | None:
        """Take a tree out of its place, at once: from now on it is not there. None: it was not. `delete` it then."""
        aside = self._folder / f"{_ASIDE}{secrets.token_hex(8)}"
        try:
            self.path(tree).rename(aside)
        except OSError:
            return None
        return aside

    def delete(self, folder: Path) -> None:
        """Delete what `set_aside` or `new_folder` gave. Blocks."""
        shutil.rmtree(folder, ignore_errors=True)


def _sync_names_in(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def measure(folder: Path) -> KeptTree:
    """Check every entry, set its mode, and hash it all: names in order, the executable bit, sizes and bytes."""
    digest = hashlib.sha256()
    footprint = Footprint()
    for name, path, is_executable in sorted(_files_in(folder, "")):
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            digest.update(len(name).to_bytes(4) + name + bytes([is_executable]) + length.to_bytes(8))
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        footprint.add(PurePosixPath(os.fsdecode(name)), length)
    return KeptTree(digest.hexdigest(), footprint.bytes, footprint.files)


def _files_in(folder: Path, prefix: str) -> Iterator[tuple[bytes, Path, bool]]:
    folder.chmod(0o755)
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                yield from _files_in(folder / entry.name, name + "/")
            elif stat.S_ISREG(mode):
                is_executable = bool(mode & stat.S_IXUSR)
                (folder / entry.name).chmod(0o755 if is_executable else 0o644)
                yield os.fsencode(name), folder / entry.name, is_executable
            else:
                raise Invalid(f"{name[:100]!r} is neither a file nor a folder", code="invalid_archive")
