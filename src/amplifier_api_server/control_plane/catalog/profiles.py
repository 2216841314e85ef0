"""Tenants' own profiles: writing, reading and removing versions of them.

Owns their names and bounds. A version is never changed, and a session has its plan: what is written later changes no session.
A document is believed to be a profile when a sandbox of its tenant has compiled it, and not before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import structlog
from sqlalchemy.exc import IntegrityError

from amplifier_api_server.control_plane.audit.recording import record
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.catalog.service import Catalogue, Choice
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.tenant_events.recording import EventType, emit
from amplifier_api_server.runtime import protocol
from amplifier_api_server.tenants.errors import Conflict, Invalid, NotFound, TooLarge
from amplifier_api_server.tenants.ids import TenantId, new_profile_id
from amplifier_api_server.tenants.json_columns import spoiled_in
from amplifier_api_server.tenants.models import Profile
from amplifier_api_server.tenants.repository import profiles

log = structlog.get_logger(__name__)

MAX_CONTENT_BYTES = 256 * 1024
_MAX_PROFILES = 100  # of one tenant
_MAX_TOGETHER_BYTES = 1024 * 1024  # all of them go to the sandbox with each new session
_KEPT_VERSIONS = 100  # of one profile
_KEPT_REMOVED = 500  # rows of one tenant that say that a profile is removed, so that its numbers go on
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_MAX_DESCRIPTION_CHARS = 1000


@dataclass(frozen=True, slots=True)
class Written:
    """A version; `is_new` says whether it was there already."""

    row: Profile
    is_new: bool
    warnings: tuple[str, ...] = ()


class Profiles:
    """All tenants' own profiles, each seen by its own."""

    def __init__(self, *, database: Database, catalogue: Catalogue, clock: Clock) -> None:
        self._database = database
        self._catalogue = catalogue
        self._clock = clock

    async def write(self, principal: Principal, name: str, content: str) -> Written:
        """The next version of a profile, or the current one where that has this content. Commits.

        Raises Invalid (`invalid_request`, `profile_invalid`), TooLarge, Conflict, Unavailable.
        """
        if not _NAME.fullmatch(name):
            raise Invalid(
                f"name: {name[:80]!r} should be at most 64 of a-z, 0-9, _ and -, beginning with a letter or digit",
                errors=[{"field": "name", "message": "should be a plain name, without a colon"}],
            )
        documents = await self._catalogue.documents(principal.tenant_id)
        if documents.get(name) == content:
            return Written(await self._current(principal.tenant_id, name), is_new=False)
        documents[name] = content
        _check_bounds(content, documents)
        compiled = await self._compiled(principal, name, documents)
        row = await self._add(principal, name, content, compiled.spec.description)
        log.info("profile written", tenant_id=principal.tenant_id, name=name, version=row.version)
        return Written(row, is_new=True, warnings=tuple(compiled.warnings))

    async def _compiled(self, principal: Principal, name: str, documents: dict[str, str]) -> protocol.CompiledProfile:
        images = tuple(
            protocol.Image.model_validate(row.image)
            for row in await self._catalogue.collections(principal.tenant_id)
            if not spoiled_in(row)
        )
        try:
            return await self._catalogue.compile(principal, name, Choice(images, documents))
        except (Invalid, NotFound) as error:  # what it names and isn't there is its own mistake too
            raise Invalid(error.detail, code="profile_invalid") from error

    async def _add(self, principal: Principal, name: str, content: str, description: str) -> Profile:
        tenant_id = principal.tenant_id
        try:
            async with self._database.write() as db:
                last = await profiles.find(db, tenant_id, name)
                row = Profile(
                    id=new_profile_id(),
                    tenant_id=tenant_id,
                    name=name,
                    version=last.version + 1 if last is not None else 1,
                    description=description[:_MAX_DESCRIPTION_CHARS],
                    content=content,
                    created_at=self._clock.now(),
                    created_by=principal.member_id,
                )
                # Another one may have been written while this one was compiled.
                _check_bounds(
                    content, {one.name: one.content for one in await profiles.current(db, tenant_id)} | {name: content}
                )
                await profiles.add(db, tenant_id, row)
                await profiles.forget_old(db, tenant_id, name, _KEPT_VERSIONS)
                changes = {"version": (last.version if last is not None else None, row.version)}
                await record(db, self._clock, principal, "setProfile", target=name, changes=changes)
                told = {"name": name, "version": row.version, "member_id": principal.member_id}
                await emit(db, self._clock, tenant_id, EventType.PROFILE_WRITTEN, told)
        except IntegrityError as error:
            raise Conflict(f"profile {name!r} was written meanwhile; try again", code="profile_changed") from error
        return row

    async def get(self, tenant_id: TenantId, name: str, version: int | None) -> Profile:
        """One version, or the current one. Raises NotFound."""
        if version is None:
            return await self._current(tenant_id, name)
        async with self._database.read() as db:
            found = await profiles.find(db, tenant_id, name, version)
        if found is None or found.is_removed:
            raise NotFound(f"there is no version {version} of a profile {name[:160]!r}", code="profile_not_found")
        return found

    async def compiled(self, principal: Principal, row: Profile) -> protocol.CompiledProfile:
        """A version as a session of it would have it now. Raises Invalid, Unavailable."""
        documents = await self._catalogue.documents(principal.tenant_id)
        return await self._compiled(principal, row.name, documents | {row.name: row.content})

    async def _current(self, tenant_id: TenantId, name: str) -> Profile:
        async with self._database.read() as db:
            found = await profiles.find(db, tenant_id, name)
        if found is None or found.is_removed:
            raise NotFound(f"there is no profile {name[:160]!r} of your own", code="profile_not_found")
        return found

    async def remove(self, principal: Principal, name: str) -> None:
        """A version that says that it is removed, in place of all before it. Raises NotFound. Commits.

        Sessions keep what they were made with.
        """
        last = await self._current(principal.tenant_id, name)
        row = Profile(
            id=new_profile_id(),
            tenant_id=principal.tenant_id,
            name=name,
            version=last.version + 1,
            content="",
            is_removed=True,
            created_at=self._clock.now(),
            created_by=principal.member_id,
        )
        try:
            async with self._database.write() as db:
                await profiles.add(db, principal.tenant_id, row)
                await profiles.forget_old(db, principal.tenant_id, name, 1)
                await profiles.forget_removed(db, principal.tenant_id, _KEPT_REMOVED)
                changes = {"version": (last.version, None)}
                await record(db, self._clock, principal, "deleteProfile", target=name, changes=changes)
                told = {"name": name, "member_id": principal.member_id}
                await emit(db, self._clock, principal.tenant_id, EventType.PROFILE_REMOVED, told)
        except IntegrityError as error:
            raise Conflict(f"profile {name!r} was written meanwhile; try again", code="profile_changed") from error
        log.info("profile removed", tenant_id=principal.tenant_id, name=name)


def _check_bounds(content: str, documents: dict[str, str]) -> None:
    if len(content.encode()) > MAX_CONTENT_BYTES:
        raise TooLarge(f"content: a profile has at most {MAX_CONTENT_BYTES} bytes")
    if len(documents) > _MAX_PROFILES:
        raise Conflict(f"a tenant has at most {_MAX_PROFILES} profiles of its own", code="too_many_profiles")
    if sum(len(one.encode()) for one in documents.values()) > _MAX_TOGETHER_BYTES:
        raise TooLarge(f"a tenant's own profiles have at most {_MAX_TOGETHER_BYTES} bytes together")
