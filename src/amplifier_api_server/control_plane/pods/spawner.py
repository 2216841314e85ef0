"""Starting processes, from one thread that lives as long as the launcher.

Owns that thread. Two facts force it: a sandbox dies with the *thread* that started it (PR_SET_PDEATHSIG, prctl(2)), so
a pool's worker that ends would take sandboxes along; and a thread may have a mount namespace of its own. As root a
sandbox is started as a user that can't reach the interpreter's folder (/root is 0700) nor the data folder, and must
not. So this thread, and nothing else on the machine, sees the few folders a sandbox is made of once more, at short
paths that any user may walk. Invariant: no folder of the host changes its mode, its owner or what is mounted on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from amplifier_api_server.control_plane.pods import syscalls
from amplifier_api_server.control_plane.pods.bubblewrap import is_beneath

# Where the thread mounts its view: the first of these that is a folder. What it hides is hidden from this thread alone.
_MOUNT_POINTS = ("/mnt", "/media", "/srv", "/opt")


class SpawnError(Exception):
    """Processes can't be started as they must be, said in words an operator can act on."""


class Spawner:
    """Starts processes; `private` folders are those that it shows to the user a process is started as, whoever that
    is.
    """

    def __init__(self, private: Sequence[str] = ()) -> None:
        self._private = tuple(private)
        self._seen_at: dict[str, str] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sandbox-spawner")
        self._prepared: asyncio.Task[None] | None = None

    async def prepare(self) -> None:
        """Make the view, once; nothing to do without private folders. Raises SpawnError."""
        if self._prepared is None:
            self._prepared = asyncio.create_task(self._prepare())
        await asyncio.shield(self._prepared)

    async def _prepare(self) -> None:
        if self._private:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._make_view)

    def _make_view(self) -> None:
        point = next((path for path in _MOUNT_POINTS if os.path.isdir(path) and not os.path.islink(path)), None)
        if point is None:
            raise SpawnError(f"none of {', '.join(_MOUNT_POINTS)} is a folder; make one of them (it stays empty)")
        descriptors: list[int] = []
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            # What the host unmounts later is unmounted here too; nothing that is mounted here is seen there.
            syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
            descriptors = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in self._private]
            syscalls.mount("tmpfs", point, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=0755,size=64k")
            for place, (path, descriptor) in enumerate(zip(self._private, descriptors, strict=True)):
                target = f"{point}/{place}"
                os.mkdir(target, 0o755)
                syscalls.mount(f"/proc/self/fd/{descriptor}", target, None, syscalls.MS_BIND | syscalls.MS_REC)
                self._seen_at[path] = target
        except OSError as error:
            raise SpawnError(
                f"the server is root but may not mount ({error}): run it as an ordinary user, "
                "or give its container the capability SYS_ADMIN"
            ) from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def reachable(self, path: str) -> str:
        """Where a process that is started here finds a host's file or folder."""
        holders = [folder for folder in self._seen_at if is_beneath(path, folder)]
        if not holders:
            return path
        nearest = max(holders, key=len)
        return self._seen_at[nearest] + path[len(nearest) :]

    async def spawn(
        self, command: Sequence[str], *, uid: int | None, keep: Sequence[int], environment: Mapping[str, str], cwd: str
    ) -> subprocess.Popen[bytes]:
        """Start `command` with the descriptors `keep`, in a session of its own; its output is one pipe, its input
        empty.

        As user and group `uid`, and no other group, when that is given. Raises OSError.
        """

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(  # noqa: S603 - the command is ours
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=tuple(keep),
                env=dict(environment),
                cwd=cwd,
                start_new_session=True,  # an interrupt typed at the server's terminal is not for the sandboxes
                user=uid,
                group=uid,
                extra_groups=None if uid is None else [],
            )

        starting = asyncio.get_running_loop().run_in_executor(self._thread, start)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread can't be stopped half-way: nobody will know of what it starts now but us.
            with contextlib.suppress(OSError):
                started = await starting
                started.kill()
                started.communicate()
            raise

    def close(self) -> None:
        """End the thread, and with it every sandbox that still runs."""
        if self._prepared is not None and not self._prepared.done():
            self._prepared.cancel()
        with contextlib.suppress(RuntimeError):
            self._thread.shutdown(wait=True, cancel_futures=True)
