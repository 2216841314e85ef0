"""Wheels: what collections' modules need from the operator's package index, downloaded and never run or built here.

Owns which requirements are passed on, the one resolution of them all, and the codes of what goes wrong. Invariants: only
wheels; nothing that a runtime brings itself is replaced; what comes back is a tree of wheel files and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import stat
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from amplifier_api_server.control_plane.catalog import guarded_pip
from amplifier_api_server.control_plane.catalog.runtime_pins import runtime_pins, write_stand_ins
from amplifier_api_server.control_plane.catalog.source_limits import FetchedWheels, FetchLimits, WheelFile, room_for
from amplifier_api_server.control_plane.catalog.trees import Trees
from amplifier_api_server.control_plane.egress.certificates import bundle_of
from amplifier_api_server.control_plane.egress.programs import (
    Bounds,
    Folders,
    Programs,
    Ran,
    RunTooLarge,
    RunTooLong,
    folders_of_nobody,
    give_to_nobody,
)
from amplifier_api_server.control_plane.settings import Collections as CollectionSettings
from amplifier_api_server.tenants.errors import DomainError, Invalid, TooLarge, Unavailable

_MAX_REQUIREMENTS = 2_000
_MAX_REQUIREMENT_CHARS = 1_000
_SLACK_BYTES = 64 * 1024**2  # pip's own temporary files
_MAX_SAID_CHARS = 600
_READ_BYTES = 64 * 1024  # of the end of what pip says
# What of this process's environment pip may know: how the operator configured it, and the way out of the network.
_PASSED_ON = re.compile(
    r"PIP_\w+|(https?|no|all)_proxy|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|HOME|XDG_CONFIG_(HOME|DIRS)|NETRC",
    re.IGNORECASE,
)
_ONLY_PIPS_OWN = ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_INDEX_URL")


@dataclass(frozen=True, slots=True)
class _Folders:
    work: Path
    wheels: Path
    stand_ins: Path
    out: Path


class Wheels:
    """One for the process; `close` it."""

    def __init__(self, settings: CollectionSettings, trees: Trees) -> None:
        self._settings = settings
        self._trees = trees
        self._programs = Programs(at_once=2)

    def close(self) -> None:
        """Take no more work."""
        self._programs.close()

    async def download(
        self, requirements: Sequence[str], *, exclude: Collection[str] = (), limits: FetchLimits
    ) -> FetchedWheels:
        """Download what `requirements` (PEP 508) resolve to, all together, as a tree; nothing of `exclude` by name.

        What a runtime has itself (`runtime_pins`) is resolved against, and left out. Raises Invalid
        (`requirements_invalid`, `requirements_conflict`, `wheel_not_found`), TooLarge (`wheels_too_large`), Unavailable
        (`wheels_unreachable`, `wheels_timeout`).
        """
        wanted = checked_requirements(requirements, exclude)
        if not wanted:
            return FetchedWheels(None, (), 0)
        with folders_of_nobody("pip") as made:
            folders = await self._programs.do(lambda: _prepared(made))
            await self._run(wanted, folders, limits)
            staging = await self._programs.do(self._trees.new_folder)
            try:
                return await self._programs.do(lambda: self._keep(folders, staging, limits))
            finally:
                await asyncio.shield(self._programs.do(lambda: self._trees.delete(staging)))

    async def _run(self, wanted: Sequence[str], folders: _Folders, limits: FetchLimits) -> None:
        environment = await self._programs.do(lambda: self._environment(folders.work, folders.out.parent))
        command = [sys.executable, "-I", guarded_pip.__file__, "download", "--only-binary", ":all:"]
        command += ["--dest", str(folders.wheels), "--find-links", str(folders.stand_ins)]
        command += ["--constraint", str(folders.out.parent / "pins.txt")]
        command += [
            "--no-input",
            "--no-cache-dir",
            "--no-color",
            "--progress-bar",
            "off",
            "--no-python-version-warning",
        ]
        command += ["--disable-pip-version-check", "--retries", "2", "--timeout", "15", "--", *wanted]
        bounds = Bounds(limits.timeout_seconds, limits.max_bytes + _SLACK_BYTES, limits.max_bytes + _SLACK_BYTES)
        try:
            ran = await self._programs.run(
                command, cwd=folders.work, out=folders.out, environment=environment, bounds=bounds
            )
        except RunTooLong as error:
            detail = f"the wheels were not downloaded within {limits.timeout_seconds:.0f} s"
            raise Unavailable(detail, code="wheels_timeout", retry_after_seconds=30) from error
        except RunTooLarge as error:
            raise _too_large(limits) from error
        if ran.status:
            explained = await self._programs.do(lambda: _end_of(folders.out))
            raise _failed(ran, explained.replace(str(folders.work.parent), ""))

    def _environment(self, work: Path, own: Path) -> dict[str, str]:
        """Secrets of an index stay in the environment: a command line is everybody's to see."""
        found = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
        index = self._settings.wheel_index
        if index is not None:
            for name in _ONLY_PIPS_OWN:
                found.pop(name, None)
            found["PIP_INDEX_URL"] = str(index)
            parts = urlsplit(str(index))
            if parts.scheme == "http" and parts.hostname:  # the operator's own choice
                found["PIP_TRUSTED_HOST"] = f"{parts.hostname}:{parts.port or 80}"
        bundle = bundle_of(self._settings.ca_file)
        if self._settings.ca_file is not None and bundle is not None:
            file = own / "certificates.pem"
            file.write_bytes(bundle)
            file.chmod(0o644)
            found["PIP_CERT"] = found["REQUESTS_CA_BUNDLE"] = str(file)  # the latter would win
        if os.geteuid() == 0:  # see `_copy_credentials`
            found = {name: value for name, value in found.items() if name not in ("NETRC", "XDG_CONFIG_HOME")}
            found["HOME"] = str(work)
        return found | {"TMPDIR": str(work), "PIP_REQUIRE_VIRTUALENV": "0", "PYTHONWARNINGS": "ignore"}

    def _keep(self, folders: _Folders, staging: Path, limits: FetchLimits) -> FetchedWheels:
        """Copy what pip left into `staging`, as plain files: it may have been talked into anything."""
        found, total = [], 0
        pins = runtime_pins()
        for path in sorted(folders.wheels.iterdir()):
            try:
                name, version, _, _ = parse_wheel_filename(path.name)
            except InvalidWheelFilename as error:
                raise Invalid(
                    f"the index gave {path.name[:200]!r}, which is no wheel", code="wheel_not_found"
                ) from error
            if name in pins:
                continue
            raw = _plain_bytes(path, limits.max_bytes - total, limits)
            total += len(raw)
            (staging / path.name).write_bytes(raw)
            found.append(WheelFile(path.name, name, str(version), hashlib.sha256(raw).hexdigest(), len(raw)))
        if len(found) > self._settings.max_wheels or sum(room_for(one.size_bytes) for one in found) > limits.max_bytes:
            raise _too_large(limits, f"{len(found)} wheels; at most {self._settings.max_wheels} are taken, and ")
        if not found:
            return FetchedWheels(None, (), 0)
        kept = self._trees.keep(staging)
        return FetchedWheels(kept.hash, tuple(found), kept.size_bytes)


