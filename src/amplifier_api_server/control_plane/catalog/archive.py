"""Unpacking an archive without trusting it: an uploaded one, or one that was fetched.

Owns where a stranger's file names may lead: below one new folder, as plain files and folders, within bounds on count and
size. Files, the folders that they lie in and what the archive says of their sizes are counted before anything is written; the
bytes again while unpacking (what an archive says of itself is not believed). Runs nothing, parses nothing.
"""

from __future__ import annotations

import contextlib
import shutil
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from amplifier_api_server.control_plane.catalog.file_names import (
    TakenNames,
    UnsafeName,
    is_git_folder,
    is_of_a_desktop,
    safe_path,
)
from amplifier_api_server.control_plane.catalog.source_limits import Admit, Footprint, room_for
from amplifier_api_server.control_plane.catalog.trees import measure
from amplifier_api_server.control_plane.disk import disk_full, is_no_room
from amplifier_api_server.tenants.errors import DomainError, Invalid, TooLarge

_MAX_FILES = 5_000
_MAX_UNPACKED_BYTES = 128 * 1024 * 1024
_MAX_ENTRY_BYTES = 1024  # on average, of an archive's own table of contents: a name and some attributes
_CHUNK_BYTES = 64 * 1024
_IS_UTF_8 = 0x800
_FIELD = struct.Struct("<HH")
_UNICODE_PATH = 0x7075


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A folder of plain files, and the hash of everything in it: what Trees.keep calls it."""

    folder: Path
    content_hash: str


def unpack(
    archive: IO[bytes],
    into: Path,
    *,
    max_files: int | None = None,
    max_bytes: int | None = None,
    admit: Admit = lambda _: None,
) -> Unpacked:
    """Unpack a zip into the new folder `into`; a single folder that holds everything is left out, and so are `.git` and what
    desktops put beside files.

    Raises Invalid (`invalid_archive`) for what is no zip, for a name that leads elsewhere, a link, a device, an encrypted or
    a doubled file; TooLarge for too much; InsufficientStorage, and what `admit` raises, which is asked before anything is
    written. Nothing is left then. Blocks: call it in a thread.
    """
    into.mkdir(mode=0o700, parents=True)
    try:
        most = _MAX_FILES if max_files is None else max_files
        _check_directory(archive, most)
        with zipfile.ZipFile(archive) as opened:
            most_bytes = _MAX_UNPACKED_BYTES if max_bytes is None else max_bytes
            members = _checked(opened.infolist(), most)
            admit(_footprint(members, most_bytes, most))
            _extract(opened, members, into, most_bytes)
        return Unpacked(into, measure(into).hash)
    except DomainError:
        shutil.rmtree(into, ignore_errors=True)
        raise
    except Exception as error:
        if is_no_room(error):
            shutil.rmtree(into, ignore_errors=True)
            raise disk_full() from error
        # What the library raises on hostile bytes is no closed list: ValueError and struct.error among them (found by
        # the fuzz test). Whatever it is, the archive is to blame.
        shutil.rmtree(into, ignore_errors=True)
        raise Invalid(f"the archive is not a zip that can be read: {error}", code="invalid_archive") from error
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise


def _check_directory(archive: IO[bytes], max_files: int) -> None:
    """Refuse a table of contents that would take all memory before its entries can be counted."""
    ends = zipfile._EndRecData(archive)  # type: ignore[attr-defined]  # noqa: SLF001 - the library itself reads it whole
    most = (max_files + 1) * _MAX_ENTRY_BYTES
    if ends and ends[zipfile._ECD_SIZE] > most:  # type: ignore[attr-defined]  # noqa: SLF001
        raise TooLarge(
            f"the archive's table of contents is larger than {most} bytes; at most {max_files} files are taken"
        )


def _checked(infos: list[zipfile.ZipInfo], max_files: int) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Every file of the archive by its safe path, without the folder that holds them all, if there is one."""
    if len(infos) > max_files:
        raise TooLarge(f"the archive has {len(infos)} entries; at most {max_files} are taken")
    found: dict[PurePosixPath, zipfile.ZipInfo] = {}
    taken = TakenNames()
    for info in infos:
        name = _name_of(info)
        if not name.strip("/") and info.orig_filename.startswith("."):
            continue  # the folder itself
        path = _path_of(info, name)
        if name.endswith("/") or any(map(is_git_folder, path.parts)) or is_of_a_desktop(path):
            continue
        try:
            taken.take(path)
        except UnsafeName as error:
            raise Invalid(f"the archive's {str(path)[:100]!r} {error}", code="invalid_archive") from error
        found[path] = info
    if not found:
        raise Invalid("the archive holds no file", code="invalid_archive")
    tops = {path.parts[0] for path in found}
    if len(tops) == 1 and all(len(path.parts) > 1 for path in found):
        return {PurePosixPath(*path.parts[1:]): info for path, info in found.items()}
    return found


