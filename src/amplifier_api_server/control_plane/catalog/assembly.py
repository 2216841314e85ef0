"""Making an image: what one installation does, from the caller's source to trees that a session can be made of.

Owns the order: fetch the root; let a sandbox say what it names; fetch that; until nothing is wanted; wheels; build; keep.
Refuses to know jobs, rows and requests. Nothing of a stranger's is parsed or run here: that is the sandbox's part, and what
it says is checked against what was fetched. Invariants: every tree that is used is held, and `held` says which; all bounds
of `collections` hold for the whole of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

import structlog

from amplifier_api_server.control_plane.catalog.archive import unpack
from amplifier_api_server.control_plane.catalog.garbage import Garbage
from amplifier_api_server.control_plane.catalog.source_limits import Admit, FetchedTree, FetchedWheels, FetchLimits
from amplifier_api_server.control_plane.catalog.trees import Trees
from amplifier_api_server.control_plane.catalog.workshop import Workshop
from amplifier_api_server.control_plane.pods.threads import in_thread
from amplifier_api_server.control_plane.settings import Collections
from amplifier_api_server.runtime import protocol
from amplifier_api_server.runtime.protocol import Image, Inspection, Source, SourceUri, Wanted
from amplifier_api_server.tenants.errors import DomainError, Invalid, TooLarge

log = structlog.get_logger(__name__)

_FETCHED_AT_ONCE = 4
_MAX_ROUNDS = 16  # how deep sources name sources
_MAX_WARNINGS = 200
_MAX_WARNING_CHARS = 500
_MAX_TOLD = 20  # of sources that can't be had, in one message
_NOT_TO_BE_HAD = ("source_not_found", "source_not_allowed", "source_not_supported")  # and never will be, as things are
UPLOAD = "upload"  # the source of an archive that was sent

Report = Callable[[str, str, int, int], None]  # phase, detail, done, total


class FetchesSources(Protocol):
    def close(self) -> None: ...

    async def fetch(self, uri: SourceUri, *, limits: FetchLimits) -> FetchedTree: ...


class DownloadsWheels(Protocol):
    def close(self) -> None: ...

    async def download(
        self, requirements: Sequence[str], *, exclude: Collection[str] = (), limits: FetchLimits
    ) -> FetchedWheels: ...


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be installed. `archive` is a file of what was uploaded, where there is no `uri`.

    With `skip_missing`, what it names and nobody has is left out; what could be there later still fails it.
    """

    source: str
    uri: SourceUri | None = None
    archive: Path | None = None
    modules: protocol.ModuleUse = "own"
    name: str | None = None
    skip_missing: bool = False

    @classmethod
    def of_address(cls, address: str, *, modules: protocol.ModuleUse, name: str | None, skip_missing: bool) -> Order:
        """Of what is fetched from `address`. Raises Invalid (`source_not_supported`)."""
        try:
            uri = SourceUri.parse(address)
        except ValueError as error:
            errors = [{"field": "source", "message": str(error)}]
            raise Invalid(f"source: {error}", code="source_not_supported", errors=errors) from error
        return cls(address, uri, modules=modules, name=name, skip_missing=skip_missing)


@dataclass(frozen=True, slots=True)
class Kitchen:
    """What every assembly works with."""

    settings: Collections
    trees: Trees
    garbage: Garbage
    sources: FetchesSources
    wheels: DownloadsWheels


@dataclass(slots=True)
class _Budget:
    """What is left of a collection's bounds."""

    bytes: int
    files: int

    def spend(self, size_bytes: int, files: int) -> None:
        self.bytes -= size_bytes
        self.files -= files
        if self.bytes < 0 or self.files < 0:
            raise TooLarge("the collection, with all that it names, is larger than collections.max_size or max_files")


