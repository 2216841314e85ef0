"""The machine's disk: what is left of it, when that is too little, and what is kept back for then.

Owns the floor (`sandbox.min_free_disk`, `sandbox.min_free_files`), the reserve below the data folder, and the look at both
that `/ready`, the doors and the watch take. Refuses to know who fills the disk. Invariants: what is said of the disk is at
most a second old; a piece of the reserve is only given up where a write of the database would otherwise find the disk
full, and one after the other with a pause, so that whoever fills the disk is stopped before the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import structlog

from amplifier_api_server.control_plane import settings
from amplifier_api_server.tenants.errors import InsufficientStorage

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.25  # between two questions to the file system, whoever asks
_PROBE_EVERY_SECONDS = 1.0
_PROBE_SECONDS = 2.0  # a write that takes longer does not count as one
_PROBE_BYTES = 4096
_RETRY_SECONDS = 30

_PIECES = 8
_LEAST_PIECE_BYTES = 1024 * 1024
_MOST_PIECE_BYTES = 4 * 1024 * 1024  # SQLite's log has about as much between two checkpoints (1,000 pages)
_PIECE_NAME = re.compile(r"piece-\d")
_NEEDED_BYTES = 2 * 1024 * 1024  # for one write of the database: with less, a piece is given up first
_NEEDED_FILES = 8
_GIVE_EVERY_SECONDS = 2.0  # longer than two looks of the watch, which ends those who would take it

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Room:
    """What is left for this process's user. `files` is None where the file system has no fixed number of them."""

    bytes: int
    files: int | None = None

    def less(self, size_bytes: int, files: int) -> Room:
        """What would be left after so much more."""
        return Room(self.bytes - size_bytes, None if self.files is None else self.files - files)


@dataclass(frozen=True, slots=True)
class Floor:
    """Below this a disk counts as full for everybody but the operator."""

    bytes: int
    files: int

    @classmethod
    def of(cls, sandbox: settings.Sandbox) -> Floor:
        return cls(sandbox.min_free_disk, sandbox.min_free_files)

    def lack(self, room: Room) -> str:
        """What there is too little of, in words and numbers; empty where there is enough."""
        lacking = []
        if room.bytes < self.bytes:
            free, wanted = room.bytes / MIB, self.bytes / MIB
            lacking.append(f"{free:,.1f} MiB are free, and sandbox.min_free_disk asks for {wanted:,.1f} MiB")
        if room.files is not None and room.files < self.files:
            lacking.append(f"{room.files:,} more files can be made, and sandbox.min_free_files asks for {self.files:,}")
        return "; ".join(lacking)


