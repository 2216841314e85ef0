"""Runtimes as sandboxed processes of this machine.

Owns the runtimes that it started and their folders. Refuses to know tenants' rules, sessions' states and the database.
Invariants: a runtime has no way out of its sandbox but its gateway's socket; where the server is root, no two live
runtimes share a user id; when `stop` returns nothing of the runtime runs, and every session's folder is back at rest;
when this process dies, however it dies, its sandboxes die with it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from amplifier_api_server.control_plane import settings
from amplifier_api_server.control_plane.disk import Floor, is_no_room, room_of
from amplifier_api_server.control_plane.pods import process, trees
from amplifier_api_server.control_plane.pods.control_groups import ControlGroups, GroupsError
from amplifier_api_server.control_plane.pods.launcher import (
    Address,
    LaunchError,
    NoRoomError,
    NotCopiableError,
    Observed,
)
from amplifier_api_server.control_plane.pods.limits import RUNTIME_PROGRAM
from amplifier_api_server.control_plane.pods.limits_watch import LimitsWatch
from amplifier_api_server.control_plane.pods.sandbox import Sandbox
from amplifier_api_server.control_plane.pods.start import Starter
from amplifier_api_server.control_plane.pods.threads import in_thread
from amplifier_api_server.control_plane.pods.workspaces import Workspaces, checked
from amplifier_api_server.tenants.ids import RuntimeId, SessionId, TenantId

log = structlog.get_logger(__name__)

_TRASH_PAUSE_SECONDS = 0.05  # between two rounds: somebody may be filling what is emptied, for as long as it runs
_END_TIMEOUT_SECONDS = 10.0  # the kernel needs milliseconds, unless a disk hangs


class LocalLauncher:
    """The launcher of embedded mode. `gateway_path` names the socket, already listening, that a runtime's calls go to;
    `program` is the Python source that runs in it.
    """

    def __init__(
        self,
        sandbox: settings.Sandbox,
        data_dir: Path,
        gateway_path: Callable[[RuntimeId], str],
        *,
        program: str = RUNTIME_PROGRAM,
    ) -> None:
        self._workspaces = Workspaces(data_dir)
        self._gateway_path = gateway_path
        self._groups = ControlGroups(sandbox, self._workspaces.data_dir)
        self._starter = Starter(sandbox, self._workspaces, self._groups, program)
        self._is_sandboxed = sandbox.mode == "bubblewrap"
        self._floor = Floor.of(sandbox)
        self._sandboxes: dict[RuntimeId, Sandbox] = {}
        self._starting: set[RuntimeId] = set()
        self._holders: dict[tuple[TenantId, SessionId], RuntimeId] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._wakes: list[Callable[[RuntimeId], None]] = []
        self._watch = LimitsWatch(sandbox, self._workspaces, lambda: [*self._sandboxes.values()])
        self._tasks: list[asyncio.Task[None]] = []
        self._trash_is_full = asyncio.Event()
        self._is_stopped = threading.Event()
        self._recovering = asyncio.Lock()
        self._is_recovered = False
        self._is_closed = False

    async def start(self, runtime_id: RuntimeId) -> None:
        """See Launcher.start."""
        with _as_launch_errors("a runtime can't be started"):
            checked(runtime_id)
        await self._recover()
        async with self._lock(runtime_id):
            known = self._sandboxes.get(runtime_id)
            if known is not None and not known.ended.is_set():
                return
            if self._is_closed:
                raise LaunchError("the launcher is closed")
            self._starting.add(runtime_id)
            try:
                await self._clear(runtime_id)
                sandbox = await self._starter.start(runtime_id, self._gateway_path(runtime_id), self._wake)
                self._sandboxes[runtime_id] = sandbox
            finally:
                self._starting.discard(runtime_id)
        log.info("a runtime has started", runtime_id=runtime_id)
        if sandbox.ended.is_set():  # it was told while nobody could have found it
            self._wake(runtime_id)

    async def stop(self, runtime_id: RuntimeId, reason: str, *, grace_seconds: float = 2.0) -> None:
        """See Launcher.stop. Afterwards all its sessions' folders are at rest. Raises TimeoutError when it does not
        end.
        """
        checked(runtime_id)
        await self._recover()
        async with self._lock(runtime_id):
            if (sandbox := self._sandboxes.get(runtime_id)) is not None:
                await sandbox.terminate(reason, grace_seconds)
            await self._clear(runtime_id)

    async def _clear(self, runtime_id: RuntimeId) -> None:
        """Remove all that an ended runtime left; end it first if an earlier server started it. Its lock is held."""
        sandbox = self._sandboxes.get(runtime_id)
        if sandbox is None:
            left = await asyncio.to_thread(self._workspaces.living_processes, runtime_id)
            if left and not await in_thread(process.end_all, left, _END_TIMEOUT_SECONDS):
                raise TimeoutError(f"{runtime_id}, left by an earlier server, does not end")
        await self._starter.clear(runtime_id)
        self._trash_is_full.set()
        self._sandboxes.pop(runtime_id, None)
        for held in [key for key, holder in self._holders.items() if holder == runtime_id]:
            del self._holders[held]
            await self._share_out(held[0])

    async def list(self) -> list[Observed]:
        """See Launcher.list. One that is just being started is reported as unknown."""
        await self._recover()
        observed = [
            Observed(one.id, not one.ended.is_set(), None if one.ended.is_set() else one.address, one.reason)
            for one in self._sandboxes.values()
        ]
        observed += [
            Observed(one, None, None, "it is being started") for one in self._starting if one not in self._sandboxes
        ]
        known = {one.id for one in observed}
        for runtime_id in await asyncio.to_thread(self._workspaces.homes):
            if runtime_id not in known and runtime_id not in self._sandboxes and runtime_id not in self._starting:
                living = await asyncio.to_thread(self._workspaces.living_processes, runtime_id)
                observed.append(Observed(runtime_id, bool(living), None, "it was left by an earlier server"))
        return observed

    def address(self, runtime_id: RuntimeId) -> Address | None:
        """See Launcher.address."""
        sandbox = self._sandboxes.get(runtime_id)
        return None if sandbox is None or sandbox.ended.is_set() else sandbox.address

    @property
    def held_by_kernel(self) -> frozenset[str]:
        """Which bounds of `control_groups.ALL` the kernel holds; known after the first start."""
        return self._groups.held

    def on_exit(self, wake: Callable[[RuntimeId], None]) -> None:
        """See Launcher.on_exit."""
        self._wakes.append(wake)

    def _wake(self, runtime_id: RuntimeId) -> None:
        for wake in self._wakes:
            try:
                wake(runtime_id)
            except Exception:
                log.exception("a listener for ended runtimes has failed", runtime_id=runtime_id)

    async def attach(self, runtime_id: RuntimeId, tenant_id: TenantId, session_id: SessionId) -> None:
        """See Launcher.attach. From a runtime that is gone the folder is taken by itself."""
        await self._recover()
        async with self._lock(f"{tenant_id}/{session_id}"):
            holder = self._holders.get((tenant_id, session_id))
            if holder not in {None, runtime_id}:
                await self._take_from(holder, tenant_id, session_id)
            async with self._lock(runtime_id):
                sandbox = self._sandboxes.get(runtime_id)
                if sandbox is None or sandbox.ended.is_set():
                    raise LaunchError(f"{runtime_id} is not running")
                with _as_launch_errors(f"{session_id} can't be attached to {runtime_id}"):
                    await in_thread(self._workspaces.attach, runtime_id, tenant_id, session_id, sandbox.uid)
                self._holders[tenant_id, session_id] = runtime_id
                self._watch.disk.arrived(runtime_id)
            await self._share_out(tenant_id)

    async def _share_out(self, tenant_id: TenantId) -> None:
        """Processor time goes by tenants: one with many sandboxes has no more than one with a single one."""
        runtimes = {holder for (tenant, _), holder in self._holders.items() if tenant == tenant_id}
        await in_thread(self._groups.share_out, [*runtimes])

    async def _take_from(self, holder: RuntimeId, tenant_id: TenantId, session_id: SessionId) -> None:
        sandbox = self._sandboxes.get(holder)
        if sandbox is None:  # an earlier server's: its gateway is gone, so it can do nothing more
            await self.stop(holder, "its server is gone", grace_seconds=0)
        elif not sandbox.ended.is_set():
            raise LaunchError(f"{session_id} is attached to {holder}, which runs")
        else:
            await self._detach(holder, tenant_id, session_id)

    async def detach(self, runtime_id: RuntimeId, tenant_id: TenantId, session_id: SessionId) -> None:
        """See Launcher.detach. What still works in the folder, of tools that outlived their session, is killed."""
        await self._recover()
        async with self._lock(f"{tenant_id}/{session_id}"):
            await self._detach(runtime_id, tenant_id, session_id)

    async def _detach(self, runtime_id: RuntimeId, tenant_id: TenantId, session_id: SessionId) -> None:
        async with self._lock(runtime_id):
            with _as_launch_errors(f"{session_id} can't be detached from {runtime_id}"):
                await in_thread(self._workspaces.detach, runtime_id, tenant_id, session_id)
            if self._holders.get((tenant_id, session_id)) == runtime_id:
                del self._holders[tenant_id, session_id]
                await self._share_out(tenant_id)
            sandbox = self._sandboxes.get(runtime_id)
            if sandbox is not None and not sandbox.ended.is_set():
                folder = str(self._workspaces.at_rest(tenant_id, session_id))
                await asyncio.to_thread(sandbox.end_strays, folder)
                with _as_launch_errors(f"the folder of {session_id} can't be taken back"):
                    await in_thread(self._workspaces.take_back, tenant_id, session_id)

    async def copy(self, tenant_id: TenantId, source: SessionId, target: SessionId) -> None:
        """See Launcher.copy."""
        await self._recover()
        async with self._lock(f"{tenant_id}/{source}"):
            if (holder := self._holders.get((tenant_id, source))) is not None:
                raise LaunchError(f"{source} is attached to {holder}")
            try:
                with _as_launch_errors(f"the folder of {source} can't be copied"):
                    size = await in_thread(self._workspaces.size, tenant_id, source)
                    room = room_of(self._workspaces.data_dir).less(size.bytes, size.entries)
                    if lack := self._floor.lack(room):
                        raise NoRoomError(f"a copy of the session's files would leave too little of the disk: {lack}")
                    await in_thread(self._workspaces.copy, tenant_id, source, target)
            except LaunchError as error:
                if isinstance(error.__cause__, trees.TreeError):
                    raise NotCopiableError(str(error)) from error
                raise

    async def size(self, tenant_id: TenantId, session_id: SessionId) -> trees.Size | None:
        """See Launcher.size."""
        await self._recover()
        async with self._lock(f"{tenant_id}/{session_id}"):
            if (tenant_id, session_id) in self._holders:
                return None
            with _as_launch_errors(f"the folder of {session_id} can't be measured"):
                return await in_thread(self._workspaces.measured, tenant_id, session_id)

    def held(self, runtime_id: RuntimeId) -> trees.Size | None:
        """See Launcher.held."""
        return self._watch.disk.held(runtime_id)

    def on_growth(self, is_over: Callable[[RuntimeId, int], bool]) -> None:
        """See Launcher.on_growth."""
        self._watch.disk.is_over = is_over

    async def forget(self, tenant_id: TenantId, session_id: SessionId) -> None:
        """See Launcher.forget."""
        await self._recover()
        async with self._lock(f"{tenant_id}/{session_id}"):
            if (holder := self._holders.get((tenant_id, session_id))) is not None:
                await self._detach(holder, tenant_id, session_id)
            with _as_launch_errors(f"the folder of {session_id} can't be deleted"):
                await in_thread(self._workspaces.forget, tenant_id, session_id)
            self._trash_is_full.set()

    async def install(self, runtime_id: RuntimeId, content_hash: str, folder: str) -> None:
        """See Launcher.install. Raises LaunchError for a folder that holds anything but files and folders.

        A sandbox has its collections on a read-only mount, as it has this program's own files: nobody in it can change
        one, whoever owns it, so they need not be copied. Without a sandbox they are.
        """
        await self._recover()
        async with self._lock(runtime_id):
            if self.address(runtime_id) is None:
                raise LaunchError(f"{runtime_id} is not running")
            with _as_launch_errors(f"the collection {content_hash} can't be installed in {runtime_id}"):
                await in_thread(
                    partial(self._workspaces.install, by_link=self._is_sandboxed),
                    runtime_id,
                    content_hash,
                    Path(folder),
                )

    async def close(self) -> None:
        """See Launcher.close."""
        self._is_closed = True
        known = [*self._sandboxes, *self._starting]
        ended = await asyncio.gather(*(self.stop(one, "the server ends") for one in known), return_exceptions=True)
        for runtime_id, result in zip(known, ended, strict=True):
            if isinstance(result, BaseException):
                log.error("a runtime could not be ended", runtime_id=runtime_id, error=repr(result))
        self._is_stopped.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._watch.close)
        await self._starter.close()
        await in_thread(self._groups.close)

    async def _recover(self) -> None:
        """Once: move back what runtimes of an earlier server had. Those that still run are left to `list` and
        `stop`.
        """
        async with self._recovering:
            if not self._is_recovered:
                try:
                    self._holders.update(await in_thread(self._recover_folders))
                except GroupsError as error:
                    raise LaunchError(str(error)) from error
                self._is_recovered = True
                self._trash_is_full.set()
                if not self._is_closed:
                    self._tasks = [
                        asyncio.create_task(self._watch.run(), name="limits-watch"),
                        asyncio.create_task(self._empty_trash(), name="empty-trash"),
                    ]

    async def _empty_trash(self) -> None:
        """Delete, whenever something was thrown away: nobody waits for that."""
        while True:
            await self._trash_is_full.wait()
            self._trash_is_full.clear()
            try:
                if await asyncio.to_thread(self._workspaces.empty_trash, self._is_stopped.is_set):
                    self._trash_is_full.set()
            except OSError:
                log.exception("what was thrown away can't be deleted; it is tried again with what comes next")
            await asyncio.sleep(_TRASH_PAUSE_SECONDS)

    def _recover_folders(self) -> dict[tuple[TenantId, SessionId], RuntimeId]:
        self._workspaces.make()
        held: dict[tuple[TenantId, SessionId], RuntimeId] = {}
        living = {one for one in self._workspaces.homes() if self._workspaces.living_processes(one)}
        self._groups.prepare(living)
        for runtime_id in self._workspaces.homes():
            try:
                if runtime_id in living:
                    tenant_id, sessions = self._workspaces.attached(runtime_id) or (TenantId(""), [])
                    held |= {(tenant_id, session_id): runtime_id for session_id in sessions}
                else:
                    self._workspaces.remove_home(runtime_id)
            except OSError as error:  # one folder's trouble is not the others'
                log.error("a runtime's folders can't be recovered", runtime_id=runtime_id, error=str(error))
        return held

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock


@contextmanager
def _as_launch_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, trees.TreeError) as error:
        kind = NoRoomError if is_no_room(error) else LaunchError
        raise kind(f"{what}: {error}") from error
