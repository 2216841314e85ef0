"""Sources: what a collection and its parts are fetched from, and which of it may be had.

Owns the way from an address as bundles write it to a kept tree, and the codes of what goes wrong. Git over https and zip
over https, or a mirror of the operator's; nothing else. Invariants: what is kept is what was read, in full, within the
limits; nothing of a fetch that failed is left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from amplifier_api_server.control_plane.catalog.archive import unpack
from amplifier_api_server.control_plane.catalog.git import Git
from amplifier_api_server.control_plane.catalog.mirrors import archive_at, local_path, mirror_of, repository_at
from amplifier_api_server.control_plane.catalog.source_limits import FetchedTree, FetchLimits
from amplifier_api_server.control_plane.catalog.trees import Trees
from amplifier_api_server.control_plane.egress.addresses import (
    EgressError,
    HostRules,
    NotAllowed,
    Resolve,
    TooSlow,
    host_of,
    system_resolve,
)
from amplifier_api_server.control_plane.egress.certificates import bundle_of, context_of
from amplifier_api_server.control_plane.egress.client import Client
from amplifier_api_server.control_plane.egress.programs import Programs
from amplifier_api_server.control_plane.settings import Collections
from amplifier_api_server.runtime.protocol import SourceUri
from amplifier_api_server.tenants.errors import DomainError, Invalid, TooLarge, Unavailable

log = structlog.get_logger(__name__)

_HTTP_OK = 200
_ABSENT = frozenset({401, 403, 404, 410})


class Sources:
    """One for the process; `close` it."""

    def __init__(self, settings: Collections, trees: Trees, *, resolve: Resolve = system_resolve) -> None:
        self._settings = settings
        self._trees = trees
        self._rules = HostRules(settings.hosts, settings.denied_hosts, settings.private_hosts)
        self._programs = Programs()
        self._client = Client(self._rules, lambda: context_of(settings.ca_file), resolve=resolve)
        self._git = Git(self._programs, lambda: bundle_of(settings.ca_file))

    def close(self) -> None:
        """Take no more work; what runs is ended by the cancelling of who waits for it."""
        self._programs.close()

    async def fetch(self, uri: SourceUri, *, limits: FetchLimits) -> FetchedTree:
        """Fetch a source and keep it as a tree: the whole of it, whatever subdirectory is wanted.

        Raises Invalid (`source_not_allowed`, `source_not_found`, `invalid_archive`), TooLarge (`source_too_large`),
        Unavailable (`source_unreachable`, `source_timeout`, `git_not_available`).
        """
        try:
            async with asyncio.timeout(limits.timeout_seconds):
                return await self._fetch(uri, limits)
        except (TimeoutError, TooSlow) as error:
            told = str(error) or f"it was not fetched within {limits.timeout_seconds:.0f} s"
            raise Unavailable(f"{uri.url}: {told}", code="source_timeout", retry_after_seconds=30) from error
        except NotAllowed as error:
            raise Invalid(f"{uri.url} may not be fetched: {error}", code="source_not_allowed") from error
        except EgressError as error:
            raise Unavailable(f"{uri.url}: {error}", code="source_unreachable", retry_after_seconds=30) from error
        except DomainError as error:
            raise _naming(error, uri) from error

    async def _fetch(self, uri: SourceUri, limits: FetchLimits) -> FetchedTree:
        try:
            mirror = mirror_of(uri.url, self._settings.mirrors)
        except ValueError as error:
            raise Invalid(str(error), code="source_not_found") from error
        scheme = urlsplit(mirror or uri.url).scheme
        if scheme == "file" and mirror is not None:
            return await self._from_here(uri, mirror, limits)
        schemes: tuple[str, ...] = ("https", "http") if mirror is not None else ("https",)
        if scheme not in schemes:
            raise NotAllowed(f"collections come from https addresses, not from {scheme}://")
        url = mirror or uri.url
        rules = self._rules if mirror is None else _also(self._rules, mirror)
        return await (self._clone if uri.kind == "git" else self._download)(uri, url, rules, schemes, limits)

    async def _clone(
        self, uri: SourceUri, url: str, rules: HostRules, schemes: tuple[str, ...], limits: FetchLimits
    ) -> FetchedTree:
        await self._git.check()
        remote = await self._git.find(self._client, url, rules, schemes)
        async with self._staging() as staging:
            folder = staging / "files"
            commit = await self._git.fetch(remote, uri.ref, folder, limits)
            return await self._keep(uri, folder, commit.id, commit.warnings)

    async def _download(
        self, uri: SourceUri, url: str, rules: HostRules, schemes: tuple[str, ...], limits: FetchLimits
    ) -> FetchedTree:
        async with self._staging() as staging:
            file = staging / "archive"
            async with self._client.get(url, schemes=schemes, rules=rules) as answer:
                if answer.status in _ABSENT:
                    raise Invalid("it is not there, or not without credentials", code="source_not_found")
                if answer.status != _HTTP_OK:
                    raise Unavailable(f"it answers {answer.status}", code="source_unreachable", retry_after_seconds=30)
                left = limits.max_bytes
                with file.open("wb") as sink:
                    while chunk := await answer.read():
                        left -= len(chunk)
                        if left < 0:
                            raise TooLarge(f"it has more than {limits.max_bytes} bytes", code="source_too_large")
                        sink.write(chunk)
            return await self._unpacked(uri, file, staging, limits)

    async def _from_here(self, uri: SourceUri, mirror: str, limits: FetchLimits) -> FetchedTree:
        path = local_path(mirror)
        if path is None:
            log.error("a mirror is no address of this machine", mirror=mirror)
            raise NotAllowed("the operator's mirror is no address of a file")
        async with self._staging() as staging:
            repository = await self._programs.do(lambda: repository_at(path)) if uri.kind == "git" else None
            if repository is not None:
                commit = await self._git.read(repository, uri.ref, staging / "files", limits)
                return await self._keep(uri, staging / "files", commit.id, commit.warnings)
            archive = await self._programs.do(lambda: archive_at(path))
            if archive is None:
                raise Invalid("the operator's mirror does not have it", code="source_not_found")
            return await self._unpacked(uri, archive, staging, limits)

    async def _unpacked(self, uri: SourceUri, archive: Path, staging: Path, limits: FetchLimits) -> FetchedTree:
        folder = staging / "files"

        def work() -> None:
            with archive.open("rb") as file:
                unpack(file, folder, max_files=limits.max_files, max_bytes=limits.max_bytes, admit=limits.admit)

        await self._programs.do(work)
        return await self._keep(uri, folder, None, ())

    @contextlib.asynccontextmanager
    async def _staging(self) -> AsyncIterator[Path]:
        """A new folder; what is left in it is deleted at the end, and not by the event loop's thread."""
        folder = await self._programs.do(self._trees.new_folder)
        try:
            yield folder
        finally:
            await asyncio.shield(self._programs.do(lambda: self._trees.delete(folder)))

    async def _keep(self, uri: SourceUri, folder: Path, commit: str | None, warnings: tuple[str, ...]) -> FetchedTree:
        """Raises Invalid (`source_not_found`) when the wanted subdirectory is not in it."""
        if uri.subdirectory and not (folder / uri.subdirectory).exists():  # one bundle's file may be meant
            raise Invalid(f"it has no folder or file {uri.subdirectory[:200]!r}", code="source_not_found")
        kept = await self._programs.do(lambda: self._trees.keep(folder))
        return FetchedTree(kept.hash, commit, kept.size_bytes, kept.files, warnings)


def _also(rules: HostRules, mirror: str) -> HostRules:
    """The same, and the mirror's own host, wherever it is: the operator has named it."""
    parts = urlsplit(mirror)
    host = host_of(parts.hostname or "")
    bracketed = f"[{host}]" if ":" in host else host
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return HostRules((*rules.allow, host), rules.deny, (*rules.private, f"{bracketed}:{port}"))


def _naming(error: DomainError, uri: SourceUri) -> DomainError:
    """The same error, saying of which source."""
    code = "source_too_large" if isinstance(error, TooLarge) else error.stable_code
    detail = error.detail if uri.url in error.detail else f"{uri.url}: {error.detail}"
    return type(error)(detail, code=code, retry_after_seconds=error.retry_after_seconds, **error.extra)


__all__ = ["FetchLimits", "FetchedTree", "Sources"]
