"""What sessions can be made of: the profiles and tools that ship, and each tenant's collections and own profiles.

Owns choosing: which images and documents a session of a profile is made with. What a profile or a collection holds is read
by a runtime, in a sandbox; what all tenants are told is read by one that no tenant has ever had. Installing is
`installations`, writing profiles `profiles`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from amplifier_api_server.control_plane.audit.recording import record
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.catalog import tool_inputs
from amplifier_api_server.control_plane.catalog.garbage import Garbage
from amplifier_api_server.control_plane.catalog.image_hash import key_of
from amplifier_api_server.control_plane.catalog.trees import Trees
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.pods.calls import RuntimeRefused
from amplifier_api_server.control_plane.pods.fleet import Fleet, Need
from amplifier_api_server.control_plane.pods.launcher import Address
from amplifier_api_server.control_plane.router.errors import RouterError
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.tenant_events.recording import EventType, emit
from amplifier_api_server.runtime import protocol
from amplifier_api_server.tenants.errors import Invalid, NotFound, Unavailable
from amplifier_api_server.tenants.ids import RuntimeId, TenantId
from amplifier_api_server.tenants.images import trees_of
from amplifier_api_server.tenants.json_columns import spoiled_in
from amplifier_api_server.tenants.models import Collection
from amplifier_api_server.tenants.repository import collections, profiles
from amplifier_api_server.tenants.repository.pages import IN_ORDER, Page

log = structlog.get_logger(__name__)

_KNOWN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What a session of a profile is made with. `documents` are the tenant's own profiles, by name."""

    images: tuple[protocol.Image, ...] = ()
    documents: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Of the runtimes that can host it."""
        return key_of(self.images)

    def trees(self) -> list[str]:
        return list(dict.fromkeys(tree for image in self.images for tree in image.trees()))


@dataclass(frozen=True, slots=True)
class Profile:
    name: str
    source: str  # bundled | collection | own
    description: str
    version: str | None


class Catalogue:
    """Profiles, tools and collections."""

    def __init__(
        self, *, settings: Settings, database: Database, fleet: Fleet, trees: Trees, garbage: Garbage, clock: Clock
    ) -> None:
        self._settings = settings
        self._database = database
        self._fleet = fleet
        self._trees = trees
        self._garbage = garbage
        self._clock = clock
        self._bundled: protocol.Catalog | None = None
        self._compiled: dict[str, protocol.CompiledProfile] = {}  # bundled ones: as many as there are
        self._reading = asyncio.Lock()

    def folder_of(self, tree: str) -> str:
        """Where the files of a tree lie."""
        return str(self._trees.path(tree))

    # What ships.

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

    async def _compile_bundled(self, name: str) -> protocol.CompiledProfile:
        """The same for a bundled profile's plan."""
        if name not in self._compiled:
            async with self._fleet.spare() as (runtime_id, _):
                address = self._fleet.address(runtime_id)
                if address is None:
                    raise Unavailable("no sandbox runs yet; try again", code="no_runtime", retry_after_seconds=1)
                self._compiled[name] = await self._ask_to_compile(address, protocol.CompileProfile(profile=name))
        return self._compiled[name]

    # Profiles.

    async def profiles(self, tenant_id: TenantId) -> list[Profile]:
        """The bundled ones, those of the tenant's collections, and its own; each by name."""
        shipped = [
            Profile(one.name, "bundled", one.description, one.version) for one in (await self.bundled()).profiles
        ]
        installed = [
            Profile(one["name"], "collection", one.get("description", ""), one.get("version"))
            for row in await self.collections(tenant_id)
            for one in row.manifest.get("profiles", [])
        ]
        async with self._database.read() as db:
            rows = await profiles.current(db, tenant_id)
        own = [Profile(row.name, "own", row.description, str(row.version)) for row in rows]
        return [one for some in (shipped, installed, own) for one in sorted(some, key=lambda one: one.name)]

    async def choose(self, tenant_id: TenantId, profile: str) -> Choice:
        """What a session of `profile` needs: the collection that has it, then the tenant's others, by name.

        A profile of its own may use all collections. Raises NotFound (`profile_not_found`).
        """
        if any(one.name == profile for one in (await self.bundled()).profiles):
            return Choice()
        rows = [one for one in await self.collections(tenant_id) if not spoiled_in(one)]
        images = {row.name: protocol.Image.model_validate(row.image) for row in rows}
        documents = await self.documents(tenant_id) if ":" not in profile else {}
        if profile in documents:
            return Choice(tuple(images.values()), documents)
        first = next((row.name for row in rows if _has(row, profile)), None)
        if first is None:
            raise NotFound(
                f"there is no profile {profile[:160]!r}; GET /v1/profiles lists them", code="profile_not_found"
            )
        return Choice((images.pop(first), *images.values()))

    async def documents(self, tenant_id: TenantId) -> dict[str, str]:
        """The tenant's own profiles as they are now, by name."""
        async with self._database.read() as db:
            return {row.name: row.content for row in await profiles.current(db, tenant_id)}

    async def compiled(self, principal: Principal, profile: str) -> protocol.CompiledProfile:
        """A profile as a session of it would have it now. Raises NotFound, Invalid, Unavailable."""
        choice = await self.choose(principal.tenant_id, profile)
        if not choice.images and not choice.documents:
            return await self._compile_bundled(profile)
        return await self.compile(principal, profile, choice)

    async def compile(self, principal: Principal, profile: str, choice: Choice) -> protocol.CompiledProfile:
        """Compile in a sandbox of the tenant's. Raises NotFound, Invalid, Refused, Unavailable."""
        body = protocol.CompileProfile(profile=profile, images=list(choice.images), documents=dict(choice.documents))
        folders = {tree: self.folder_of(tree) for tree in choice.trees()}
        runtime_id, address = await self._runtime(Need(principal, choice.key, folders or None))
        await self._fleet.set_idle(runtime_id, idle=True)  # in use now: its idleness begins anew
        return await self._ask_to_compile(address, body)

    async def _ask_to_compile(self, address: Address, body: protocol.CompileProfile) -> protocol.CompiledProfile:
        try:
            return await self._fleet.calls.compile(address, body)
        except RuntimeRefused as error:
            raise _as_domain_error(error) from error
        except RouterError as error:
            raise Unavailable(
                f"the sandbox did not compile the profile: {error}", code="runtime_lost", retry_after_seconds=1
            ) from error

    # Collections.

    async def collections(self, tenant_id: TenantId, page: Page = IN_ORDER) -> list[Collection]:
        async with self._database.read() as db:
            return await collections.page(db, tenant_id, page)

    async def collection(self, tenant_id: TenantId, name: str) -> Collection:
        """Raises NotFound."""
        async with self._database.read() as db:
            found = await collections.find(db, tenant_id, name)
        if found is None:
            raise _no_collection(name)
        return found

    async def remove(self, principal: Principal, name: str) -> None:
        """Sessions that were made with it keep it. Raises NotFound. Commits."""
        async with self._database.write() as db:
            found = await collections.find(db, principal.tenant_id, name)
            if found is None or not await collections.remove(db, principal.tenant_id, name):
                raise _no_collection(name)
            changes = {"version": (found.version, None), "source": (found.source, None)}
            await record(db, self._clock, principal, "deleteCollection", target=name, changes=changes)
            told = {"name": name, "member_id": principal.member_id}
            await emit(db, self._clock, principal.tenant_id, EventType.COLLECTION_REMOVED, told)
            unneeded = trees_of(found.image)
        await self._garbage.touch(unneeded)
        log.info("collection removed", tenant_id=principal.tenant_id, name=name)

    # Tools.

    async def tools(self) -> Sequence[protocol.ToolSpec]:
        """Tools that can be run without a session."""
        return (await self.bundled()).tools

    async def execute_tool(self, principal: Principal, name: str, given: dict[str, object]) -> protocol.ToolOutcome:
        """Run a bundled tool in a sandbox of the tenant, without a session. Raises NotFound, Malformed, Unavailable."""
        tool = next((one for one in await self.tools() if one.name == name), None)
        if tool is None:
            raise NotFound(f"there is no tool {name!r}; GET /v1/tools lists them", code="tool_not_found")
        tool_inputs.demand(given, tool.input_schema)
        runtime_id, address = await self._runtime(Need(principal))
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

    async def _runtime(self, need: Need) -> tuple[RuntimeId, Address]:
        runtime_id = await self._fleet.acquire(need)
        address = self._fleet.address(runtime_id)
        if address is None:
            raise Unavailable("the sandbox ended; try again", code="no_runtime", retry_after_seconds=1)
        return runtime_id, address


def _has(row: Collection, profile: str) -> bool:
    return any(one["name"] == profile for one in row.manifest.get("profiles", []))


def _no_collection(name: str) -> NotFound:
    return NotFound(f"there is no collection {name[:160]!r}", code="collection_not_found")


def _as_domain_error(error: RuntimeRefused) -> Exception:
    if error.status == 404:  # noqa: PLR2004 - RFC 9110, 15.5.5
        return NotFound(error.failure.detail, code=error.failure.code)
    if error.status in (400, 413, 422):
        return Invalid(error.failure.detail, code=error.failure.code)
    return Unavailable(error.failure.detail, code=error.failure.code, retry_after_seconds=2)
