"""Making a backup, while a server runs or none does.

Owns what is in it, and the order: collections, database, collections that came meanwhile, then sessions' folders. Trees of
collections never change, and the database names only trees that were there, so that each tree it names is in the archive. The
database is one consistent copy. Files of a session that works meanwhile are each as they were at some moment after that copy:
never older than its transcript, maybe newer. Refuses whatever is neither file, folder nor symbolic link. Invariant: the
archive has its name only when it is whole and on the disk; everything here blocks.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import os
import secrets
import sqlite3
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from amplifier_api_server import __version__
from amplifier_api_server.control_plane.backups import ABOUT, CHECKSUMS, DATABASE, FORMAT, LINKS
from amplifier_api_server.control_plane.clock import SystemClock
from amplifier_api_server.control_plane.pods.trees import open_folder
from amplifier_api_server.tenants.errors import Conflict, Unavailable

_COMPRESSION = 1  # most of it is compressed already, or small; more takes the processor from the server
_DEEPEST = 256
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LOOKS = 5  # for a session's folder, which may be on its way between two places


@dataclass(slots=True)
class Written:
    """What a backup has."""

    files: int = 0
    bytes: int = 0
    sessions: int = 0
    left_out: int = 0  # sockets, pipes, and what went away or could not be read meanwhile


class _Archive:
    """The tar that is being written, with the checksums of what is in it so far."""

    def __init__(self, file: IO[bytes], scratch: Path) -> None:
        self.written = Written()
        self._zip = gzip.GzipFile(fileobj=file, mode="wb", compresslevel=_COMPRESSION)
        self._tar = tarfile.TarFile(fileobj=self._zip, mode="w", format=tarfile.PAX_FORMAT)
        self._sums = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - closed with the archive
        self._links = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115

    def add_folder(self, name: str, mode: int) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, mode & 0o777
        self._tar.addfile(info)

    def add_bytes(self, name: str, content: bytes) -> None:
        self._add(name, io.BytesIO(content), len(content), 0o600, 0.0)

    def add_file(self, name: str, descriptor: int) -> None:
        """What the descriptor reads: as many bytes as it has now, whatever becomes of it meanwhile."""
        found = os.fstat(descriptor)
        with open(descriptor, "rb", closefd=False) as file:
            self._add(name, file, found.st_size, found.st_mode & 0o777, found.st_mtime)
        self.written.files += 1
        self.written.bytes += found.st_size

    def add_link(self, name: str, target: str) -> None:
        self._links.write(json.dumps({"path": name, "target": target}).encode() + b"\n")

    def _add(self, name: str, file: IO[bytes], size: int, mode: int, mtime: float) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, mode, mtime
        reader = _Exactly(file, size)
        self._tar.addfile(info, reader)
        line = {"path": name, "size": size, "sha256": reader.digest.hexdigest()}
        self._sums.write(json.dumps(line).encode() + b"\n")

    def finish(self) -> None:
        self._add(LINKS, self._links, _rewound(self._links), 0o600, 0.0)
        info = tarfile.TarInfo(CHECKSUMS)
        info.size, info.mode = _rewound(self._sums), 0o600
        self._tar.addfile(info, self._sums)
        self._tar.close()
        self._zip.close()

    def close(self) -> None:
        self._sums.close()
        self._links.close()


def _rewound(file: IO[bytes]) -> int:
    """To its start; how long it is."""
    size = file.tell()
    file.seek(0)
    return size


class _Exactly(io.RawIOBase):
    """A file's first `size` bytes, with zeros for those that were cut off meanwhile; and their SHA-256."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        piece = self._file.read(wanted)
        piece += bytes(wanted - len(piece))
        self._left -= len(piece)
        self.digest.update(piece)
        return piece


def back_up(data_dir: Path, target: Path, revision: str | None) -> Written:
    """Write the archive. Raises Conflict where there is a file of its name, or another backup writes it; OSError."""
    if os.path.lexists(target):
        raise Conflict(f"{target} is there already; name another file, or move it away")
    with _partial(target) as (file, scratch):
        archive = _Archive(file, scratch)
        try:
            _fill(archive, data_dir, scratch, revision)
            archive.finish()
        finally:
            archive.close()
        file.flush()
        os.fsync(file.fileno())
    return archive.written


def _fill(archive: _Archive, data_dir: Path, scratch: Path, revision: str | None) -> None:
    about = {"format": FORMAT, "version": __version__, "revision": revision, "made_at": SystemClock().now().isoformat()}
    archive.add_bytes(ABOUT, json.dumps(about).encode())
    for name in ("keys.json", "secrets"):
        _add_ours(archive, data_dir, name)
    known = _add_trees(archive, data_dir, frozenset())
    copy = scratch / DATABASE
    _copy_database(data_dir / DATABASE, copy)
    with _opened(copy) as descriptor:
        archive.add_file(DATABASE, descriptor)
    _add_trees(archive, data_dir, known)
    archive.add_folder("workspaces", 0o700)
    tenants: set[str] = set()
    for tenant_id, session_id in _sessions(copy):
        if (folder := _session_folder(data_dir, tenant_id, session_id)) is None:
            continue
        try:
            if tenant_id not in tenants:
                tenants.add(tenant_id)
                archive.add_folder(f"workspaces/{tenant_id}", 0o700)
            _add_tree(archive, folder, f"workspaces/{tenant_id}/{session_id}")
            archive.written.sessions += 1
        finally:
            os.close(folder)


