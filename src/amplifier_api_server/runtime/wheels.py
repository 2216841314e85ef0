"""Wheel files: what they say of themselves, which of them a set of projects needs, and unpacking them.

Owns the rules of the wheel format (PyPA, "Binary distribution format") as far as a folder to import from needs them. Runs
nothing. Invariants: what the runtime has itself is never unpacked over it; no file of one wheel replaces another's; every
file stays below the folder that it is unpacked to.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import resource
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, cast

from packaging.metadata import parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from amplifier_api_server.runtime.failures import BadRequest

BUILD_FAILED = "build_failed"
TOO_LARGE = "too_large"
PART_BYTES = 8 * 1024 * 1024  # of an archive on its way: far below what one file may have
MAX_UNPACKED_BYTES = 1024**3
_MAX_METADATA_BYTES = 4 * 1024 * 1024
_CHUNK_BYTES = 256 * 1024
# What the runtime itself imports: sessions' modules share these, whatever version they would like.
_RUNTIME = ("amplifier-core", "pydantic", "pyyaml", "httptools", "uvloop", "packaging")


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel file, and for one that was built, the address of what it was built from."""

    path: Path
    name: str  # normalised
    version: str
    sha256: str
    requires: tuple[Requirement, ...]
    source: str | None = None

    @property
    def shown(self) -> str:
        return f"{self.name} {self.version}" + (f" ({self.source})" if self.source else "")


@dataclass(frozen=True, slots=True)
class Needed:
    """`missing` and `warnings` are sentences: who needs what that is not there, or gets another version of the runtime's."""

    wheels: tuple[Wheel, ...]
    missing: tuple[str, ...]
    warnings: tuple[str, ...]


@cache
def own_distributions() -> Mapping[str, str]:
    """What the runtime imports itself, with all that needs: normalised name -> version."""
    found: dict[str, str] = {}
    waiting = [Requirement(name) for name in _RUNTIME]
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name in found:
            continue
        try:
            there = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        found[name] = there.version
        waiting += [one for one in map(Requirement, there.requires or ()) if _applies(one, ())]
    return found


@cache
def _tags() -> frozenset[object]:
    return frozenset(sys_tags())


def read_wheel(path: Path, source: str | None = None) -> Wheel:
    """What the file says. Raises BadRequest (build_failed) for what is no wheel, or one for another platform."""
    try:
        name, version, _, tags = parse_wheel_filename(path.name)
        if not tags & _tags():
            raise BadRequest(BUILD_FAILED, f"{path.name} is for another platform or Python than this one")
        with zipfile.ZipFile(path) as opened:
            info = next(
                one
                for one in opened.infolist()
                if one.filename.endswith(".dist-info/METADATA") and one.filename.count("/") == 1
            )
            if info.file_size > _MAX_METADATA_BYTES:
                raise BadRequest(BUILD_FAILED, f"{path.name}: its METADATA is too large")
            raw, _ = parse_email(opened.read(info))
        requires = tuple(Requirement(one) for one in raw.get("requires_dist", ()))
    except InvalidRequirement as error:
        raise BadRequest(BUILD_FAILED, f"{path.name}: Requires-Dist: {error}") from None
    except (InvalidWheelFilename, zipfile.BadZipFile, StopIteration, OSError, ValueError, RuntimeError) as error:
        raise BadRequest(BUILD_FAILED, f"{path.name} is no wheel that can be read: {error}") from None
    return Wheel(path, str(name), str(version), _sha256(path), requires, source)


def without_times(path: Path) -> None:
    """Write a wheel anew, so that the same files are the same bytes: many backends note when they ran. Blocks.

    Raises BadRequest (build_failed) for what is no zip.
    """
    incoming = path.with_suffix(".new")
    try:
        with (
            zipfile.ZipFile(path) as opened,
            zipfile.ZipFile(incoming, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made,
        ):
            for info in sorted(opened.infolist(), key=lambda one: one.filename):
                if info.is_dir():
                    continue
                plain = zipfile.ZipInfo(info.filename)
                plain.compress_type, plain.external_attr = zipfile.ZIP_DEFLATED, info.external_attr
                with opened.open(info) as source, made.open(plain, "w", force_zip64=True) as sink:
                    shutil.copyfileobj(source, sink, _CHUNK_BYTES)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise BadRequest(BUILD_FAILED, f"{path.name} is no wheel that can be read: {error}") from None
    incoming.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in (*extras, ""))


