"""A commit's files, read from a repository's objects and written by ourselves: git checks nothing out.

Owns what of a tree becomes a file. Links, submodules and names that are no file's here are left out and told; nothing of
them is followed, fetched or run. No filter, no attribute, no hook of the repository has a say in what is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from amplifier_api_server.control_plane.catalog.file_names import TakenNames, UnsafeName, is_git_folder, safe_path
from amplifier_api_server.control_plane.catalog.source_limits import FetchLimits, Footprint
from amplifier_api_server.tenants.errors import Invalid, TooLarge

_CHUNK_BYTES = 256 * 1024
_MAX_WARNINGS = 50  # of one source; one more says how many there were
_EXECUTABLE, _LINK, _SUBMODULE = "100755", "120000", "160000"
_MAX_HEADER_BYTES = 200


@dataclass(frozen=True, slots=True)
class Blob:
    """A file of a commit."""

    path: PurePosixPath
    is_executable: bool
    size_bytes: int


@dataclass(slots=True)
class Listing:
    """What of a commit is wanted, by object."""

    blobs: dict[str, list[Blob]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    _left_out: int = 0

    def warn(self, text: str) -> None:
        self._left_out += 1
        if self._left_out <= _MAX_WARNINGS:
            self.warnings.append(text)
        elif self._left_out == _MAX_WARNINGS + 1:
            self.warnings.append("more was left out")


def read_listing(listing: bytes, limits: FetchLimits) -> Listing:
    """What `git ls-tree -r -z -l --full-tree` says. Raises TooLarge (`source_too_large`), and what
    `limits.admit` does.
    """
    found, taken = Listing(), TakenNames()
    footprint = Footprint()
    for entry in filter(None, listing.split(b"\0")):
        head, _, raw_name = entry.partition(b"\t")
        mode, _, oid, size, *_ = [*head.decode("ascii", "replace").split(), "", "", "", ""]
        name = raw_name.decode("utf-8", "surrogateescape")
        shown = name.encode("utf-8", "replace").decode()[:200]
        if mode in (_LINK, _SUBMODULE):
            kind = "a link" if mode == _LINK else "a submodule"
            found.warn(f"{shown!r} is {kind}: it was left out")
            continue
        try:
            path = safe_path(name)
            if any(map(is_git_folder, path.parts)):
                raise UnsafeName("is git's own")
            taken.take(path)
        except UnsafeName as error:
            found.warn(f"{shown!r} {error}: it was left out")
            continue
        length = int(size) if size.isdigit() else limits.max_bytes + 1
        footprint.add(path, length)
        if not footprint.is_within(limits.max_bytes, limits.max_files):
            raise TooLarge(
                f"the repository has more than {limits.max_files} files and folders or {limits.max_bytes} bytes",
                code="source_too_large",
            )
        found.blobs.setdefault(oid, []).append(Blob(path, mode == _EXECUTABLE, length))
    if not found.blobs:
        raise Invalid("the repository holds no file", code="invalid_archive")
    limits.admit(footprint)
    return found


def write_files(batch: IO[bytes], wanted: Listing, into: Path) -> None:
    """Write what `git cat-file --batch` says of the wanted objects, in their order, below the new folder `into`. Blocks.

    Raises Invalid (`invalid_archive`) when an object isn't what the listing said.
    """
    into.mkdir(mode=0o755)
    for oid, blobs in wanted.blobs.items():
        head = batch.readline(_MAX_HEADER_BYTES).decode("ascii", "replace").split()
        if head != [oid, "blob", str(blobs[0].size_bytes)]:
            raise Invalid(f"the repository lacks the content of {blobs[0].path}", code="invalid_archive")
        targets = [into / blob.path for blob in blobs]
        for target in targets:
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with targets[0].open("xb") as file:
            for chunk in _exactly(batch, blobs[0].size_bytes):
                file.write(chunk)
        for target in targets[1:]:
            with targets[0].open("rb") as source, target.open("xb") as copy:
                while chunk := source.read(_CHUNK_BYTES):
                    copy.write(chunk)
        for target, blob in zip(targets, blobs, strict=True):
            target.chmod(0o755 if blob.is_executable else 0o644)
        batch.read(1)  # the newline after each object


def _exactly(batch: IO[bytes], count: int) -> Iterator[bytes]:
    while count:
        chunk = batch.read(min(count, _CHUNK_BYTES))
        if not chunk:
            raise Invalid("the repository's content ends too early", code="invalid_archive")
        count -= len(chunk)
        yield chunk
