"""What sessions can be made of: the profiles and tools that ship, and each tenant's collections.

Owns installing and removing. What a collection holds is read by a runtime of its tenant, in the sandbox: nothing of a
stranger's is parsed here but the archive's own table of contents. Invariants: a folder of files is never changed once it has
its hash for a name; files go only when no row and no open session needs them.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True, slots=True)
class Choice:
    """What a session of a profile is made with."""

    hashes: tuple[str, ...] = ()
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
            await self.bundled()
        except Unavailable:
            return False
        return True

    async def _ask_for_catalog(self) -> protocol.Catalog:
        for observed in await self._fleet.launcher.list():
            if observed.running and observed.address is not None:
                try:
                    return await self._fleet.calls.catalog(observed.address)
                except (RouterError, RuntimeRefused) as error:
                    log.warning("a runtime did not tell its catalog", runtime_id=observed.id, error=str(error))
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
        return _choice([row.content_hash for row in rows])

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
        kept = await asyncio.to_thread(self._keep, unpacked)
        try:
            manifest = await self._inspect(principal, unpacked.content_hash, kept)
            if any(one.name.startswith(manifest.name + ":") for one in (await self.bundled()).profiles):
                raise Conflict(
                    f"{manifest.name!r} is the name of a bundled collection; choose another", code="name_taken"
                )
        except BaseException:
            await asyncio.shield(self._drop_unless_needed(unpacked.content_hash))
            raise
        row = Collection(
            id=new_collection_id(),
            tenant_id=principal.tenant_id,
            name=manifest.name,
            version=manifest.version,
            description=manifest.description,
            source=source,
            content_hash=unpacked.content_hash,
            manifest=manifest.model_dump(),
            installed_at=self._clock.now(),
            installed_by=principal.member_id,
        )
        async with self._database.write() as db:
            there = await collections.page(db, principal.tenant_id)
            if len(there) >= _MAX_COLLECTIONS and all(one.name != row.name for one in there):
                raise Conflict(f"a tenant has at most {_MAX_COLLECTIONS} collections", code="too_many_collections")
            await collections.put(db, principal.tenant_id, row)
        log.info("collection installed", tenant_id=principal.tenant_id, name=row.name, hash=row.content_hash[:12])
        return row

    async def _unpack(self, archive: bytes) -> Unpacked:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))

        def work() -> Unpacked:
            with tempfile.SpooledTemporaryFile(max_size=1 << 20, dir=str(staging)) as file:
                file.write(archive)
                file.seek(0)
                return unpack(file, staging / "files")

        try:
            async with asyncio.timeout(_UNPACK_SECONDS):
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
        shutil.rmtree(unpacked.folder.parent, ignore_errors=True)
        return target

    async def _inspect(self, principal: Principal, content_hash: str, folder: Path) -> protocol.CollectionManifest:
        runtime_id, address = await self._runtime(principal)
        try:
            await self._fleet.launcher.install(runtime_id, content_hash, str(folder))
            return await self._fleet.calls.inspect(address, content_hash)
        except RuntimeRefused as error:
            raise Invalid(error.failure.detail, code=error.failure.code) from error
        except (RouterError, LaunchError) as error:
            # What was sent to be read ended its reader, or hung it: the archive's own doing, and its tenant's sandbox.
            await self._fleet.end(runtime_id, "it failed while it read a collection")
            raise Invalid(f"the collection could not be read: {error}", code="collection_invalid") from error

    async def remove(self, principal: Principal, name: str) -> None:
        """Sessions that were made with it keep it. Raises NotFound. Commits."""
        async with self._database.write() as db:
            if not await collections.remove(db, principal.tenant_id, name):
                raise NotFound(f"there is no collection {name!r}", code="collection_not_found")
        log.info("collection removed", tenant_id=principal.tenant_id, name=name)

    async def collect_garbage(self) -> int:
        """Delete folders that neither a row nor an open session needs; how many. For the start, before requests come."""
        return await asyncio.to_thread(self._delete_all_but, await self._needed())

    async def _needed(self) -> set[str]:
        async with self._database.read() as db:
            needed = await collections.content_hashes_of_all_tenants(db)
            return needed | await sessions.content_hashes_in_use_of_all_tenants(db)

    async def _drop_unless_needed(self, content_hash: str) -> None:
        """Nobody fills the disk with archives that are refused."""
        if content_hash not in await self._needed():
            await asyncio.to_thread(shutil.rmtree, self.folder_of(content_hash), ignore_errors=True)

    def _delete_all_but(self, needed: set[str]) -> int:
        found = [one for one in self._folder.glob("*") if one.name not in needed] if self._folder.is_dir() else []
        found += list(self._folder.glob(".new-*")) if self._folder.is_dir() else []
        for one in set(found):
            shutil.rmtree(one, ignore_errors=True)
        return len(set(found))


def _choice(hashes: Sequence[str]) -> Choice:
    ordered = tuple(hashes)
    return Choice(ordered, hashlib.sha256("\n".join(sorted(ordered)).encode()).hexdigest()[:32])


def _as_domain_error(error: RuntimeRefused) -> Exception:
    if error.status == 404:  # noqa: PLR2004 - RFC 9110, 15.5.5
        return NotFound(error.failure.detail, code=error.failure.code)
    if error.status in (400, 413, 422):
        return Invalid(error.failure.detail, code=error.failure.code)
    return Unavailable(error.failure.detail, code=error.failure.code, retry_after_seconds=2)