@dataclass(slots=True)
class Assembly:
    """One image in the making."""

    kitchen: Kitchen
    order: Order
    report: Report
    admit: Admit = lambda _: None
    held: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _done: int = 0
    _total: int = 1
    _budget: _Budget = field(init=False)

    def __post_init__(self) -> None:
        self._budget = _Budget(self.kitchen.settings.max_size, self.kitchen.settings.max_files)

    async def root(self) -> Image:
        """The image as it begins: its root's tree alone. Raises what fetching and unpacking raise."""
        self._tell("fetching", self.order.source)
        order = self.order
        if order.uri is None:
            assert order.archive is not None
            source, subdirectory = Source(uri=order.source, tree=await self._unpacked(order.archive)), ""
        else:
            found = await self._fetched(order.uri)
            source = Source(uri=order.uri.key, commit=found.commit, tree=found.tree)
            subdirectory = order.uri.subdirectory
        self._done += 1
        return Image(name=order.name or "", root=source, subdirectory=subdirectory, modules=order.modules)

    async def complete(self, image: Image, workshop: Workshop) -> Inspection:
        """Fetch what the image names, into it, until nothing is wanted. Raises Invalid, TooLarge, Unavailable."""
        for _ in range(_MAX_ROUNDS):
            self._tell("inspecting")
            await workshop.put(image.trees())
            inspection = await workshop.inspect(image, skip_missing=self.order.skip_missing)
            missing = [one for one in inspection.missing if one not in image.lacks] if self.order.skip_missing else []
            image.lacks += missing  # the next inspection tells where each was named
            image.name = image.name or inspection.manifest.name
            have = {image.root.uri, *(one.uri for one in image.sources), *image.lacks}
            wanted = [one for one in _merged(inspection.wanted) if one.uri not in have]
            if not wanted and not missing:
                for text in inspection.warnings:
                    self.warn(text)
                return inspection
            await self._fetch_all(image, wanted)
        raise Invalid(f"its sources name sources more than {_MAX_ROUNDS} deep", code="collection_invalid")

    async def packages(self, image: Image, inspection: Inspection, workshop: Workshop) -> bool:
        """Have the modules built and tried, and all that they need installed, into the image. Whether that changed it.

        Raises Invalid, TooLarge, Unavailable.
        """
        if not inspection.builds and not inspection.requirements and not inspection.modules:
            return False
        wheels = FetchedWheels(tree=None, wheels=(), size_bytes=0)
        if inspection.builds or inspection.requirements:
            self._tell("downloading", f"{len(inspection.requirements)} requirements")
            wheels = await self._downloaded(inspection)
        self._tell("building", f"{len(inspection.builds)} projects")
        await workshop.put([wheels.tree] if wheels.tree else [])
        seconds = self.kitchen.settings.install_timeout.total_seconds()
        body = protocol.Build(
            image=image,
            builds=inspection.builds,
            requirements=inspection.requirements,
            modules=inspection.modules,
            wheels=wheels.tree,
            timeout_seconds=seconds,
        )
        built = await workshop.build(body)
        _check(built, {one.uri for one in inspection.builds}, {one.sha256 for one in wheels.wheels})
        for text in built.warnings:
            self.warn(text)
        is_less = self._leave_out(image, inspection.modules, built.unusable)
        if not built.distributions:
            return is_less
        self._tell("keeping")
        image.packages = await self._kept_packages(workshop, built.archive_bytes)
        image.distributions = built.distributions
        return True

    def _leave_out(self, image: Image, modules: Sequence[protocol.OutsideModule], unusable: Mapping[str, str]) -> bool:
        """Of modules that can't be imported: what may be left out is. Whether any was. Raises Invalid naming all others."""
        named = {one.id: one for one in modules}
        refused = []
        for module_id, why in unusable.items():
            one = named.get(module_id)
            if one is None:
                self.warn(f"{module_id} can't be imported: {why}")  # a package that no profile names: only told
                continue
            told = f"module {one.id!r} of {one.uri} (named at {one.named_at}) can't be imported: {why}"
            if one.optional or self.order.skip_missing:
                if len(image.lacks) >= protocol.MAX_SOURCES:
                    raise TooLarge(f"more than {protocol.MAX_SOURCES} parts of it are left out")
                self.warn(told)
                image.lacks.append(one.part)
            else:
                refused.append(told)
        if refused:
            more = f"; and {len(refused) - _MAX_TOLD} more" if len(refused) > _MAX_TOLD else ""
            told = "; ".join(refused[:_MAX_TOLD]) + more
            raise Invalid(f"{told}. With skip_missing it is installed without them", code="build_failed")
        return any(module_id in named for module_id in unusable)

    def warn(self, text: str) -> None:
        """For the tenant to read; a sandbox may have said it."""
        clean = "".join(char if char.isprintable() else " " for char in text)[:_MAX_WARNING_CHARS]
        if clean not in self.warnings and len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(clean)

    def _tell(self, phase: str, detail: str = "") -> None:
        self.report(phase, detail[:_MAX_WARNING_CHARS], self._done, self._total)

    # Fetching.

    async def _fetch_all(self, image: Image, wanted: Sequence[Wanted]) -> None:
        most = min(self.kitchen.settings.max_sources, protocol.MAX_SOURCES)
        if 1 + len(image.sources) + len(wanted) > most:
            raise TooLarge(f"the collection is made of more than {most} sources (collections.max_sources)")
        self._total += len(wanted)
        limit = asyncio.Semaphore(_FETCHED_AT_ONCE)
        tasks = [asyncio.create_task(self._fetch_one(one, limit)) for one in wanted]
        try:
            fetched = _all(await asyncio.gather(*tasks, return_exceptions=True))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for one, source in zip(wanted, fetched, strict=True):
            if source is None:
                image.lacks.append(one.uri)
            else:
                image.sources.append(source)

    async def _fetch_one(self, wanted: Wanted, limit: asyncio.Semaphore) -> Source | None:
        """The source; None where it can't be had and may be left out."""
        try:
            async with limit:
                self._tell("fetching", wanted.uri)
                uri = _parsed(wanted.uri)
                found = await self._fetched(uri)
        except DomainError as error:
            if wanted.optional and not isinstance(error, TooLarge):
                self.warn(f"{wanted.uri} is left out, which {wanted.wanted_by} says is optional: {error.detail}")
                return None
            if not self.order.skip_missing or error.stable_code not in _NOT_TO_BE_HAD:
                _raise_naming(error, wanted)
            self.warn(f"{wanted.uri} is left out, which {wanted.wanted_by} names: {error.detail}")
            return None
        finally:
            self._done += 1
        return Source(uri=wanted.uri, commit=found.commit, tree=found.tree)

    async def _fetched(self, uri: SourceUri) -> FetchedTree:
        """The tree, held. It is fetched again when it was thought to be there, and was deleted meanwhile."""
        for _ in range(2):
            found = await self.kitchen.sources.fetch(uri, limits=self._limits())
            if self._hold(found.tree):
                break
        self._budget.spend(found.size_bytes, found.files)
        for text in found.warnings:
            self.warn(text)
        return found

    def _limits(self) -> FetchLimits:
        seconds = self.kitchen.settings.fetch_timeout.total_seconds()
        return FetchLimits(self._budget.bytes, self._budget.files, seconds, self.admit)

    def _hold(self, tree: str) -> bool:
        self.held.append(tree)
        return self.kitchen.garbage.hold(tree)

    async def _unpacked(self, archive: Path) -> str:
        trees, budget = self.kitchen.trees, self._budget

        def work() -> tuple[str, int, int]:
            with _staging(trees) as staging, archive.open("rb") as file:
                into = staging / "files"
                unpacked = unpack(file, into, max_files=budget.files, max_bytes=budget.bytes, admit=self.admit)
                kept = trees.keep(unpacked.folder)
                return kept.hash, kept.size_bytes, kept.files

        for _ in range(2):
            tree, size_bytes, files = await in_thread(work)
            if self._hold(tree):
                break
        budget.spend(size_bytes, files)
        return tree

    # Building.

    async def _downloaded(self, inspection: Inspection) -> FetchedWheels:
        """What is built here is not looked for elsewhere."""
        built = [one.name for one in inspection.builds]
        for _ in range(2):
            found = await self.kitchen.wheels.download(inspection.requirements, exclude=built, limits=self._limits())
            if found.tree is None or self._hold(found.tree):
                break
        return found

    async def _kept_packages(self, workshop: Workshop, size_bytes: int) -> str:
        # What the archive itself holds beside the files' bytes: names and attributes.
        most = self._budget.bytes + 1024 * self._budget.files
        if size_bytes > most:
            told = f"the packages that it needs have {size_bytes} bytes, more than collections.max_size leaves for them"
            raise TooLarge(told, limit_bytes=self.kitchen.settings.max_size)
        staging = await in_thread(self.kitchen.trees.new_folder)
        try:
            archive = staging / "packages.zip"
            await workshop.packages(archive, max_bytes=most)
            return await self._unpacked(archive)
        finally:
            await asyncio.shield(in_thread(self.kitchen.trees.delete, staging))


