"""The secret that keys are hashed with. The operator sets it, or embedded mode makes one and keeps it in the data
folder.

Invariant: it is never made anew while a file holds one, because every key would stop working.
"""

from __future__ import annotations

from amplifier_api_server.control_plane.secrets import folder_of, kept_secret
from amplifier_api_server.control_plane.settings import Settings, SettingsError
from amplifier_api_server.tenants.api_keys import MIN_PEPPER_BYTES


def pepper_of(settings: Settings) -> bytes:
    """The pepper of this installation, made on the first start where none is set. Raises SettingsError."""
    if settings.auth.key_pepper is not None:
        pepper = settings.auth.key_pepper.get_secret_value().encode()
        if len(pepper) < MIN_PEPPER_BYTES:
            raise SettingsError(f"auth.key_pepper: should have at least {MIN_PEPPER_BYTES} bytes, from a random source")
        return pepper
    what, lost = "the pepper of API keys", "no key will work again"
    return kept_secret(folder_of(settings) / "pepper", what, lost, at_least_bytes=MIN_PEPPER_BYTES)