def _footprint(members: dict[PurePosixPath, zipfile.ZipInfo], max_bytes: int, max_files: int) -> Footprint:
    """What it is going to take. Raises TooLarge, while nothing of it is written."""
    footprint = Footprint()
    for path, info in members.items():
        footprint.add(path, info.file_size)
        if not footprint.is_within(max_bytes, max_files):
            raise TooLarge(
                f"the archive unpacks to more than {max_bytes} bytes on the disk,"
                f" or to more than {max_files} files and folders"
            )
    return footprint


def _name_of(info: zipfile.ZipInfo) -> str:
    """The entry's name: UTF-8 where it is said to be, in either way that there is, or can be; else cp437.

    PKWARE's APPNOTE, 4.4.4 (bit 11), 4.6.9 (the Unicode path) and appendix D. Macs and Info-ZIP write UTF-8 without
    saying so.
    """
    name = info.orig_filename
    if not info.flag_bits & _IS_UTF_8:
        raw = name.encode("cp437")
        with contextlib.suppress(UnicodeDecodeError):
            name = (_unicode_path(info.extra, raw) or raw).decode()
    name = name.replace("\\", "/")  # Windows' programs write them, whatever system they say that they are of
    return "/".join(part for part in name.split("/") if part != ".")


def _unicode_path(extra: bytes, raw: bytes) -> bytes | None:
    """The name in an entry's extra field 0x7075, if it is of this very name."""
    while len(extra) >= _FIELD.size:
        kind, size = _FIELD.unpack_from(extra)
        field, extra = extra[_FIELD.size : _FIELD.size + size], extra[_FIELD.size + size :]
        if kind == _UNICODE_PATH and field[1:5] == zlib.crc32(raw).to_bytes(4, "little"):
            return field[5:]
    return None


def _path_of(info: zipfile.ZipInfo, name: str) -> PurePosixPath:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Invalid(f"the archive holds {name[:100]!r}, which is a link or a device", code="invalid_archive")
    if info.flag_bits & 0x1:
        raise Invalid(f"the archive holds {name[:100]!r} encrypted", code="invalid_archive")
    try:
        return safe_path(name.removesuffix("/"))
    except UnsafeName as error:
        raise Invalid(f"the archive holds the name {name[:100]!r}, which {error}", code="invalid_archive") from error


def _extract(
    opened: zipfile.ZipFile, members: dict[PurePosixPath, zipfile.ZipInfo], into: Path, max_bytes: int
) -> None:
    left = max_bytes
    for path, info in members.items():
        target = into / path
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        left -= room_for(info.file_size) - info.file_size  # what is written comes off below
        with opened.open(info) as source, target.open("xb") as sink:
            while chunk := source.read(min(_CHUNK_BYTES, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise TooLarge(f"the archive unpacks to more than {max_bytes} bytes")
                sink.write(chunk)
        is_executable = bool(info.external_attr >> 16 & stat.S_IXUSR)
        target.chmod(0o755 if is_executable else 0o644)
