"""The data folder: that it is ours and whole, that one process has it at a time, and what is wrong with it, in one sentence.

Owns its lock. Refuses to know what the files in it hold. Invariant: who holds the folder holds the lock of the folder itself
(flock(2) on its inode), which nobody removes by removing a file; the file `lock` is locked besides, for file systems that
lock no folders, and because earlier versions look there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from amplifier_api_server.control_plane.settings import SettingsError

LOCK_NAME = "lock"
RESTORING = ".restoring-"  # a folder of this name's beginning: a restore goes on here, or did not end
_FOLDERS = ("workspaces", "runtimes", "trash", "collections", "secrets", "run", "uploads", "reserve")
_FILES = ("amplifier.db", "amplifier.db-wal", "amplifier.db-shm", LOCK_NAME, "keys.json")
_WRITE = os.O_RDWR | os.O_CREAT
_NO_LOCKS = frozenset((errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP))  # of a folder, by NFS


def made(data_dir: Path, *, is_restoring: bool = False) -> Path:
    """The folder, made where there is none, for nobody but us. Raises SettingsError where it can't be used."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        data_dir.chmod(0o700)
    except FileExistsError as error:
        raise SettingsError(f"server.data_dir: {data_dir} is no folder; move it away, or name another one") from error
    except OSError as error:
        raise _unusable(data_dir, error) from error
    if not is_restoring:
        require_whole(data_dir)
    return data_dir


def require_whole(data_dir: Path) -> None:
    """Raise SettingsError where something in it is not what it should be; what is missing is made later."""
    if not data_dir.is_dir():
        return
    try:
        if any(path.name.startswith(RESTORING) for path in data_dir.iterdir()):
            raise SettingsError(f"server.data_dir: a restore into {data_dir} goes on, or did not end; run it again")
        for name in _FOLDERS:
            if _is_there(data_dir / name) and not (data_dir / name).is_dir():
                raise SettingsError(f"server.data_dir: {data_dir / name} should be a folder; move away what is there")
        for name in _FILES:
            if _is_there(data_dir / name) and not (data_dir / name).is_file():
                raise SettingsError(f"server.data_dir: {data_dir / name} should be a file; move away what is there")
    except OSError as error:
        raise _unusable(data_dir, error) from error


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


@contextlib.contextmanager
def held(data_dir: Path) -> Iterator[None]:
    """Have the folder for this process alone: two servers would end each other's sandboxes. Raises SettingsError."""
    with contextlib.ExitStack() as locks:
        try:
            for path, flags in ((data_dir, os.O_RDONLY | os.O_DIRECTORY), (data_dir / LOCK_NAME, _WRITE)):
                descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
                locks.callback(os.close, descriptor)
                _lock(descriptor, data_dir, is_folder=path == data_dir)
        except OSError as error:
            raise _unusable(data_dir, error) from error
        yield


def _lock(descriptor: int, data_dir: Path, *, is_folder: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SettingsError(f"server.data_dir: another server is using {data_dir}") from error
    except OSError as error:
        if not is_folder or error.errno not in _NO_LOCKS:
            raise


def is_held(data_dir: Path) -> bool:
    """Whether a process has the folder now."""
    for path in (data_dir, data_dir / LOCK_NAME):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return False


def _unusable(data_dir: Path, error: OSError) -> SettingsError:
    """In a sentence, with whose the folder is where that is why."""
    says = f"server.data_dir: {error.filename or data_dir} can't be used: {error.strerror or error}"
    if isinstance(error, PermissionError):
        with contextlib.suppress(OSError):
            owner = data_dir.stat().st_uid
            if owner != os.geteuid():
                says += f"; it is user {owner}'s, and this is user {os.geteuid()}"
    return SettingsError(says)
