"""Building an image's modules and installing what they need, in a sandbox that does nothing else and has no network.

Owns the folders of a build, and the processes that run strangers' build backends and imports: children, each with a limit
of time, whose end is the end of everything that they started. Refuses to import anything of theirs itself. Invariants: the
trees stay as they are (projects are built in writable copies); what a build gives is taken once, and then nothing of it is
left; what a child says is told in a message, cut to a bound.

Backends are called directly (`build_project`): a small project takes 0.1 s so, 0.5 s by `pip wheel --no-build-isolation`
and 1.2 s with its isolation, and an image may have a hundred of them (docs/decisions/0015-building-without-pip.md).
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from amplifier_api_server.runtime import call_groups, import_trial, supervisor
from amplifier_api_server.runtime.build_project import build_system
from amplifier_api_server.runtime.failures import BadRequest, Conflicting, Missing
from amplifier_api_server.runtime.protocol import Build, Built, Distribution, Image, ToBuild
from amplifier_api_server.runtime.wheels import (
    BUILD_FAILED,
    Unpacked,
    Wheel,
    needed,
    read_wheel,
    without_times,
    zip_folder,
)

_BUILT_AT_ONCE = 2
_TAIL_CHARS = 2_500
_CHUNK_BYTES = 256 * 1024
_EPOCH = "315532800"  # 1980, the first year that a zip can name: the same project gives the same wheel
_MAX_WARNINGS = 100
_CONTENTS = "distributions.txt"  # in the packages' folder: what was put there


@dataclass(frozen=True, slots=True)
class _Work:
    """One build's folders."""

    root: Path

    @property
    def backends(self) -> Path:
        return self.root / "backends"

    @property
    def scripts(self) -> Path:
        return self.root / "scripts"

    @property
    def packages(self) -> Path:
        return self.root / "packages"

    @property
    def archive(self) -> Path:
        """A folder, of its parts."""
        return self.root / "packages.zip"


class Builds:
    """The builds of one runtime; one at a time."""

    def __init__(self, folder: Path, installed: Path) -> None:
        self._folder = folder
        self._installed = installed
        self._is_busy = False

    async def build(self, build_id: str, body: Build) -> Built:
        """Build and install; the answer says what is in the archive that `packages` gives.

        Raises BadRequest (build_failed), Conflicting while another build goes on.
        """
        if self._is_busy:
            raise Conflicting("build_running", "this runtime is building already")
        self._is_busy = True
        work = _Work(self._folder / build_id)
        try:
            async with asyncio.timeout(body.timeout_seconds):
                return await self._build(work, body)
        except TimeoutError:
            await asyncio.to_thread(shutil.rmtree, work.root, ignore_errors=True)
            raise BadRequest(BUILD_FAILED, f"building took longer than {body.timeout_seconds:.0f} s") from None
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, work.root, ignore_errors=True)
            raise
        finally:
            self._is_busy = False

    async def packages(self, build_id: str) -> AsyncGenerator[bytes, None]:
        """The archive, once: the build's folders go when it is read, or given up. Raises Missing at once."""
        work = _Work(self._folder / build_id)
        taken = work.archive.with_suffix(".taken")
        try:
            work.archive.rename(taken)
        except OSError:
            raise Missing("build_not_found", f"there is no finished build {build_id!r:.140}") from None
        return self._streamed(work, taken)

    async def _streamed(self, work: _Work, archive: Path) -> AsyncGenerator[bytes, None]:
        try:
            for part in await asyncio.to_thread(lambda: sorted(archive.iterdir())):
                with part.open("rb") as file:
                    while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                        yield chunk
        finally:
            await asyncio.to_thread(shutil.rmtree, work.root, ignore_errors=True)

    async def _build(self, work: _Work, body: Build) -> Built:
        await asyncio.to_thread(work.root.mkdir, parents=True)
        downloaded = await asyncio.to_thread(self._downloaded, body.wheels)
        projects = await asyncio.to_thread(self._copies, work, body)
        for_building = await asyncio.to_thread(_unpack_backends, work, [one for one, _ in projects], downloaded)
        built, warnings = _without_doubles(await _build_all(work, body.image, projects))
        # What isn't built, and is imported from where it lies, has requirements too.
        asked = [*built, *(one for one in map(_plain, body.requirements) if one not in for_building)]
        found = needed([(Requirement(one), "the collection") for one in asked], downloaded | built)
        if found.missing:
            raise BadRequest(BUILD_FAILED, "; ".join(found.missing)[:_TAIL_CHARS])
        await asyncio.to_thread(work.packages.mkdir, exist_ok=True)
        await asyncio.to_thread(_unpack_all, work, found.wheels)
        warnings += found.warnings
        run = functools.partial(_run, work)
        unusable = await import_trial.unusable(
            body.modules, self._installed, work.packages, work.root / "imports.log", run
        )
        size = await asyncio.to_thread(zip_folder, work.packages, work.archive)
        distributions = [
            Distribution(name=one.name, version=one.version, sha256=one.sha256, source=one.source)
            for one in sorted(found.wheels, key=lambda one: one.name)
        ]
        return Built(
            distributions=distributions, archive_bytes=size, warnings=warnings[:_MAX_WARNINGS], unusable=unusable
        )

    def _downloaded(self, tree: str | None) -> dict[str, Wheel]:
        if tree is None:
            return {}
        return {one.name: one for one in map(read_wheel, sorted((self._installed / tree).glob("*.whl")))}

    def _copies(self, work: _Work, body: Build) -> list[tuple[Path, ToBuild]]:
        """Each project in a copy of its whole tree, which it may refer to and write in."""
        found = []
        for one in body.builds:
            copy = work.root / "trees" / one.tree
            if not copy.is_dir():
                shutil.copytree(self._installed / one.tree, copy, copy_function=shutil.copyfile)
            project = (copy / one.subdirectory).resolve()
            if not project.is_relative_to(copy.resolve()) or not project.is_dir():
                raise BadRequest(BUILD_FAILED, f"{one.uri} has no folder {one.subdirectory!r:.200}")
            found.append((project, one))
        return found