def _copy_database(source: Path, target: Path) -> None:
    """A consistent copy, in one piece: copied in steps it would begin anew whenever the server writes.

    Writers go on meanwhile (WAL). Raises Unavailable.
    """
    try:
        with (
            contextlib.closing(sqlite3.connect(source, timeout=30)) as reading,
            contextlib.closing(sqlite3.connect(target)) as writing,
        ):
            reading.backup(writing)
            writing.execute("pragma journal_mode=delete")  # one file, without a log beside it
    except sqlite3.Error as error:
        raise Unavailable(f"the database, {source}, can't be copied: {error}") from error


def _sessions(copy: Path) -> list[tuple[str, str]]:
    """Those that may have files: a closed session's are deleted."""
    query = "select tenant_id, id from session where status != 'closed' order by tenant_id, id"
    try:
        with contextlib.closing(sqlite3.connect(copy)) as db:
            return db.execute(query).fetchall()
    except sqlite3.Error as error:
        raise Unavailable(f"the database's sessions can't be read: {error}") from error


def _session_folder(data_dir: Path, tenant_id: str, session_id: str) -> int | None:
    """A descriptor of the session's folder, at rest or in a runtime; it stays the same folder when that moves."""
    for _ in range(_LOOKS):
        places = [data_dir / "workspaces" / tenant_id / session_id]
        with contextlib.suppress(FileNotFoundError):
            places += [home / "workspace" / session_id for home in (data_dir / "runtimes").iterdir()]
        for place in places:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return None


def _add_trees(archive: _Archive, data_dir: Path, known: frozenset[str]) -> frozenset[str]:
    """Collections' trees that are not in the archive yet; the names of all. What is being made is left out."""
    folder = data_dir / "collections"
    there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    names = frozenset(name for name in there if not name.startswith("."))
    if not known and names:
        archive.add_folder("collections", 0o700)
    for name in sorted(names - known):
        with contextlib.suppress(FileNotFoundError), _opened(folder / name, os.O_DIRECTORY) as descriptor:
            _add_tree(archive, descriptor, f"collections/{name}")
    return names | known


def _add_ours(archive: _Archive, data_dir: Path, name: str) -> None:
    """A file or folder of the server's own, where it is there."""
    with contextlib.suppress(FileNotFoundError), _opened(data_dir / name) as descriptor:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            _add_tree(archive, descriptor, name)
        else:
            archive.add_file(name, descriptor)


def _add_tree(archive: _Archive, folder: int, name: str) -> None:
    """Everything below an open folder; whoever works in it may change every name meanwhile."""
    archive.add_folder(name, os.fstat(folder).st_mode)
    levels = [(os.dup(folder), name, _added(archive, folder, name))]
    try:
        while levels:
            here, path, folders = levels[-1]
            if not folders:
                os.close(levels.pop()[0])
                continue
            below = folders.pop()
            if len(levels) >= _DEEPEST:
                archive.written.left_out += 1
                continue
            try:
                inside = open_folder(below, dir_fd=here)
            except OSError:
                archive.written.left_out += 1
                continue
            inner = f"{path}/{below}"
            levels.append((inside, inner, []))
            archive.add_folder(inner, os.fstat(inside).st_mode)
            levels[-1][2].extend(_added(archive, inside, inner))
    finally:
        for here, _, _ in levels:
            os.close(here)


def _added(archive: _Archive, here: int, path: str) -> list[str]:
    """Add what is no folder; the names of the folders."""
    folders: list[str] = []
    with os.scandir(here) as entries:
        for entry in entries:
            name = f"{path}/{entry.name}"
            try:
                kind = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(kind):
                    folders.append(entry.name)
                elif stat.S_ISLNK(kind):
                    archive.add_link(name, os.readlink(entry.name, dir_fd=here))
                elif stat.S_ISREG(kind):
                    with _opened(entry.name, dir_fd=here) as descriptor:
                        if stat.S_ISREG(os.fstat(descriptor).st_mode):
                            archive.add_file(name, descriptor)
                else:
                    archive.written.left_out += 1
            except (FileNotFoundError, PermissionError):
                archive.written.left_out += 1
    return folders


@contextlib.contextmanager
def _opened(name: str | Path, flags: int = 0, *, dir_fd: int | None = None) -> Iterator[int]:
    descriptor = os.open(name, _READ | flags, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _partial(target: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A file that gets the name `target` when the block is done, and a folder for what is needed meanwhile.

    What earlier ones left that were killed is removed; one that goes on is told by its lock. Raises Conflict.
    """
    target = target.absolute()
    prefix = f".{target.name}.partial-"
    for path in target.parent.iterdir():
        if path.name.startswith(prefix):
            _remove_left(path)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        lock = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path = scratch / secrets.token_hex(4)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                yield file, scratch
            try:
                target.hardlink_to(path)  # unlike a renaming, this never replaces what somebody else put there
            except FileExistsError as error:
                raise Conflict(f"{target} was made by somebody else meanwhile") from error
            with _opened(target.parent, os.O_DIRECTORY) as folder:
                os.fsync(folder)
        finally:
            os.close(lock)
    finally:
        _remove(scratch)


def _remove_left(left: Path) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), _opened(left, os.O_DIRECTORY) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict("another backup is writing a file of this name") from error
        _remove(left)


def _remove(scratch: Path) -> None:
    for path in scratch.iterdir():
        path.unlink(missing_ok=True)
    scratch.rmdir()
