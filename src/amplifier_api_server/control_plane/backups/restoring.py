"""Bringing an installation back from a backup.

Owns what an archive may hold and how that gets into the data folder. Refuses an archive that is cut off, changed, of a newer
version, or holds anything but plain files and folders of an installation; and a folder that is not empty. Invariant: what a
restore that did not end has left is never served (`data_folder` refuses it) and is removed by the next restore; everything is
checked before any of it is in its place. Everything here blocks.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from amplifier_api_server.control_plane.backups import ABOUT, CHECKSUMS, CHUNK_BYTES, DATABASE, FORMAT, LINKS
from amplifier_api_server.control_plane.data_folder import LOCK_NAME, RESTORING, held, made
from amplifier_api_server.control_plane.migrations import head, is_known
from amplifier_api_server.control_plane.pods import syscalls
from amplifier_api_server.control_plane.pods.trees import open_folder
from amplifier_api_server.tenants.errors import Conflict, Invalid

_PLACES = re.compile(
    r"amplifier\.db|keys\.json|secrets(/[a-z_]+)?|workspaces(/[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+(/.+)?)?)?"
    r"|collections(/[0-9a-f]{64}(/.+)?)?",
    re.DOTALL,
)
_OF_OURS = frozenset((ABOUT, LINKS, CHECKSUMS))
_NOT_OURS = frozenset((LOCK_NAME, "lost+found"))  # may be in an empty folder: the latter is a file system's own
_MAX_LINE_BYTES = 64 * 1024
_MAX_ABOUT_BYTES = 64 * 1024
_DEEPEST = 300
_PRIVATE = 0o700


@dataclass(frozen=True, slots=True)
class Restored:
    """What was brought back."""

    files: int
    bytes: int
    version: str
    made_at: str


def restore(archive: Path, data_dir: Path) -> Restored:
    """Fill an empty data folder from the archive. Raises Conflict for a folder that is not empty, Invalid for an archive that
    can't be taken, SettingsError for a folder that can't be used, OSError.
    """
    with archive.open("rb") as file:
        _require_empty(data_dir)
        with held(made(data_dir, is_restoring=True)):
            _require_empty(data_dir)  # somebody else may have been here before us
            _remove_left(data_dir)
            staging = Path(tempfile.mkdtemp(prefix=RESTORING, dir=data_dir))
            try:
                found = _Unpacking(file, staging).run()
                _check_database(staging / DATABASE)
                _put_in_place(staging, data_dir)
            except BaseException:
                _remove_left(data_dir)
                raise
    return found


def _require_empty(data_dir: Path) -> None:
    """Empty but for a lock, or what a restore that did not end has left: where that is, nothing else was before."""
    there = [path.name for path in data_dir.iterdir()] if data_dir.is_dir() else []
    if any(name.startswith(RESTORING) for name in there):
        return
    if found := sorted(name for name in there if name not in _NOT_OURS):
        raise Conflict(f"{data_dir} is not empty ({', '.join(found[:3])}): restore into a folder that is")


def _remove_left(data_dir: Path) -> None:
    """What a restore that did not end has put here; its own folder last, because that is what tells of it."""
    left = [path for path in data_dir.iterdir() if path.name.startswith(RESTORING)]
    if left:
        for path in data_dir.iterdir():
            if path.name not in _NOT_OURS and path not in left:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for path in left:
            shutil.rmtree(path)


class _Unpacking:
    """One archive, read once, from its start to its end."""

    def __init__(self, file: IO[bytes], staging: Path) -> None:
        self._file = file
        self._staging = staging
        self._sums = hashlib.sha256()  # of the lines that `checksums` should have
        self._about: dict[str, Any] = {}
        self._modes: list[tuple[str, int]] = []
        self._files = self._bytes = 0
        self._is_whole = False

    def run(self) -> Restored:
        top = open_folder(self._staging)
        try:
            with gzip.GzipFile(fileobj=self._file) as unzipped, tarfile.open(fileobj=unzipped, mode="r|") as tar:
                for number, member in enumerate(tar):
                    self._take(tar, member, top, is_first=number == 0)
                while unzipped.read(CHUNK_BYTES):
                    pass  # to the very end, where gzip's own checksum is
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, UnicodeError) as error:
            raise Invalid(f"the archive is cut off or spoiled: {error}") from error
        finally:
            os.close(top)
        if not self._is_whole:
            raise Invalid("the archive is cut off: its checksums are missing")
        for name, mode in reversed(self._modes):  # a folder that nobody may write in, after what is in it
            (self._staging / name).chmod(mode)
        return Restored(self._files, self._bytes, str(self._about["version"]), str(self._about["made_at"]))

    def _take(self, tar: tarfile.TarFile, member: tarfile.TarInfo, top: int, *, is_first: bool) -> None:
        name = member.name
        if self._is_whole:
            raise Invalid("the archive has something behind its checksums")
        if is_first != (name == ABOUT):
            raise Invalid("this is no backup of this server: it does not begin with about.json")
        if not (member.isreg() or member.isdir()) or member.sparse is not None:
            raise Invalid(f"the archive has {name!r}, which is neither a plain file nor a folder")
        parts = name.split("/")
        is_ours = name in _OF_OURS
        if not (is_ours or _PLACES.fullmatch(name)) or not {"", ".", ".."}.isdisjoint(parts) or "\0" in name:
            raise Invalid(f"the archive has {name[:200]!r}, which is no place in a data folder")
        if len(parts) > _DEEPEST:
            raise Invalid(f"the archive has folders that are nested more than {_DEEPEST} deep")
        if member.isdir():
            self._folder(member, top)
            return
        reader = tar.extractfile(member)
        assert reader is not None, "it is a file"
        if name == CHECKSUMS:
            self._compare(reader)
        elif name == ABOUT:
            self._know(reader)
        elif name == LINKS:
            self._links(reader, member.size, top)
        else:
            self._write(reader, member, top)

    def _know(self, reader: IO[bytes]) -> None:
        content = reader.read(_MAX_ABOUT_BYTES)
        self._count(ABOUT, len(content), hashlib.sha256(content))
        try:
            self._about = dict(json.loads(content))
            number, _, _ = self._about["format"], self._about["version"], self._about["made_at"]
        except (ValueError, TypeError, KeyError) as error:
            raise Invalid("this is no backup of this server: its about.json can't be read") from error
        if number != FORMAT:
            raise Invalid(
                f"the archive is of a newer version of this server (format {number}, this one knows {FORMAT})"
            )
        _require_known(self._about.get("revision"))

    def _folder(self, member: tarfile.TarInfo, top: int) -> None:
        with self._parent(member.name, top) as (folder, last):
            try:
                os.mkdir(last, 0o700, dir_fd=folder)
            except FileExistsError as error:
                raise Invalid(f"the archive has {member.name!r} twice") from error
        if member.mode & 0o777 != _PRIVATE:
            self._modes.append((member.name, member.mode & 0o777))

    def _write(self, reader: IO[bytes], member: tarfile.TarInfo, top: int) -> None:
        digest = hashlib.sha256()
        with self._parent(member.name, top) as (folder, last):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                descriptor = os.open(last, flags, 0o600, dir_fd=folder)
            except FileExistsError as error:
                raise Invalid(f"the archive has {member.name!r} twice") from error
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                while piece := reader.read(CHUNK_BYTES):
                    digest.update(piece)
                    if piece.count(0) == len(piece):  # a hole stays a hole
                        file.seek(len(piece), os.SEEK_CUR)
                    else:
                        _write_all(file, piece)
                file.truncate(member.size)
                os.fchmod(descriptor, member.mode & 0o777)
                os.utime(descriptor, (member.mtime, member.mtime))
        self._count(member.name, member.size, digest)
        self._files += 1
        self._bytes += member.size

    def _links(self, reader: IO[bytes], size: int, top: int) -> None:
        """The symbolic links of sessions' folders; only now, so that nothing was written by way of one."""
        digest = hashlib.sha256()
        while line := reader.readline(_MAX_LINE_BYTES):
            digest.update(line)
            try:
                found = json.loads(line)
                path, target = str(found["path"]), str(found["target"])
            except (ValueError, TypeError, KeyError) as error:
                raise Invalid("the archive's list of links can't be read") from error
            if not path.startswith("workspaces/") or not _PLACES.fullmatch(path) or path.count("/") < 3:  # noqa: PLR2004
                raise Invalid(f"the archive has a link at {path[:200]!r}, where none may be")
            if not {"", ".", ".."}.isdisjoint(path.split("/")) or "\0" in path + target or not target:
                raise Invalid(f"the archive has a link at {path[:200]!r}, where none may be")
            with self._parent(path, top) as (folder, last):
                try:
                    os.symlink(target, last, dir_fd=folder)
                except FileExistsError as error:
                    raise Invalid(f"the archive has {path!r} twice") from error
        self._count(LINKS, size, digest)

    @contextlib.contextmanager
    def _parent(self, name: str, top: int) -> Iterator[tuple[int, str]]:
        """The folder that `name` is to be made in, opened one name after the other, and none of them a link."""
        *folders, last = name.split("/")
        current = os.dup(top)
        try:
            for one in folders:
                try:
                    inside = os.open(one, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
                except OSError as error:
                    raise Invalid(f"the archive has {name[:200]!r}, and nothing before it makes its folder") from error
                os.close(current)
                current = inside
            yield current, last
        finally:
            os.close(current)

    def _count(self, name: str, size: int, digest: Any) -> None:
        line = {"path": name, "size": size, "sha256": digest.hexdigest()}
        self._sums.update(json.dumps(line).encode() + b"\n")

    def _compare(self, reader: IO[bytes]) -> None:
        digest = hashlib.sha256()
        while piece := reader.read(CHUNK_BYTES):
            digest.update(piece)
        if digest.digest() != self._sums.digest():
            raise Invalid("the archive is spoiled: what is in it does not have the checksums that it was made with")
        self._is_whole = True


def _write_all(file: IO[bytes], piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]


def _check_database(path: Path) -> None:
    """Raise Invalid for one that is not whole or of a newer version; an older one `serve` migrates."""
    if not path.is_file():
        raise Invalid("the archive has no database")
    try:
        with contextlib.closing(sqlite3.connect(path)) as db:
            told = db.execute("pragma integrity_check(1)").fetchone()[0]
            revision = db.execute("select version_num from alembic_version").fetchone()
    except sqlite3.Error as error:
        raise Invalid(f"the archive's database can't be read: {error}") from error
    if told != "ok":
        raise Invalid(f"the archive's database is spoiled: {told[:200]}")
    _require_known(revision[0] if revision else None)


def _require_known(revision: str | None) -> None:
    if revision is not None and not is_known(revision):
        raise Invalid(
            f"the archive is of a newer version of this server (its database is at {revision}, this one knows up to "
            f"{head()}): install the version that it was made with"
        )


def _put_in_place(staging: Path, data_dir: Path) -> None:
    """Move everything up, once it is on the disk. The empty folder goes last: while it is there nobody serves this."""
    (staging / DATABASE).chmod(0o600)
    syscalls.syncfs(staging)
    for path in sorted(staging.iterdir()):
        path.rename(data_dir / path.name)
    syscalls.syncfs(data_dir)
    staging.rmdir()
    syscalls.syncfs(data_dir)