def room_of(folder: Path) -> Room:
    """What is left on the file system of `folder`, or of the nearest folder above it that is there. Raises OSError."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    found = os.statvfs(there)
    return Room(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


class Reserve:
    """Files that hold room in the data folder, to be deleted when the database needs it. All methods block, shortly."""

    def __init__(self, data_dir: Path, floor: Floor, now: Callable[[], float] = monotonic) -> None:
        self._data_dir = data_dir
        self._folder = data_dir / "reserve"
        self._floor = floor
        self._piece_bytes = max(_LEAST_PIECE_BYTES, min(_MOST_PIECE_BYTES, floor.bytes // 64))
        self._now = now
        self._given_at = -_GIVE_EVERY_SECONDS

    def pieces(self) -> list[Path]:
        """Those that are there."""
        with contextlib.suppress(OSError):
            return sorted(path for path in self._folder.iterdir() if _PIECE_NAME.fullmatch(path.name))
        return []

    def keep(self) -> None:
        """Make the pieces that are missing, as far as the floor is not touched by it. Raises OSError."""
        if self._floor.bytes == 0:
            return  # no floor: nobody is stopped when the disk is full, so a reserve would only be filled as well
        self._folder.mkdir(mode=0o700, exist_ok=True)
        there = self.pieces()
        for path in (self._folder / f"piece-{number}" for number in range(_PIECES)):
            room = room_of(self._data_dir)
            if path in there or self._floor.lack(room.less(self._piece_bytes, 1)):
                continue
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._piece_bytes)
            except OSError:
                path.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)

    def is_whole(self) -> bool:
        return self._floor.bytes == 0 or len(self.pieces()) == _PIECES

    def before_write(self) -> None:
        """Give a piece up where a write would not find room. Never raises: the write itself says what is wrong."""
        with contextlib.suppress(OSError):
            room = room_of(self._data_dir)
            if room.bytes >= _NEEDED_BYTES and (room.files is None or room.files >= _NEEDED_FILES):
                return
            there = self.pieces()
            if there and self._now() - self._given_at >= _GIVE_EVERY_SECONDS:
                self._given_at = self._now()
                there[-1].unlink()
                log.warning("the disk is full; a piece of the reserve was given up", pieces_left=len(there) - 1)


class Disk:
    """The disk of one data folder, as everybody in this process asks about it."""

    def __init__(self, data_dir: Path, sandbox: settings.Sandbox, now: Callable[[], float] = monotonic) -> None:
        self._data_dir = data_dir.absolute()
        self.floor = Floor.of(sandbox)
        self.reserve = Reserve(self._data_dir, self.floor, now)
        self._now = now
        self._looked_at = -_LOOK_SECONDS
        self._lack = ""
        self._probing: asyncio.Task[str] | None = None
        self._probed_at = -_PROBE_EVERY_SECONDS

    def lack(self) -> str:
        """Why nothing may be written now but by the operator, with numbers; empty where there is enough."""
        if self._now() - self._looked_at >= _LOOK_SECONDS:
            try:
                self._lack = self.floor.lack(room_of(self._data_dir))
            except OSError as error:
                self._lack = f"the data folder can't be looked at: {error.strerror}"
            self._looked_at = self._now()
        return self._lack

    def require_room(self, size_bytes: int = 0, files: int = 0) -> None:
        """Raise InsufficientStorage (`disk_full`) where there is too little left for what tenants write, or would be after
        so much more.
        """
        if self.lack() or (files and self.floor.lack(room_of(self._data_dir).less(size_bytes, files))):
            raise disk_full()

    async def trouble(self) -> list[str]:
        """What `/ready` says of it: too little room, and whether a file can be written. At most one write a second."""
        found = [f"the disk is nearly full: {lack}"] if (lack := self.lack()) else []
        if self._probing is None or (self._probing.done() and self._now() - self._probed_at >= _PROBE_EVERY_SECONDS):
            self._probed_at = self._now()
            self._probing = asyncio.create_task(asyncio.to_thread(_probe, self._data_dir / ".ready"))
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                said = await asyncio.shield(self._probing)
        except TimeoutError:
            said = f"a file could not be written in the data folder within {_PROBE_SECONDS:g} s"
        return [*found, said] if said else found

    async def sweep(self) -> None:
        """Make the reserve whole again where there is room for it."""
        if not self.lack() and not await asyncio.to_thread(self.reserve.is_whole):
            await asyncio.to_thread(self.reserve.keep)


def disk_full() -> InsufficientStorage:
    """What a caller is told whose request needs room that the machine has not got."""
    return InsufficientStorage(
        "the server's disk is nearly full; nothing is written now, what is there can be read and deleted",
        retry_after_seconds=_RETRY_SECONDS,
    )


def is_no_room(error: BaseException) -> bool:
    """Whether a call failed because the disk, or a quota that the system keeps, is full."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def _probe(path: Path) -> str:
    """Write a small file durably, and delete it; what is wrong where that fails. Blocks."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, b"\0" * _PROBE_BYTES)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            path.unlink()
    except OSError as error:
        return f"a file can't be written in the data folder: {error.strerror}"
    return ""
