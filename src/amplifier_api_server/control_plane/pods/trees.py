"""Folders that a tenant has filled, handled by the host: given to another user, deleted, copied, measured.

Owns every walk through such a tree. Refuses to follow a symbolic link or to use a path of more than one name: each step
is taken from an open folder's descriptor, so that no name that changes under the walk leads out of the tree. Invariant:
at most a bounded number of descriptors are open, and no depth, breadth or mode of a tree makes a walk recurse or fail.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_BATCH = 1000  # names held at once while deleting
DEEPEST = 128  # folders in folders that a walk through what may change counts, a descriptor for each
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's own are (stat(2))

Entry = tuple[int, str, os.stat_result]  # its folder's descriptor, its name, its lstat


class TreeError(Exception):
    """A tree changed while it was walked, or holds what it must not."""


def open_folder(name: str | Path, *, dir_fd: int | None = None) -> int:
    """A descriptor of a folder that is no symbolic link, also of one whose owner took the right to read it away.

    Raises OSError.
    """
    try:
        return os.open(name, _OPEN_FOLDER, dir_fd=dir_fd)
    except PermissionError:
        if not hasattr(os, "O_PATH"):
            raise
    _chmod(str(name), 0o700, dir_fd=dir_fd)
    return os.open(name, _OPEN_FOLDER, dir_fd=dir_fd)


def _chmod(name: str, mode: int, *, dir_fd: int | None) -> None:
    """Change the mode of this very entry: chmod(2) by name would follow a link that took its place."""
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if not stat.S_ISLNK(os.fstat(descriptor).st_mode):
            os.chmod(f"/proc/self/fd/{descriptor}", mode)
    finally:
        os.close(descriptor)


def give(folder_fd: int, uid: int) -> None:
    """Make `uid` owner and group of the folder and everything in it, without setuid and setgid bits; the folder is
    0700.

    Only while nobody who is not trusted can write there. Raises OSError or TreeError.
    """
    for parent_fd, name, found in _walk(folder_fd):
        if found.st_mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISLNK(found.st_mode):
            _chmod(name, stat.S_IMODE(found.st_mode) & 0o777, dir_fd=parent_fd)
        if (found.st_uid, found.st_gid) != (uid, uid):
            os.chown(name, uid, uid, dir_fd=parent_fd, follow_symlinks=False)
    os.fchown(folder_fd, uid, uid)
    os.fchmod(folder_fd, 0o700)


def _walk(folder_fd: int) -> Generator[Entry, None, None]:
    """Every entry below the folder, with one descriptor open at a time.

    Goes up by `..`, and makes sure that it came to where it went down: the tree must be quiet. Raises TreeError when it
    isn't.
    """
    current = os.dup(folder_fd)
    levels: list[tuple[tuple[int, int], list[str]]] = []
    try:
        folders = yield from _entries(current)
        while folders or levels:
            if folders:
                step = folders.pop()
                levels.append((_identity(current), folders))
            else:
                step = ".."
            arrived = open_folder(step, dir_fd=current)
            os.close(current)
            current = arrived
            if step != "..":
                folders = yield from _entries(current)
                continue
            expected, folders = levels.pop()
            if _identity(current) != expected:
                raise TreeError("a folder was moved while its tree was walked")
    finally:
        os.close(current)


def _entries(folder_fd: int) -> Generator[Entry, None, list[str]]:
    """Yields the folder's entries; returns the names of those that are folders."""
    folders: list[str] = []
    with os.scandir(folder_fd) as entries:
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(found.st_mode):
                folders.append(entry.name)
            yield folder_fd, entry.name, found
    return folders


def _identity(folder_fd: int) -> tuple[int, int]:
    found = os.fstat(folder_fd)
    return found.st_dev, found.st_ino


class Effort:
    """So many steps of deleting, of one tree or of several."""

    def __init__(self, steps: int, is_stopped: Callable[[], bool] = lambda: False) -> None:
        self.steps = steps
        self._is_stopped = is_stopped

    def step(self) -> None:
        """Take one. Raises SpentEffort where none is left, or it is to stop."""
        if self.steps <= 0 or self._is_stopped():
            raise SpentEffort("the deletion goes on another time")
        self.steps -= 1


class SpentEffort(TreeError):
    """What there was to be spent on a tree is spent; the tree is smaller now."""


def remove(name: str, *, dir_fd: int, effort: Effort) -> None:
    """Delete the entry and everything in it, as far as `effort` goes. Nothing to do when there is none.

    Raises OSError, and SpentEffort: call it again to go on, also for a tree that somebody fills while it is emptied. Nested
    folders are first moved up to the top, one by one, so that neither recursion nor a descriptor for each level is needed:
    a tenant may nest 100,000 of them.
    """
    try:
        if not _unlink_unless_folder(name, dir_fd):
            return
        top = open_folder(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    try:
        fresh = itertools.count(secrets.randbits(48))  # what an earlier call has moved has other names
        for entry in _until_empty(top, effort):
            if _unlink_unless_folder(entry, top):
                _remove_folder(top, entry, fresh, effort)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=dir_fd)


def _until_empty(folder_fd: int, effort: Effort) -> Generator[str, None, None]:
    """Names in the folder, listed again and again while whoever iterates takes them away. Raises SpentEffort."""
    while True:
        with os.scandir(folder_fd) as entries:
            names = [entry.name for entry in itertools.islice(entries, _BATCH)]
        if not names:
            return
        for name in names:
            effort.step()
            yield name


