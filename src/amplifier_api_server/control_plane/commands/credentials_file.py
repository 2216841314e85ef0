"""The keys that `login` got, one for each server, in a file that is its owner's alone.

Invariant: the file is written whole or not at all, and nobody else can read it from its first byte on; one that others can
read is not used.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from amplifier_api_server.tenants.errors import Invalid

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """A key, and what is known of it."""

    api_key: str = field(repr=False)
    key_id: str
    tenant_id: str
    is_new: bool  # `login` had it made, so `logout` may end it
    expires_at: str | None = None


def path_of(environ: Mapping[str, str]) -> Path:
    """`$XDG_CONFIG_HOME`, or ~/.config where it is not set or no absolute path (XDG Base Directory)."""
    given = environ.get("XDG_CONFIG_HOME", "")
    base = (
        Path(given)
        if given and Path(given).is_absolute()
        else Path(environ.get("HOME") or "~").expanduser() / ".config"
    )
    return base / "amplifier-api-server" / "credentials.json"


def read(path: Path) -> dict[str, Kept]:
    """By server. Raises Invalid for a file that can't be read, or that others can."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _OTHERS:
                raise Invalid(
                    f"{path} can be read by others: run `chmod 600 {path}`, and think of the keys in it as known"
                )
            found: Any = json.loads(file.read(_MAX_BYTES))
        return {str(server): Kept(**one) for server, one in found["servers"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Invalid(f"{path} can't be read: {type(error).__name__}; mend or remove it") from error


def write(path: Path, kept: Mapping[str, Kept]) -> None:
    """Raises Invalid where it can't be written."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump({"servers": {server: asdict(one) for server, one in kept.items()}}, file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise Invalid(f"{path} can't be written: {error.strerror}") from error
