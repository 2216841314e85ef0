"""The secret that keys are hashed with. The operator sets it, or embedded mode makes one and keeps it in the data
folder.

Invariant: it is never made anew while a file holds one, because every key would stop working.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from amplifier_api_server.control_plane.settings import Settings, SettingsError
from amplifier_api_server.tenants.api_keys import MIN_PEPPER_BYTES

_BYTES = 32


def pepper_of(settings: Settings) -> bytes:
    """The pepper of this installation, made on the first start where none is set. Raises SettingsError."""
    if settings.auth.key_pepper is not None:
        pepper = settings.auth.key_pepper.get_secret_value().encode()
        if len(pepper) < MIN_PEPPER_BYTES:
            raise SettingsError(f"auth.key_pepper: should have at least {MIN_PEPPER_BYTES} bytes, from a random source")
        return pepper
    return _kept_in(settings.server.data_dir / "secrets")


def _kept_in(folder: Path) -> bytes:
    path = folder / "pepper"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
        pepper = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise SettingsError(f"the pepper of API keys can't be kept in {path}: {error}") from error
    if len(pepper) < MIN_PEPPER_BYTES:
        raise SettingsError(f"the pepper of API keys in {path} is cut off; restore it, or no key will work again")
    return pepper


def _make(path: Path) -> None:
    """Write a new pepper where none is, whole or not at all: of two processes that start at once, both use the
    first's.
    """
    temporary = path.with_name(f".pepper-{os.getpid()}-{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return
    finally:
        temporary.unlink()
