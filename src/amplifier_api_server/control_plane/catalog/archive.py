"""Unpacking an uploaded archive without trusting it.

Owns where a stranger's file names may lead: below one new folder, as plain files and folders, within bounds on count and
size that are counted while unpacking (what an archive says of itself is not believed). Runs nothing, parses nothing.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from amplifier_api_server.tenants.errors import DomainError, Invalid, TooLarge

_MAX_FILES = 5_000
_MAX_UNPACKED_BYTES = 128 * 1024 * 1024
_MAX_PATH_CHARS = 400
_MAX_DEPTH = 20
_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A folder of plain files, and the hash of everything in it: names and bytes, in order."""

    folder: Path
    content_hash: str


def unpack(archive: IO[bytes], into: Path) -> Unpacked:
    """Unpack a zip into the new folder `into`; a single folder that holds everything is left out.

    Raises Invalid (`invalid_archive`) for what is no zip, for a name that leads elsewhere, a link, a device, an encrypted or
    a doubled file; TooLarge for too much. Nothing is left then. Blocks: call it in a thread.
    """
    into.mkdir(mode=0o700, parents=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _checked(opened.infolist())
            _extract(opened, members, into)
        return Unpacked(into, _hash(into))
    except DomainError:
        shutil.rmtree(into, ignore_errors=True)
        raise
    except Exception as error:
        # What the library raises on hostile bytes is no closed list: ValueError and struct.error among them (found by
        # the fuzz test). Whatever it is, the archive is to blame.
        shutil.rmtree(into, ignore_errors=True)
        raise Invalid(f"the body is not a zip archive that can be read: {error}", code="invalid_archive") from error
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise


def _checked(infos: list[zipfile.ZipInfo]) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Every file of the archive by its safe path, without the folder that holds them all, if there is one."""
    if len(infos) > _MAX_FILES:
        raise TooLarge(f"the archive has {len(infos)} entries; at most {_MAX_FILES} are taken")
    found: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in infos:
        path = _safe_path(info)
        if info.is_dir():
            continue
        if path in found:
            raise Invalid(f"the archive holds {path} twice", code="invalid_archive")
        found[path] = info
    if not found:
        raise Invalid("the archive holds no file", code="invalid_archive")
    tops = {path.parts[0] for path in found}
    if len(tops) == 1 and all(len(path.parts) > 1 for path in found):
        return {PurePosixPath(*path.parts[1:]): info for path, info in found.items()}
    return found


def _safe_path(info: zipfile.ZipInfo) -> PurePosixPath:
    name = info.filename
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Invalid(f"the archive holds {name[:100]!r}, which is a link or a device", code="invalid_archive")
    if info.flag_bits & 0x1:
        raise Invalid(f"the archive holds {name[:100]!r} encrypted", code="invalid_archive")
    path = PurePosixPath(name)
    bad = (
        not name
        or len(name) > _MAX_PATH_CHARS
        or "\\" in name
        or "\0" in name
        or path.is_absolute()
        or ".." in path.parts
        or len(path.parts) > _MAX_DEPTH
        or any(ord(char) < 32 for char in name)  # noqa: PLR2004 - control characters
        or any(len(part.encode()) > 255 for part in path.parts)  # noqa: PLR2004 - NAME_MAX
    )
    if bad or not path.parts:
        raise Invalid(
            f"the archive holds the name {name[:100]!r}, which does not stay in its folder", code="invalid_archive"
        )
    return path


def _extract(opened: zipfile.ZipFile, members: dict[PurePosixPath, zipfile.ZipInfo], into: Path) -> None:
    left = _MAX_UNPACKED_BYTES
    for path, info in members.items():
        target = into / path
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with opened.open(info) as source, target.open("xb") as sink:
            while chunk := source.read(min(_CHUNK_BYTES, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise TooLarge(f"the archive unpacks to more than {_MAX_UNPACKED_BYTES} bytes")
                sink.write(chunk)
        target.chmod(0o644)


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix().encode()
            digest.update(len(name).to_bytes(4) + name + path.stat().st_size.to_bytes(8))
            digest.update(path.read_bytes())
    return digest.hexdigest()