def _version_of(image: Image, one: ToBuild) -> str:
    """For projects whose version is their repository's tag, which isn't here: 0.0.0, and the commit."""
    commit = next((source.commit for source in (image.root, *image.sources) if source.tree == one.tree), None)
    return f"0.0.0+g{commit[:12]}" if commit and commit.isalnum() else "0.0.0"


def _plain(text: str) -> str:
    """Raises BadRequest for what is no requirement."""
    try:
        return str(Requirement(text))
    except InvalidRequirement as error:
        raise BadRequest(BUILD_FAILED, f"{text!r:.200} is no requirement: {error}") from None


def _unpack_backends(work: _Work, projects: Sequence[Path], there: Mapping[str, Wheel]) -> set[str]:
    """What building needs, and no more: some projects' own needs are large. The requirements that it came of."""
    wanted = []
    for project in projects:
        try:
            requires, _, _ = build_system(project)
            wanted += [(Requirement(one), f"building {project.name}") for one in requires]
        except (ValueError, InvalidRequirement, OSError) as error:
            raise BadRequest(BUILD_FAILED, f"{project.name}: pyproject.toml: {error}") from None
    found = needed(wanted, there)
    if found.missing:
        raise BadRequest(BUILD_FAILED, "; ".join(found.missing)[:_TAIL_CHARS])
    target = Unpacked(work.backends, work.scripts)
    for wheel in found.wheels:
        target.add(wheel)
    return {str(requirement) for requirement, _ in wanted}


def _unpack_all(work: _Work, wheels: Sequence[Wheel]) -> None:
    target = Unpacked(work.packages)
    for wheel in wheels:
        target.add(wheel)
    lines = sorted(f"{one.name} {one.version} {one.sha256}\n" for one in wheels)
    (work.packages / _CONTENTS).write_text("".join(lines), encoding="utf-8")