@contextmanager
def _staging(trees: Trees) -> Iterator[Path]:
    """A new folder, gone at the end. Blocks."""
    folder = trees.new_folder()
    try:
        yield folder
    finally:
        trees.delete(folder)


def _merged(wanted: Sequence[Wanted]) -> list[Wanted]:
    """Each source once; optional only where everybody says so."""
    found: dict[str, Wanted] = {}
    for one in wanted:
        if one.uri not in found or (found[one.uri].optional and not one.optional):
            found[one.uri] = one
    return list(found.values())


def _parsed(text: str) -> SourceUri:
    try:
        return SourceUri.parse(text)
    except ValueError as error:
        raise Invalid(str(error), code="source_not_supported") from error


def _all(fetched: Sequence[Source | BaseException | None]) -> list[Source | None]:
    """What was fetched. Raises the first error, and in its words all of them: who mends one wants to know of the others."""
    errors = [one for one in fetched if isinstance(one, BaseException)]
    strange = next((one for one in errors if not isinstance(one, DomainError)), None)
    if strange is not None:
        raise strange
    told = [one for one in errors if isinstance(one, DomainError)]
    if len(told) > 1:
        first = told[0]
        detail = "; ".join(one.detail for one in told[:_MAX_TOLD])
        more = f"; and {len(told) - _MAX_TOLD} more" if len(told) > _MAX_TOLD else ""
        raise type(first)(
            detail + more, code=first.stable_code, retry_after_seconds=first.retry_after_seconds
        ) from first
    if told:
        raise told[0]
    return [one for one in fetched if not isinstance(one, BaseException)]


def _raise_naming(error: DomainError, wanted: Wanted) -> NoReturn:
    by = "".join(char if char.isprintable() else " " for char in wanted.wanted_by)[:300]
    raise type(error)(
        f"{error.detail} (wanted by {by})",
        code=error.stable_code,
        retry_after_seconds=error.retry_after_seconds,
    ) from error


def _check(built: protocol.Built, sources: set[str], wheels: set[str]) -> None:
    """What a sandbox says it installed must be what it was given, or built from what it was given."""
    for one in built.distributions:
        is_known = one.sha256 in wheels if one.source is None else one.source in sources
        if not is_known:
            raise Invalid(f"{one.name[:100]} {one.version[:50]} came from nowhere", code="build_failed")