def _remove_folder(top: int, name: str, fresh: itertools.count[int], effort: Effort) -> None:
    """Delete a folder in `top`, after the folders in it were moved up to `top`, under fresh names."""
    folder = open_folder(name, dir_fd=top)
    try:
        for entry in _until_empty(folder, effort):
            if _unlink_unless_folder(entry, folder):
                # Moving a folder writes the `..` in it, so its mode matters; opening it makes that right.
                os.close(open_folder(entry, dir_fd=folder))
                _move_up(folder, entry, top, fresh)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=top)


def _unlink_unless_folder(name: str, dir_fd: int) -> bool:
    """Delete what is no folder; true when it is one, and stays."""
    if stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
        return True
    os.unlink(name, dir_fd=dir_fd)
    return False


def _move_up(folder: int, name: str, top: int, fresh: itertools.count[int]) -> None:
    for number in fresh:
        try:
            # Whatever has this name already stays, unless it is an empty folder, which was to be deleted anyway.
            os.rename(name, f".moved-{number}", src_dir_fd=folder, dst_dir_fd=top)
        except OSError as error:
            if error.errno not in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
                raise
        else:
            return


@dataclass(frozen=True, slots=True)
class Size:
    """What a tree takes up. `is_whole` is false when the walk stopped at a bound: it is at least this much."""

    bytes: int = 0
    entries: int = 0
    is_whole: bool = True


class _Count:
    """Adds up entries, a file with several names once."""

    def __init__(self) -> None:
        self.bytes = 0
        self.entries = 0
        self._linked: set[tuple[int, int]] = set()

    def add(self, found: os.stat_result) -> None:
        self.entries += 1
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            identity = (found.st_dev, found.st_ino)
            if identity in self._linked:
                return
            self._linked.add(identity)
        self.bytes += found.st_blocks * _BLOCK_BYTES

    def size(self, *, is_whole: bool) -> Size:
        return Size(self.bytes, self.entries, is_whole)


def measure(folder_fd: int, *, most_entries: int, deepest: int = DEEPEST) -> Size:
    """Disk space in use below the folder, while anybody may be changing it; a file with several names counts once.

    Stops at `most_entries`, or at a folder nested deeper than `deepest`: a descriptor is held for each level, since in
    a tree that changes `..` leads anywhere.
    """
    count = _Count()
    levels: list[
        tuple[int, list[str]]
    ] = []  # open folders from the top down, each with its folders still to be visited
    arrived: int | None = os.dup(folder_fd)
    try:
        while arrived is not None or levels:
            if arrived is not None:
                folders: list[str] = []
                levels.append((arrived, folders))
                arrived = None
                for _, name, found in _entries(levels[-1][0]):
                    count.add(found)
                    if stat.S_ISDIR(found.st_mode):
                        folders.append(name)
                    if count.entries >= most_entries:
                        return count.size(is_whole=False)
            here, folders = levels[-1]
            if not folders:
                os.close(levels.pop()[0])
            elif len(levels) >= deepest:
                return count.size(is_whole=False)
            else:
                arrived = _open_if_there(folders.pop(), here)
    finally:
        for descriptor, _ in levels:
            os.close(descriptor)
    return count.size(is_whole=True)


def _open_if_there(name: str, dir_fd: int) -> int | None:
    try:
        return open_folder(name, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            return None  # moved, deleted or replaced since it was listed
        raise


# Where a second name can't be had: another file system, too many names, a file system or a policy that has no links.
_NO_LINK = frozenset({errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS})


def copy_read_only(source: Path, target: Path, *, by_link: bool = False) -> None:
    """Copy a folder of files and folders, readable by all and writable by none but the owner.

    With `by_link` a file that is as it should be already, and ours, only gets a second name (a tree of 20,000 files takes
    0.3 s instead of 1). `target` appears whole or not at all. Raises TreeError for anything that is neither file nor folder,
    and OSError.
    """
    incoming = target.with_name(target.name + ".incoming")
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(0o755)
    try:
        for folder, folders, names in os.walk(source, followlinks=False):
            into = incoming / os.path.relpath(folder, source)
            for name in folders:
                if os.path.islink(os.path.join(folder, name)):
                    raise TreeError(f"{name} is a symbolic link; a collection holds files and folders only")
                (into / name).mkdir(0o755)
            for name in names:
                path = os.path.join(folder, name)
                if not (by_link and _link_file(path, into / name)):
                    _copy_file(path, into / name)
        incoming.rename(target)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _link_file(source: str, target: Path) -> bool:
    """Give the file a second name; false where that can't be, or would show a file whose mode or owner is another."""
    found = os.lstat(source)
    is_ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
    if not is_ours or stat.S_IMODE(found.st_mode) not in (0o644, 0o755):
        return False
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return False
    return True


def _copy_file(source: str, target: Path) -> None:
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise TreeError(
            f"{os.path.basename(source)} can't be read as a file; a collection holds files and folders only"
        ) from error
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise TreeError(f"{os.path.basename(source)} is no regular file; a collection holds files and folders only")
        with open(target, "xb") as out:
            shutil.copyfileobj(file, out)
        os.chmod(target, 0o755 if found.st_mode & stat.S_IXUSR else 0o644)
