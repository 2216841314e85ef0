"""Wheels: what collections' modules need from the operator's package index, downloaded and never run or built here.

Owns which requirements are passed on, the one resolution of them all, and the codes of what goes wrong. Invariants: only
wheels; nothing that a runtime brings itself is replaced; what comes back is a tree of wheel files and nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
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
from amplifier_api_server.control_plane.egress.programs import Bounds, Programs, Ran, RunTooLarge, RunTooLong
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
        staging = await self._programs.do(self._trees.new_folder)
        try:
            folders = await self._programs.do(lambda: _prepared(staging))
            await self._run(wanted, folders, limits)
            return await self._programs.do(lambda: self._keep(folders, limits))
        finally:
            await asyncio.shield(self._programs.do(lambda: self._trees.delete(staging)))

    async def _run(self, wanted: Sequence[str], folders: _Folders, limits: FetchLimits) -> None:
        environment = await self._programs.do(lambda: self._environment(folders.work))
        command = [sys.executable, "-I", guarded_pip.__file__, "download", "--only-binary", ":all:"]
        command += ["--dest", str(folders.wheels), "--find-links", str(folders.stand_ins)]
        command += ["--constraint", str(folders.work / "pins.txt")]
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

    def _environment(self, work: Path) -> dict[str, str]:
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
            (work / "certificates.pem").write_bytes(bundle)
            found["PIP_CERT"] = found["REQUESTS_CA_BUNDLE"] = str(work / "certificates.pem")  # the latter would win
        return found | {"TMPDIR": str(work), "PIP_REQUIRE_VIRTUALENV": "0", "PYTHONWARNINGS": "ignore"}

    def _keep(self, folders: _Folders, limits: FetchLimits) -> FetchedWheels:
        found = []
        pins = runtime_pins()
        for path in sorted(folders.wheels.iterdir()):
            try:
                name, version, _, _ = parse_wheel_filename(path.name)
            except InvalidWheelFilename as error:
                raise Invalid(
                    f"the index gave {path.name[:200]!r}, which is no wheel", code="wheel_not_found"
                ) from error
            if name in pins:
                path.unlink()
                continue
            raw = path.read_bytes()
            found.append(WheelFile(path.name, name, str(version), hashlib.sha256(raw).hexdigest(), len(raw)))
        if len(found) > self._settings.max_wheels or sum(room_for(one.size_bytes) for one in found) > limits.max_bytes:
            raise _too_large(limits, f"{len(found)} wheels; at most {self._settings.max_wheels} are taken, and ")
        if not found:
            return FetchedWheels(None, (), 0)
        kept = self._trees.keep(folders.wheels)
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


def _prepared(staging: Path) -> _Folders:
    folders = _Folders(staging / "work", staging / "wheels", staging / "work" / "own", staging / "out")
    for folder in (folders.work, folders.wheels, folders.stand_ins):
        folder.mkdir(mode=0o700)
    pins = "".join(f"{name}=={version}\n" for name, version in runtime_pins().items())
    (folders.work / "pins.txt").write_text(pins, encoding="utf-8")
    write_stand_ins(folders.stand_ins)
    return folders


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
