"""`amplifier-api-server backup` and `restore`."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from amplifier_api_server.control_plane.backups.restoring import restore as restore_from
from amplifier_api_server.control_plane.backups.writing import back_up
from amplifier_api_server.control_plane.commands.output import console, show_json
from amplifier_api_server.control_plane.data_folder import require_whole
from amplifier_api_server.control_plane.management import known_revision
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import Unavailable

_MIB = 1024 * 1024


def backup(settings: Settings, archive: Path, *, as_json: bool) -> None:
    """Raises SettingsError, Conflict, Unavailable."""
    begun, data_dir = time.monotonic(), settings.server.data_dir
    require_whole(data_dir)
    revision = asyncio.run(known_revision(settings))
    try:
        made = back_up(data_dir, archive, revision)
    except OSError as error:
        raise Unavailable(f"{archive} can't be written: {error.strerror or error}; nothing of it is left") from error
    size, seconds = archive.stat().st_size, time.monotonic() - begun
    if as_json:
        figures = {"files": made.files, "bytes": made.bytes, "sessions": made.sessions, "left_out": made.left_out}
        show_json({"archive": str(archive), "archive_bytes": size, "seconds": round(seconds, 3), **figures})
        return
    out = console()
    out.print(
        f"{archive}: {made.sessions} sessions' folders, {made.files} files, {made.bytes / _MIB:.1f} MiB in "
        f"{size / _MIB:.1f} MiB, {seconds:.1f} s",
        soft_wrap=True,
    )
    if made.left_out:
        out.print(f"left out: {made.left_out} that are no files, that could not be read, or that went away meanwhile")
    out.print("It holds the keys' pepper and the first keys: keep it as you keep the data folder.", soft_wrap=True)
    _print_what_is_set(settings, "is not in it")


def restore(settings: Settings, archive: Path, *, as_json: bool) -> None:
    """Raises SettingsError, Conflict, Invalid, Unavailable."""
    data_dir = settings.server.data_dir.absolute()
    try:
        found = restore_from(archive, data_dir)
    except OSError as error:
        where = error.filename or data_dir
        raise Unavailable(f"it can't be restored: {where}: {error.strerror or error}") from error
    if as_json:
        figures = {"files": found.files, "bytes": found.bytes, "version": found.version, "made_at": found.made_at}
        show_json({"data_dir": str(data_dir), **figures})
        return
    says = f"{data_dir}: {found.files} files, {found.bytes / _MIB:.1f} MiB, as of {found.made_at} (version {found.version})"
    console().print(f"{says}. `serve` goes on from there.", soft_wrap=True)
    _print_what_is_set(settings, "has to be what it was")


def _print_what_is_set(settings: Settings, says: str) -> None:
    """What is no part of the data folder, where the operator keeps it elsewhere."""
    kept = {"auth.key_pepper": settings.auth.key_pepper, "secrets.encryption_key": settings.secrets.encryption_key}
    for name in (name for name, value in kept.items() if value is not None):
        console().print(f"{name} is set, and {says}.", soft_wrap=True)
