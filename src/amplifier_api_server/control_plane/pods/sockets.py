"""Where sockets live on the host: one private folder whose path is short enough for an address.

Owns the folder's choice. Invariant: mode 0700 and ours; a socket's path in it fits sockaddr_un's 108 bytes (unix(7)).
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

# sun_path holds 108 bytes with its final NUL on Linux and 104 on macOS; a name is "run_" + 22 characters and a suffix.
_LONGEST_ADDRESS = 103
_LONGEST_NAME = 44
_PRIVATE = 0o700
_RECORD = "socket-folder"  # in the data folder: where the sockets are when they can't be there


def socket_dir(data_dir: Path) -> Path:
    """The folder for this server's sockets: `data_dir`/run, or a temporary one where that path would be too long.

    Makes it when there is none, and clears what an earlier server left in it the first time that a process asks. Names
    in it may have 44 characters.
    """
    data_dir = data_dir.resolve()
    found = _made.get(data_dir)
    if found is not None and found.is_dir():
        return found
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_recorded(data_dir)
    folder = data_dir / "run"
    if len(os.fsencode(folder)) + 1 + _LONGEST_NAME > _LONGEST_ADDRESS:
        folder = Path(tempfile.mkdtemp(prefix="amplifier-", dir="/tmp"))
        (data_dir / _RECORD).write_text(str(folder), encoding="utf-8")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    _made[data_dir] = folder
    return folder


_made: dict[Path, Path] = {}


def remove_socket_dir(data_dir: Path) -> None:
    """Remove the folder and what is left in it: the last thing a server does."""
    folder = _made.pop(data_dir.resolve(), None)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        (data_dir / _RECORD).unlink(missing_ok=True)


def _remove_recorded(data_dir: Path) -> None:
    """Remove the temporary folder that an earlier server recorded, if it is still what that server made."""
    record = data_dir / _RECORD
    try:
        folder = Path(record.read_text(encoding="utf-8"))
        found = folder.lstat()
    except (OSError, ValueError):
        record.unlink(missing_ok=True)
        return
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == _PRIVATE
    if is_ours and folder.name.startswith("amplifier-"):
        shutil.rmtree(folder, ignore_errors=True)
    record.unlink(missing_ok=True)