async def _build_all(work: _Work, image: Image, projects: Sequence[tuple[Path, ToBuild]]) -> list[Wheel]:
    """The wheels, in the order of the projects. The first failure ends the others."""
    limit = asyncio.Semaphore(_BUILT_AT_ONCE)
    tasks = [
        asyncio.create_task(_build_one(work, number, project, one, _version_of(image, one), limit))
        for number, (project, one) in enumerate(projects)
    ]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _build_one(
    work: _Work, number: int, project: Path, one: ToBuild, version: str, limit: asyncio.Semaphore
) -> Wheel:
    into = work.root / "built" / str(number)
    async with limit:
        into.mkdir(parents=True)
        command = ["-m", "amplifier_api_server.runtime.build_project", str(project), str(into)]
        status, said = await _run(work, command, _build_environment(work, version), work.root / f"build-{number}.log")
    wheels = sorted(into.glob("*.whl"))
    if status != 0 or len(wheels) != 1:
        why = said or f"it made {len(wheels)} wheels"
        how = f" ended by signal {status - 128} (perhaps for the memory it took)" if status > 128 else ""  # noqa: PLR2004 - as shells say signals
        raise BadRequest(BUILD_FAILED, f"{one.name} ({_shown(one)}) could not be built:{how} {why}")
    await asyncio.to_thread(without_times, wheels[0])
    return await asyncio.to_thread(read_wheel, wheels[0], one.uri)


def _shown(one: ToBuild) -> str:
    return one.uri + (f"#subdirectory={one.subdirectory}" if one.subdirectory else "")


def _build_environment(work: _Work, version: str) -> dict[str, str]:
    """Versions that are read from git's tags are given by the variables that such backends have for that."""
    pretended = dict.fromkeys(("SETUPTOOLS_SCM_PRETEND_VERSION", "PBR_VERSION", "PDM_BUILD_SCM_VERSION"), version)
    bypassed = dict.fromkeys(("POETRY_DYNAMIC_VERSIONING_BYPASS", "UV_DYNAMIC_VERSIONING_BYPASS"), version)
    return {"PYTHONPATH": str(work.backends), "SOURCE_DATE_EPOCH": _EPOCH, **pretended, **bypassed}


async def _run(work: _Work, command: Sequence[str], extra: Mapping[str, str], log: Path) -> tuple[int, str]:
    """Run this Python as a child; its status, and the end of what it said. Nothing that it started is left.

    Its output goes to a file: whoever still holds a pipe when the child has ended would keep us waiting.
    """
    temporary = work.root / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {
        "PATH": f"{work.scripts}:{os.environ.get('PATH', os.defpath)}",
        "HOME": str(temporary),
        "TMPDIR": str(temporary),
        "LANG": "C.UTF-8",
        "PYTHONSAFEPATH": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PIP_NO_INDEX": "1",
        **extra,
    }
    with log.open("wb") as output:
        program = [sys.executable, "-I", "-S", supervisor.__file__, "program", "0", sys.executable, *command]
        async with call_groups.ours().call() as group:
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - asyncio's own takes a thread a child too
                program,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=temporary,
                env=environment,
                start_new_session=True,
            )
            assert process.stdin
            try:
                group.add(process.pid)
                os.write(process.stdin.fileno(), b"\n")
                status = await asyncio.to_thread(process.wait)
            finally:
                group.kill()
                process.stdin.close()  # the supervisor kills what is left, then ends
                await asyncio.shield(asyncio.to_thread(process.wait))
    return status, await asyncio.to_thread(_tail, log)


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4 * _TAIL_CHARS))
        text = file.read(4 * _TAIL_CHARS).decode("utf-8", "replace")
    clean = "".join(char for char in text if char.isprintable() or char == "\n")
    return clean.strip()[-_TAIL_CHARS:]


def _without_doubles(built: Sequence[Wheel]) -> tuple[dict[str, Wheel], list[str]]:
    """By name; of two that are built from different sources the first one stays, and a warning says so."""
    found: dict[str, Wheel] = {}
    warnings = []
    for one in built:
        first = found.setdefault(one.name, one)
        if first.sha256 != one.sha256:
            warnings.append(f"{one.name} is built from {first.source} and from {one.source}; the first one is used")
    return found, warnings