def needed(wanted: Sequence[tuple[Requirement, str]], there: Mapping[str, Wheel]) -> Needed:
    """The wheels that these requirements (each with who has it) come down to, all that those need included.

    What the runtime has itself is in it for no one: its version must do.
    """
    chosen: dict[str, Wheel] = {}
    missing: dict[str, None] = {}
    warnings: dict[str, None] = {}
    done: set[tuple[str, frozenset[str]]] = set()
    waiting: list[tuple[Requirement, str, tuple[str, ...]]] = [(one, by, ()) for one, by in reversed(wanted)]
    while waiting:
        requirement, by, extras = waiting.pop()
        name = canonicalize_name(requirement.name)
        if not _applies(requirement, extras) or (name, frozenset(requirement.extras)) in done:
            continue
        done.add((name, frozenset(requirement.extras)))
        own, wheel = own_distributions().get(name), there.get(name)
        version = own or (wheel.version if wheel is not None else None)
        if version is None:
            missing[f"{by} needs {_plain(requirement)}, which is not there"] = None
            continue
        # What was built is pinned by its source: its own version may be a stand-in for a tag that isn't known.
        is_pinned = requirement.url is not None or (own is None and wheel is not None and wheel.source is not None)
        if not is_pinned and not requirement.specifier.contains(version, prereleases=True):
            if own is None:
                missing[f"{by} needs {_plain(requirement)}; there is {name} {version}"] = None
            else:
                warnings[
                    f"{by} needs {_plain(requirement)}; the runtime has {name} {version}, which is what it gets"
                ] = None
        if own is None and wheel is not None:
            chosen[name] = wheel
            shown, further = wheel.shown, wheel.requires
        else:  # its extras alone may need more
            shown = name
            further = tuple(map(Requirement, importlib.metadata.requires(name) or ())) if requirement.extras else ()
        waiting += [(one, shown, tuple(requirement.extras)) for one in reversed(further)]
    return Needed(tuple(chosen.values()), tuple(missing), tuple(warnings))


def _plain(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


class Unpacked:
    """A folder that wheels are unpacked into, one after the other. `scripts` takes what they have for a PATH."""

    def __init__(self, folder: Path, scripts: Path | None = None) -> None:
        self._folder = folder
        self._scripts = scripts
        self._taken: dict[str, tuple[Wheel, bytes]] = {}
        self._bytes_left = MAX_UNPACKED_BYTES
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, wheel: Wheel) -> None:
        """Blocks. Raises BadRequest (build_failed) for names that lead elsewhere, and for a file that another wheel has."""
        try:
            with zipfile.ZipFile(wheel.path) as opened:
                for info in opened.infolist():
                    if not info.is_dir():
                        self._add_file(wheel, opened, info)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
            raise BadRequest(BUILD_FAILED, f"{wheel.shown} can't be unpacked: {error}") from None

    def _add_file(self, wheel: Wheel, opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        path = PurePosixPath(info.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in info.filename or not path.parts:
            raise BadRequest(
                BUILD_FAILED, f"{wheel.shown} holds {info.filename[:100]!r}, which leads out of its folder"
            )
        root = self._folder
        if path.parts[0].endswith(".data") and len(path.parts) > 2:  # noqa: PLR2004 - the wheel format's own folders
            kind = path.parts[1]
            path = PurePosixPath(*path.parts[2:])
            if kind == "scripts" and self._scripts is not None:
                root = self._scripts
            elif kind not in ("purelib", "platlib"):
                return  # headers, manual pages and programs: nobody looks for them where modules are imported from
        most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if info.file_size > most >= 0:
            told = f"{wheel.shown} holds {info.filename[:100]!r}, which has {info.file_size} bytes"
            raise BadRequest(TOO_LARGE, f"{told}; a file in a sandbox has at most {most} (sandbox.file_size)")
        target = root / path
        digest = self._written(opened, info, target.with_name(target.name + ".incoming"))
        key = target.as_posix()
        other = self._taken.setdefault(key, (wheel, digest))
        if other[1] != digest:
            raise BadRequest(
                BUILD_FAILED, f"{other[0].shown} and {wheel.shown} both have a file {path}, and not the same"
            )
        target.with_name(target.name + ".incoming").replace(target)
        target.chmod(0o755 if root is self._scripts else 0o644)

    def _written(self, opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> bytes:
        digest = hashlib.sha256()
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(info) as source, target.open("wb") as sink:
            while chunk := source.read(_CHUNK_BYTES):
                self._bytes_left -= len(chunk)
                if self._bytes_left < 0:
                    raise BadRequest(TOO_LARGE, f"the wheels unpack to more than {MAX_UNPACKED_BYTES} bytes")
                digest.update(chunk)
                sink.write(chunk)
        return digest.digest()


class _Parts:
    """One stream of bytes, written as files of a new folder: no file may be as large as the packages of a collection."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: IO[bytes] | None = None
        self._left_bytes = 0
        self.size_bytes = 0
        folder.mkdir()

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        while left:
            if self._open is None or not self._left_bytes:
                self.close()
                self._open = (self._folder / f"{self.size_bytes:020}").open("xb")
                self._left_bytes = PART_BYTES
            count = self._open.write(left[: self._left_bytes])
            left = left[count:]
            self._left_bytes -= count
            self.size_bytes += count
        return len(data)

    def flush(self) -> None:
        """What is written is there when it is closed."""

    def close(self) -> None:
        if self._open is not None:
            self._open.close()


def zip_folder(folder: Path, into: Path) -> int:
    """Put every file of the folder into one archive, without compression: it goes over a socket once. Its size. Blocks.

    `into` becomes a folder: the files in it, by name, are the archive's parts.
    """
    parts = _Parts(into)
    with closing(parts), zipfile.ZipFile(cast("IO[bytes]", parts), "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                info = zipfile.ZipInfo(path.relative_to(folder).as_posix())
                info.external_attr = 0o100644 << 16
                with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as sink:
                    shutil.copyfileobj(source, sink, _CHUNK_BYTES)
    return parts.size_bytes
