"""The system calls of Linux that Python 3.11 has no function for: openat2, syncfs, unshare and mount.

Owns the numbers and struct layouts. Refuses any policy: who may call what is decided where it is called. Each function
raises OSError as the os module would.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

CLONE_NEWNS = 0x00020000  # linux/sched.h
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_SLAVE = 0x2, 0x4, 0x1000, 0x4000, 1 << 19  # linux/mount.h
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_BENEATH = 0x01, 0x02, 0x08  # linux/openat2.h

_SYS_OPENAT2 = 437  # the same on every architecture (calls added since Linux 5.0 are)
_LIBC = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _checked(result: int, *names: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *names)
    return result


def openat2(dir_fd: int, path: str, flags: int, resolve: int) -> int:
    """Open an existing file with `resolve` held; ENOSYS where the kernel is older than 5.6, or is not Linux's."""
    if not hasattr(_LIBC, "unshare"):  # only Linux has it, and elsewhere the number means another call
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), path)
    how = _OpenHow(flags=flags, mode=0, resolve=resolve)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise OSError(errno.EINVAL, "a path holds no NUL", path)
    call = _LIBC.syscall
    call.restype = ctypes.c_long
    return _checked(call(ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(dir_fd), encoded, ctypes.byref(how), size), path)


def syncfs(folder: Path) -> None:
    """Have everything that was written to `folder`'s file system reach its disk; all of the system's, where not Linux's."""
    if not hasattr(_LIBC, "syncfs"):
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _checked(_LIBC.syncfs(ctypes.c_int(descriptor)), str(folder))
    finally:
        os.close(descriptor)


def unshare(flags: int) -> None:
    """Give the calling thread, and no other, new namespaces of the kinds in `flags` (linux/sched.h)."""
    _checked(_LIBC.unshare(ctypes.c_int(flags)))


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount in the calling thread's mount namespace; None for what a kind of mount does not have."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    result = _LIBC.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _checked(result, target)
