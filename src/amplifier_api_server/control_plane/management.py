"""The management services without a server: what the command line works with, on the data folder's own database.

A server that runs beside it notices within `auth.cache_ttl`: there is nothing here that could be told.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from amplifier_api_server.control_plane.auth.authenticate import Authenticator
from amplifier_api_server.control_plane.auth.pepper import pepper_for
from amplifier_api_server.control_plane.clock import Clock, SystemClock
from amplifier_api_server.control_plane.data_folder import require_whole
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.disk import Floor, Reserve
from amplifier_api_server.control_plane.migrations import head, in_words, require_known, revision_of
from amplifier_api_server.control_plane.origin import Origin, reset_origin, set_origin
from amplifier_api_server.control_plane.settings import Settings, SettingsError
from amplifier_api_server.tenants.ids import KeyId, MemberId, TenantId


@dataclass(frozen=True, slots=True)
class LocalManagement:
    """`needs.Management`, with nobody to tell."""

    database: Database
    settings: Settings
    clock: Clock
    authenticator: Authenticator

    async def on_key_revoked(self, key_id: KeyId) -> None:
        """A server that runs reads the row again."""

    async def on_member_stopped(self, tenant_id: TenantId, member_id: MemberId) -> None:
        """A server that runs reads the row again."""

    async def on_role_changed(self, tenant_id: TenantId, *, is_narrowed: bool) -> None:
        """A server that runs reads the row again."""

    async def on_tenant_changed(self, tenant_id: TenantId) -> None:
        """A server that runs reads the row again."""

    async def on_tenant_stopped(self, tenant_id: TenantId) -> None:
        """A server that runs reads the row again."""


@asynccontextmanager
async def local_management(settings: Settings) -> AsyncIterator[LocalManagement]:
    """Open the database of `settings`. Raises SettingsError where there is none, or it is of another version."""
    require_whole(settings.server.data_dir)
    await check_database(settings)
    database = Database(settings.database_url, Reserve(settings.server.data_dir, Floor.of(settings.sandbox)))
    clock = SystemClock()
    pepper = await pepper_for(database, settings)
    authenticator = Authenticator(database, settings, pepper, clock)
    token = set_origin(Origin("cli"))
    try:
        yield LocalManagement(database, settings, clock, authenticator)
    finally:
        reset_origin(token)
        await authenticator.close()
        await database.close()


async def check_database(settings: Settings) -> None:
    """Raise SettingsError, saying what to do, where the database can't be worked with as it is. Makes none."""
    found = await known_revision(settings)
    if found != head():
        raise SettingsError(f"the database is at revision {found}, this version wants {head()}; run `migrate`")


async def known_revision(settings: Settings) -> str | None:
    """The database's revision. Raises SettingsError where there is no database, or it is of a newer version."""
    if settings.database_url.startswith("sqlite"):
        path = settings.database_url.partition(":///")[2]
        if not (settings.server.data_dir / "amplifier.db").exists():
            raise SettingsError(f"there is no database at {path}; `serve` makes one, or set DATA_DIR to where it is")
    with in_words(settings.database_url):
        found = await revision_of(settings.database_url)
    require_known(found)
    return found
