"""What sessions can be made of: the profiles and tools that ship, and each tenant's collections.

Owns installing and removing. What a collection holds is read by a runtime of its tenant, in the sandbox: nothing of a
stranger's is parsed here but the archive's own table of contents. Invariants: a folder of files is never changed once it has
its hash for a name; files go only when no row and no open session needs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import orjson
import structlog

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.catalog.archive import Unpacked, unpack
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.pods.calls import RuntimeRefused
from amplifier_api_server.control_plane.pods.fleet import Fleet, Need
from amplifier_api_server.control_plane.pods.launcher import Address, LaunchError
from amplifier_api_server.control_plane.router.errors import RouterError
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.runtime import protocol
from amplifier_api_server.tenants.errors import Conflict, Invalid, NotFound, Unavailable
from amplifier_api_server.tenants.ids import RuntimeId, TenantId, new_collection_id
from amplifier_api_server.tenants.models import Collection
from amplifier_api_server.tenants.repository import collections, sessions

log = structlog.get_logger(__name__)

_MAX_COLLECTIONS = 100  # of one tenant
_UNPACK_SECONDS = 60.0
_UNPACKED_AT_ONCE = 2  # threads: others write turns' events
_KNOWN_SECONDS = 2.0
_SWEEP_EVERY = timedelta(minutes=5)
_GARBAGE_AGE = timedelta(minutes=15)  # far longer than a session takes to be made


@dataclass(frozen=True, slots=True)
class Choice:
    """What a session of a profile is made with."""

    images: tuple[protocol.Image, ...] = ()
    key: str = ""


@dataclass(frozen=True, slots=True)
class Profile:
    name: str
    source: str  # bundled | collection
    description: str
    version: str | None


class Catalogue:
    """Profiles, tools and collections."""

    def __init__(self, *, settings: Settings, database: Database, fleet: Fleet, clock: Clock) -> None:
        self._settings = settings
        self._database = database
        self._fleet = fleet
        self._clock = clock
        self._folder = settings.server.data_dir / "collections"
        self._bundled: protocol.Catalog | None = None
        self._reading = asyncio.Lock()
        self._unpacking = asyncio.Semaphore(_UNPACKED_AT_ONCE)
        self._installing: Counter[str] = Counter()  # content hashes
        self._dropping: set[str] = set()
        self._swept_at = clock.now()

    def folder_of(self, content_hash: str) -> str:
        """Where the files of an installed collection lie."""
        return str(self._folder / content_hash)

    # Reading.

    async def bundled(self) -> protocol.Catalog:
        """What ships with the runtime, asked of the first one that answers. Raises Unavailable."""
        if self._bundled is None:
            async with self._reading:
                if self._bundled is None:
                    self._bundled = await self._ask_for_catalog()
        return self._bundled

    async def is_known(self) -> bool:
        """Whether profiles and tools can be listed: a runtime has told."""
        try:
            async with asyncio.timeout(_KNOWN_SECONDS):
                await self.bundled()
        except (Unavailable, TimeoutError):
            return False
        return True

    async def _ask_for_catalog(self) -> protocol.Catalog:
        """Of a runtime that nobody has claimed: all tenants are told what it says, so no tenant's code may say it."""
        async with self._fleet.spare() as (runtime_id, _):
            address = self._fleet.address(runtime_id)
            try:
                if address is not None:
                    return await self._fleet.calls.catalog(address)
            except (RouterError, RuntimeRefused) as error:
                log.warning("a runtime did not tell its catalog", runtime_id=runtime_id, error=str(error))
        raise Unavailable("no sandbox runs yet; try again", code="no_runtime", retry_after_seconds=1)

    async def profiles(self, tenant_id: TenantId) -> list[Profile]:
        """The bundled ones, and those of the tenant's collections, by name."""
        shipped = [
            Profile(one.name, "bundled", one.description, one.version) for one in (await self.bundled()).profiles
        ]
        own = [
            Profile(one["name"], "collection", one.get("description", ""), one.get("version"))
            for row in await self.collections(tenant_id)
            for one in row.manifest.get("profiles", [])
        ]
        return sorted(shipped, key=lambda one: one.name) + sorted(own, key=lambda one: one.name)

    async def tools(self) -> Sequence[protocol.ToolSpec]:
        """Tools that can be run without a session."""
        return (await self.bundled()).tools

    async def collections(self, tenant_id: TenantId, *, limit: int | None = None, after: str = "") -> list[Collection]:
        async with self._database.read() as db:
            return await collections.page(db, tenant_id, limit=limit, after=after)

    async def choose(self, tenant_id: TenantId, profile: str) -> Choice:
        """What a session of `profile` needs. Raises NotFound (`profile_not_found`)."""
        if any(one.name == profile for one in (await self.bundled()).profiles):
            return Choice()
        rows = await self.collections(tenant_id)
        if not any(one["name"] == profile for row in rows for one in row.manifest.get("profiles", [])):
            raise NotFound(
                f"there is no profile {profile[:160]!r}; GET /v1/profiles lists them", code="profile_not_found"
            )
        return _choice([protocol.Image.model_validate(row.image) for row in rows])

    # Tools.

    async def execute_tool(self, principal: Principal, name: str, given: dict[str, object]) -> protocol.ToolOutcome:
        """Run a bundled tool in a sandbox of the tenant, without a session. Raises NotFound, Unavailable."""
        if not any(one.name == name for one in await self.tools()):
            raise NotFound(f"there is no tool {name!r}; GET /v1/tools lists them", code="tool_not_found")
        runtime_id, address = await self._runtime(principal)
        limit = self._settings.sessions.tool_timeout.total_seconds()
        try:
            await self._fleet.set_idle(runtime_id, idle=True)  # in use now: its idleness begins anew
            return await self._fleet.calls.execute_tool(
                address, name, protocol.ExecuteTool(input=given, timeout_seconds=limit)
            )
        except RuntimeRefused as error:
            raise _as_domain_error(error) from error
        except RouterError as error:
            raise Unavailable(
                f"the sandbox did not run the tool: {error}", code="runtime_lost", retry_after_seconds=1
            ) from error

    async def _runtime(self, principal: Principal) -> tuple[RuntimeId, Address]:
        runtime_id = await self._fleet.acquire(Need(principal))
        address = self._fleet.address(runtime_id)
        if address is None:
            raise Unavailable("the sandbox ended; try again", code="no_runtime", retry_after_seconds=1)
        return runtime_id, address

    # Installing.

    async def install(self, principal: Principal, archive: bytes, *, source: str = "upload") -> Collection:
        """Install an uploaded archive, or replace the collection of that name. Commits.

        Raises Invalid (`invalid_archive`, `collection_invalid`), TooLarge, Conflict, Unavailable; nothing is left then.
        """
        unpacked = await self._unpack(archive)
        content_hash = unpacked.content_hash
        self._installing[content_hash] += 1
        self._dropping.discard(content_hash)
        try:
            kept = await asyncio.to_thread(self._keep, unpacked)
            manifest = await self._inspect(principal, content_hash, kept, source)
            row, replaced = await self._record(principal, manifest, content_hash, source)
        except BaseException:
            self._installed(content_hash)
            # Nobody fills the disk with archives that are refused.
            await asyncio.shield(self._drop([content_hash]))
            raise
        self._installed(content_hash)
        if replaced is not None:
            await asyncio.to_thread(self._touch, replaced)
        log.info("collection installed", tenant_id=principal.tenant_id, name=row.name, hash=row.content_hash[:12])
        return row

    def _installed(self, content_hash: str) -> None:
        self._installing[content_hash] -= 1
        self._installing += Counter()  # forgets those at 0

    async def _record(
        self, principal: Principal, manifest: protocol.CollectionManifest, content_hash: str, source: str
    ) -> tuple[Collection, str | None]:
        """The row, committed; and the hash of the content that it replaces."""
        if any(one.name.startswith(manifest.name + ":") for one in (await self.bundled()).profiles):
            raise Conflict(f"{manifest.name!r} is the name of a bundled collection; choose another", code="name_taken")
        image = protocol.Image(name=manifest.name, root=protocol.Source(uri=source, tree=content_hash))
        row = Collection(
            id=new_collection_id(),
            tenant_id=principal.tenant_id,
            name=manifest.name,
            version=manifest.version,
            description=manifest.description,
            source=source,
            content_hash=image_hash(image),
            image=image.model_dump(),
            manifest=manifest.model_dump(),
            installed_at=self._clock.now(),
            installed_by=principal.member_id,
        )
        async with self._database.write() as db:
            there = await collections.page(db, principal.tenant_id)
            if len(there) >= _MAX_COLLECTIONS and all(one.name != row.name for one in there):
                raise Conflict(f"a tenant has at most {_MAX_COLLECTIONS} collections", code="too_many_collections")
            replaced = next((one.image["root"]["tree"] for one in there if one.name == row.name), None)
            await collections.put(db, principal.tenant_id, row)
        return row, replaced

    async def _unpack(self, archive: bytes) -> Unpacked:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))

        def work() -> Unpacked:
            with tempfile.SpooledTemporaryFile(max_size=1 << 20, dir=str(staging)) as file:
                file.write(archive)
                file.seek(0)
                return unpack(file, staging / "files")

        try:
            async with asyncio.timeout(_UNPACK_SECONDS), self._unpacking:
                return await asyncio.to_thread(work)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise

    def _keep(self, unpacked: Unpacked) -> Path:
        """Move the folder to its hash's place; the same content that is there already stays."""
        target = self._folder / unpacked.content_hash
        try:
            unpacked.folder.rename(target)
        except OSError:
            if not target.is_dir():
                raise
        os.utime(target)
        shutil.rmtree(unpacked.folder.parent, ignore_errors=True)
        return target

    async def _inspect(
        self, principal: Principal, content_hash: str, folder: Path, source: str
    ) -> protocol.CollectionManifest:
        runtime_id, address = await self._runtime(principal)
        try:
            await self._fleet.launcher.install(runtime_id, content_hash, str(folder))
            image = protocol.Image(name="", root=protocol.Source(uri=source, tree=content_hash))
            return (await self._fleet.calls.inspect(address, protocol.Inspect(image=image))).manifest
        except RuntimeRefused as error:
            raise Invalid(error.failure.detail, code=error.failure.code) from error
        except (RouterError, LaunchError) as error:
            # What was sent to be read ended its reader, or hung it: the archive's own doing, and its tenant's sandbox.
            await self._fleet.end(runtime_id, "it failed while it read a collection")
            raise Invalid(f"the collection could not be read: {error}", code="collection_invalid") from error

    async def remove(self, principal: Principal, name: str) -> None:
        """Sessions that were made with it keep it. Raises NotFound. Commits."""
        async with self._database.write() as db:
            there = {one.name: one.image["root"]["tree"] for one in await collections.page(db, principal.tenant_id)}
            if not await collections.remove(db, principal.tenant_id, name):
                raise NotFound(f"there is no collection {name!r}", code="collection_not_found")
        await asyncio.to_thread(self._touch, there[name])
        log.info("collection removed", tenant_id=principal.tenant_id, name=name)

    async def collect_garbage(self, *, min_age: timedelta = timedelta()) -> int:
        """Delete folders that neither a row nor an open session needs, and did not since `min_age`; how many."""
        return await self._drop(await asyncio.to_thread(self._unchanged_for, min_age.total_seconds()))

    async def sweep(self) -> None:
        """Now and then, what was replaced, removed, or last used by a session that is closed."""
        now = self._clock.now()
        if now - self._swept_at >= _SWEEP_EVERY:
            self._swept_at = now
            deleted = await self.collect_garbage(min_age=_GARBAGE_AGE)
            if deleted:
                log.info("folders of collections deleted", count=deleted)

    async def _needed(self) -> set[str]:
        async with self._database.read() as db:
            needed = await collections.content_hashes_of_all_tenants(db)
            return needed | await sessions.content_hashes_in_use_of_all_tenants(db)

    async def _drop(self, names: Sequence[str]) -> int:
        """Delete those of these folders that nothing needs, and that nobody began to install meanwhile; how many."""
        self._dropping.update(name for name in names if name not in self._installing)
        try:
            needed = await self._needed()
            unneeded = [name for name in names if name in self._dropping and name not in needed]
            gone = [self._set_aside(name) for name in unneeded]  # at once: nobody can begin to install it in between
        finally:
            self._dropping.difference_update(names)
        for folder in gone:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return len(gone)

    def _set_aside(self, name: str) -> Path:
        aside = self._folder / f".old-{secrets.token_hex(8)}"
        with contextlib.suppress(OSError):
            (self._folder / name).rename(aside)
        return aside

    def _touch(self, content_hash: str) -> None:
        """It is needed no more, but by whoever is making a session of it right now: its age begins anew."""
        with contextlib.suppress(OSError):
            os.utime(self.folder_of(content_hash))

    def _unchanged_for(self, seconds: float) -> list[str]:
        oldest = time.time() - seconds
        found = []
        for entry in os.scandir(self._folder) if self._folder.is_dir() else ():
            with contextlib.suppress(OSError):
                if entry.stat().st_mtime <= oldest:
                    found.append(entry.name)
        return found


def _choice(images: Sequence[protocol.Image]) -> Choice:
    return Choice(tuple(images), hashlib.sha256("\n".join(sorted(map(image_hash, images))).encode()).hexdigest()[:32])


def image_hash(image: protocol.Image) -> str:
    """The image's own content hash: of its canonical JSON."""
    return hashlib.sha256(orjson.dumps(image.model_dump(), option=orjson.OPT_SORT_KEYS)).hexdigest()


def _as_domain_error(error: RuntimeRefused) -> Exception:
    if error.status == 404:  # noqa: PLR2004 - RFC 9110, 15.5.5
        return NotFound(error.failure.detail, code=error.failure.code)
    if error.status in (400, 413, 422):
        return Invalid(error.failure.detail, code=error.failure.code)
    return Unavailable(error.failure.detail, code=error.failure.code, retry_after_seconds=2)