def checked_requirements(requirements: Sequence[str], exclude: Collection[str] = ()) -> list[str]:
    """Each once, as `packaging` writes it; without those of `exclude`. Raises Invalid (`requirements_invalid`).

    Nothing else than names, versions, extras and markers gets through: no address, no path, no option of pip's.
    """
    if len(requirements) > _MAX_REQUIREMENTS:
        raise Invalid(
            f"there are {len(requirements)} requirements; at most {_MAX_REQUIREMENTS} are taken",
            code="requirements_invalid",
        )
    left_out = {canonicalize_name(name) for name in exclude}
    found: dict[str, None] = {}
    for text in requirements:
        if len(text) > _MAX_REQUIREMENT_CHARS or not text.isprintable():
            raise Invalid(f"the requirement {text[:100]!r} can't be read", code="requirements_invalid")
        try:
            one = Requirement(text)
        except InvalidRequirement as error:
            raise Invalid(
                f"the requirement {text[:100]!r} can't be read: {str(error).splitlines()[0][:200]}",
                code="requirements_invalid",
            ) from error
        if one.url:
            raise Invalid(
                f"the requirement {text[:100]!r} names an address; only names and versions are taken",
                code="requirements_invalid",
            )
        if canonicalize_name(one.name) not in left_out:
            found[str(one)] = None
    return list(found)


def _plain_bytes(path: Path, most: int, limits: FetchLimits) -> bytes:
    """Of a file, never through a link, and of no more than `most`. Raises Invalid, TooLarge."""
    try:
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
            raise Invalid(f"{path.name[:200]!r} is no plain file", code="wheel_not_found")
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Invalid(f"{path.name[:200]!r} can't be read", code="wheel_not_found") from error
    with os.fdopen(descriptor, "rb") as file:  # nothing of pip's runs any more: it is the file that was looked at
        raw = file.read(most + 1)
    if len(raw) > most:
        raise _too_large(limits)
    return raw


