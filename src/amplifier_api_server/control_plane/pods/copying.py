"""A copy of a folder that a tenant has filled, made by the host.

Owns that one walk. Refuses to follow a symbolic link or to use a path of more than one name, as `trees` does. Invariants: the
copy takes no more room than the original (holes stay holes, a file with several names is one file) and belongs to whoever
copies; what is neither file, folder nor symbolic link is left out; the source must be quiet.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from amplifier_api_server.control_plane.pods.trees import TreeError, open_folder

_DEEPEST = 256  # folders in folders, a descriptor for each on both sides
_PIECE_BYTES = 1024 * 1024
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_tree(source_fd: int, target: Path) -> None:
    """Copy everything below the folder into `target`, which is made. Raises TreeError for a tree that is nested too deeply,
    and OSError; what was copied until then stays.
    """
    target.mkdir(mode=0o700)
    linked: dict[tuple[int, int], tuple[str, ...]] = {}  # a file with several names -> where its first copy lies
    top = open_folder(target)
    levels: list[
        tuple[int, int, list[str]]
    ] = []  # folders on both sides, and those in them that are still to be copied
    path: list[str] = []
    try:
        levels.append((os.dup(source_fd), os.dup(top), []))
        levels[-1][2].extend(_copy_entries(*levels[-1][:2], tuple(path), linked, top))
        while levels:
            here, into, folders = levels[-1]
            if not folders:
                levels.pop()
                os.close(here)
                os.close(into)
                if path:
                    path.pop()
                continue
            if len(levels) >= _DEEPEST:
                raise TreeError(f"folders are nested more than {_DEEPEST} deep")
            name = folders.pop()
            os.mkdir(name, 0o700, dir_fd=into)
            path.append(name)
            levels.append((open_folder(name, dir_fd=here), open_folder(name, dir_fd=into), []))
            levels[-1][2].extend(_copy_entries(*levels[-1][:2], tuple(path), linked, top))
    finally:
        for here, into, _ in levels:
            os.close(here)
            os.close(into)
        os.close(top)


def _copy_entries(
    here: int, into: int, path: tuple[str, ...], linked: dict[tuple[int, int], tuple[str, ...]], top: int
) -> list[str]:
    """Copy what is no folder; the names of the folders."""
    folders: list[str] = []
    with os.scandir(here) as entries:
        for entry in entries:
            found = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                folders.append(entry.name)
            elif stat.S_ISLNK(found.st_mode):
                os.symlink(os.readlink(entry.name, dir_fd=here), entry.name, dir_fd=into)
            elif stat.S_ISREG(found.st_mode):
                first = linked.get((found.st_dev, found.st_ino)) if found.st_nlink > 1 else None
                if first is not None:
                    _link(top, first, into, entry.name)
                    continue
                _copy_file(entry.name, here, into)
                if found.st_nlink > 1:
                    linked[found.st_dev, found.st_ino] = (*path, entry.name)
    return folders


def _link(top: int, first: tuple[str, ...], into: int, name: str) -> None:
    """Give the copy at `first` below `top` one more name. Ours alone so far: nobody else can change what is on the way."""
    *folders, last = first
    with contextlib.ExitStack() as opened:
        current = top
        for folder in folders:
            current = open_folder(folder, dir_fd=current)
            opened.callback(os.close, current)
        os.link(last, name, src_dir_fd=current, dst_dir_fd=into, follow_symlinks=False)


def _copy_file(name: str, here: int, into: int) -> None:
    source = os.open(name, _READ, dir_fd=here)
    try:
        found = os.fstat(source)
        if not stat.S_ISREG(found.st_mode):
            raise TreeError(f"{name!r} was replaced while it was copied")
        target = os.open(name, _WRITE, 0o600, dir_fd=into)
        try:
            _copy_data(source, target, found.st_size)
            os.fchmod(target, stat.S_IMODE(found.st_mode) & 0o777)
            os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_data(source: int, target: int, size: int) -> None:
    """The bytes that are there, each at its place; between them are holes (lseek(2), SEEK_DATA)."""
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            start = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole is left
            return
        at = os.lseek(source, start, os.SEEK_HOLE)
        while start < at:
            piece = os.pread(source, min(_PIECE_BYTES, at - start), start)
            if not piece:
                return
            start += os.pwrite(target, piece, start)
