"""The secret that keys are hashed with. The operator sets it, or embedded mode makes one and keeps it in the data
folder.

Invariant: it is never made anew while a file holds one, or while the database has keys, because every key would stop working.
"""

from __future__ import annotations

from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.secrets import folder_of, kept_secret
from amplifier_api_server.control_plane.settings import Settings, SettingsError
from amplifier_api_server.tenants.api_keys import MIN_PEPPER_BYTES
from amplifier_api_server.tenants.repository import keys


def pepper_of(settings: Settings) -> bytes:
    """The pepper of this installation, made on the first start where none is set. Raises SettingsError."""
    if settings.auth.key_pepper is not None:
        pepper = settings.auth.key_pepper.get_secret_value().encode()
        if len(pepper) < MIN_PEPPER_BYTES:
            raise SettingsError(f"auth.key_pepper: should have at least {MIN_PEPPER_BYTES} bytes, from a random source")
        return pepper
    what, lost = "the pepper of API keys", "no key will work again"
    return kept_secret(folder_of(settings) / "pepper", what, lost, at_least_bytes=MIN_PEPPER_BYTES)


async def pepper_for(database: Database, settings: Settings) -> bytes:
    """The same, of an installation whose database is migrated. Raises SettingsError where its keys' pepper is lost."""
    await require_pepper(database, settings)
    return pepper_of(settings)


async def require_pepper(database: Database, settings: Settings) -> None:
    """Raise SettingsError where the database has keys, and their pepper is lost. Makes none."""
    path = folder_of(settings) / "pepper"
    if settings.auth.key_pepper is not None or path.exists():
        return
    async with database.read() as db:
        has_keys = await keys.is_any_of_all_tenants(db)
    if has_keys:
        raise SettingsError(
            f"the pepper of API keys, {path}, is gone, and without it no key works: restore it from a backup. To give "
            f"every key up instead, make another one: `openssl rand -hex 32 > {path}`"
        )