def _prepared(made: Folders) -> _Folders:
    """`work` and `wheels` are whose pip runs as; pins and stand-ins are ours, for it to read."""
    folders = _Folders(made.work, made.work / "wheels", made.own / "stand-ins", made.own / "out")
    folders.wheels.mkdir(mode=0o700)
    give_to_nobody(folders.wheels)
    folders.stand_ins.mkdir(mode=0o755)
    _copy_credentials(made.work)
    pins = "".join(f"{name}=={version}\n" for name, version in runtime_pins().items())
    (made.own / "pins.txt").write_text(pins, encoding="utf-8")
    write_stand_ins(folders.stand_ins)
    for file in (made.own / "pins.txt", *folders.stand_ins.iterdir()):
        file.chmod(0o644)
    return folders


def _copy_credentials(home: Path) -> None:
    """How the operator configured pip and its access to an index, where who runs it can't read the operator's own files."""
    if os.geteuid() != 0:
        return
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    netrc = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    found = {
        ".netrc": netrc,
        ".pip/pip.conf": Path.home() / ".pip/pip.conf",
        ".config/pip/pip.conf": config / "pip/pip.conf",
    }
    for name, source in found.items():
        with contextlib.suppress(OSError):
            raw = source.read_bytes()
            for folder in [one for one in reversed((home / name).parents) if home in one.parents]:
                folder.mkdir(mode=0o700, exist_ok=True)
                give_to_nobody(folder)
            (home / name).touch(mode=0o600)
            give_to_nobody(home / name)
            (home / name).write_bytes(raw)


def _too_large(limits: FetchLimits, what: str = "") -> TooLarge:
    return TooLarge(f"the wheels are too many or too large: {what}{limits.max_bytes} bytes", code="wheels_too_large")


def _end_of(file: Path) -> str:
    with file.open("rb") as out:
        out.seek(max(0, file.stat().st_size - _READ_BYTES))
        return out.read(_READ_BYTES).decode("utf-8", "replace")


def _failed(ran: Ran, explained: str) -> DomainError:
    """What pip says, as ours. `explained`: the end of its standard output."""
    said = re.sub(r"https?://[^\s'\"]+", "(an address)", ran.error)  # an index's address is the operator's business
    errors = [line.removeprefix("ERROR: ").strip() for line in said.splitlines() if line.startswith("ERROR: ")]
    reason = " ".join(errors)[:_MAX_SAID_CHARS]
    if "ResolutionImpossible" in said or "conflicting dependencies" in said:
        return Invalid(
            f"what is needed does not fit together: {_conflict_in(said, explained)}", code="requirements_conflict"
        )
    if re.search(
        r"Retrying \(|Could not fetch URL|ConnectionError|HTTP error (401|403|5\d\d)|CERTIFICATE_VERIFY", said
    ):
        return Unavailable("the package index can't be reached", code="wheels_unreachable", retry_after_seconds=60)
    if match := re.search(r"No matching distribution found for ([^\s;(]+)", said):
        detail = f"there is no wheel of {match[1][:200]} for this platform; only wheels are taken, no source packages"
        return Invalid(detail, code="wheel_not_found")
    if "named by an address" in said or "no program is started here" in said:
        return Invalid(f"a wheel needs what is no wheel of the index: {reason}", code="wheel_not_found")
    if ran.status < 0 or "File too large" in said or "Errno 27" in said:
        return TooLarge("pip was stopped by its limits", code="wheels_too_large")
    return Invalid(
        f"the wheels can't be downloaded: {reason or f'pip ended with {ran.status}'}", code="wheel_not_found"
    )


def _conflict_in(said: str, explained: str) -> str:
    """Pip's own explanation: what can't be had together, and who wants it; without its advice."""
    what = next((line for line in said.splitlines() if "Cannot install" in line), "")
    told = [what.removeprefix("ERROR: ").strip()]
    _, _, causes = explained.rpartition("The conflict is caused by:")
    for line in filter(None, map(str.strip, causes.splitlines())):
        if line.startswith(("To fix this", "Additionally", "1.")):
            break
        told.append(line)
    return "; ".join(filter(None, told))[:_MAX_SAID_CHARS]
