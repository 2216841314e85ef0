"""Starting one runtime: its user id, folders, sockets and descriptors, the process, its limits, its first answer.

Owns the order of these steps. Refuses to leave anything behind when one of them fails.
"""

from __future__ import annotations

import asyncio
import compileall
import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog

import amplifier_api_server
from amplifier_api_server.control_plane import settings
from amplifier_api_server.control_plane.disk import Floor, room_of
from amplifier_api_server.control_plane.pods import bubblewrap, limits, process, seccomp, uids
from amplifier_api_server.control_plane.pods.control_groups import ControlGroups
from amplifier_api_server.control_plane.pods.launcher import Address, LaunchError
from amplifier_api_server.control_plane.pods.process import ProcessId
from amplifier_api_server.control_plane.pods.sandbox import Sandbox
from amplifier_api_server.control_plane.pods.sockets import socket_dir
from amplifier_api_server.control_plane.pods.spawner import Spawner, SpawnError
from amplifier_api_server.control_plane.pods.threads import in_thread
from amplifier_api_server.control_plane.pods.workspaces import Home, Workspaces
from amplifier_api_server.runtime.protocol import Environment
from amplifier_api_server.runtime.protocol import Path as RuntimePath
from amplifier_api_server.tenants.ids import RuntimeId

log = structlog.get_logger(__name__)

_BACKLOG = 256  # connections that wait to be accepted
_INFO_TIMEOUT_SECONDS = 10.0  # bubblewrap says its child's number within 5 ms
_MOST_HEALTH_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Host:
    """What was found out about this machine, once."""

    program: str
    system: bubblewrap.System


class Starter:
    """Starts runtimes as the settings say: in bubblewrap, or without any sandbox."""

    def __init__(self, sandbox: settings.Sandbox, workspaces: Workspaces, groups: ControlGroups, program: str) -> None:
        self._settings = sandbox
        self._groups = groups
        self._workspaces = workspaces
        self._is_sandboxed = sandbox.mode == "bubblewrap"
        self._command = limits.command(program, sandbox, plain_child_of=None if self._is_sandboxed else os.getpid())
        self._drops_user = self._is_sandboxed and uids.is_root()
        self._uids = uids.UidPool(sandbox.first_uid, sandbox.max_runtimes)
        self._host: _Host | None = None
        self._spawner = Spawner()
        self._preparing = asyncio.Lock()
        self._is_prepared = False

    async def prepare(self) -> None:
        """Find out what starting needs; once. Raises NoBubblewrapError and SpawnError."""
        async with self._preparing:
            if self._is_prepared:
                return
            await asyncio.to_thread(_compile_runtime)
            if self._is_sandboxed:
                program = bubblewrap.find_bubblewrap()
                system = await asyncio.to_thread(bubblewrap.find_system)
                self._host = _Host(program, system)
                if self._drops_user:
                    await self._prepare_user_drop(program, system)
            self._is_prepared = True

    async def _prepare_user_drop(self, program: str, system: bubblewrap.System) -> None:
        if not uids.is_mapped(self._settings.first_uid):
            raise SpawnError(
                f"the server is root in a user namespace without the id {self._settings.first_uid}: "
                "run it as an ordinary user"
            )
        folders = [*system.folders, str(self._workspaces.runtimes)]
        if not any(bubblewrap.is_beneath(program, folder) for folder in ("/usr", *folders)):
            folders.append(str(Path(program).parent))
        spawner = Spawner(folders)
        try:
            await spawner.prepare()
        except BaseException:
            spawner.close()
            raise
        self._spawner = spawner

    async def start(self, runtime_id: RuntimeId, gateway_path: str, on_end: Callable[[RuntimeId], None]) -> Sandbox:
        """A runtime that has answered on its socket. Raises LaunchError, and then nothing of it is left."""
        timeout_seconds = self._settings.start_timeout.total_seconds()
        sandbox: Sandbox | None = None
        try:
            async with asyncio.timeout(timeout_seconds):
                self._check_disk()
                await self.prepare()
                uid = await in_thread(self._uids.take, runtime_id) if self._drops_user else None
                home = await in_thread(self._workspaces.make_home, runtime_id, uid)
                sandbox = await self._spawn(runtime_id, home, uid, gateway_path, on_end)
                await self._until_ready(sandbox)
        except BaseException as error:
            if sandbox is not None:
                await _end(sandbox)
            await self.clear(runtime_id)
            if isinstance(error, TimeoutError):
                raise LaunchError(f"the runtime did not answer within {timeout_seconds:g} s") from error
            if isinstance(error, (OSError, ValueError, LookupError, SpawnError, bubblewrap.NoBubblewrapError)):
                raise LaunchError(f"the runtime could not be started: {error}") from error
            raise
        return sandbox

    def _check_disk(self) -> None:
        if lack := Floor.of(self._settings).lack(room_of(self._workspaces.data_dir)):
            raise LaunchError(f"the disk is nearly full: {lack}")

    async def clear(self, runtime_id: RuntimeId) -> None:
        """Let go of all that an ended runtime had: its socket, its folders, its user id. Idempotent."""
        with contextlib.suppress(OSError):
            os.unlink(self._socket_path(runtime_id))
        await in_thread(self._groups.remove, runtime_id)
        await in_thread(self._workspaces.remove_home, runtime_id)
        self._uids.give_back(runtime_id)

    def _socket_path(self, runtime_id: RuntimeId) -> str:
        return str(socket_dir(self._workspaces.data_dir) / f"{runtime_id}.sock")

    async def _spawn(
        self, runtime_id: RuntimeId, home: Home, uid: int | None, gateway_path: str, on_end: Callable[[RuntimeId], None]
    ) -> Sandbox:
        """Start the process, without waiting for its answer. What is open for it is closed on our side when it runs."""
        with ExitStack() as open_here:
            path = self._socket_path(runtime_id)
            listener = open_here.enter_context(_listen(path)).fileno()
            group = await in_thread(self._groups.make, runtime_id)
            groups, group_fds = group.open_for_runtime(open_here)
            handed = _Handed(
                {Environment.LISTEN_FD: str(listener), **groups}, [listener, *group_fds], group.holds_memory
            )
            if self._host is None:
                launch = self._plain_launch(home, handed, gateway_path)
            else:
                launch = self._sandboxed_launch(self._host, home, uid, handed, gateway_path, open_here)
            started = await self._spawner.spawn(
                launch.command, uid=uid, keep=launch.keep, environment=launch.environment, cwd=launch.cwd
            )
            sandbox = Sandbox(runtime_id, started, uid, Address(path=path), group)
            try:
                sandbox.watch(on_end)
                inner = started.pid if launch.info is None else await launch.info.first_process()
                await self._enter(sandbox, process.identify(inner) if inner else None, started.pid)
                if launch.info is not None:
                    launch.info.let_it_run()
            except BaseException:
                await _end(sandbox)
                raise
            return sandbox

    async def _enter(self, sandbox: Sandbox, root: ProcessId | None, outer_pid: int) -> None:
        """Remember the first process inside, on disk too."""
        if root is None:
            raise LaunchError(f"the sandbox could not be made: {await sandbox.words_at_end()}")
        sandbox.enter(root)
        # Bubblewrap waits until it is told to go on; without it, the runtime's own first lines are all that runs yet.
        try:
            for pid in {outer_pid, root.pid}:
                sandbox.group.enter(pid)
        except ProcessLookupError as error:
            raise LaunchError(f"the sandbox could not be made: {await sandbox.words_at_end()}") from error
        outer = process.identify(outer_pid)
        known = [root] if outer is None or outer == root else [outer, root]
        await in_thread(self._workspaces.write_processes, sandbox.id, known)

    def _plain_launch(self, home: Home, handed: _Handed, gateway_path: str) -> _Launch:
        environment = {
            **handed.environment,
            Environment.GATEWAY_PATH: gateway_path,
            Environment.WORKSPACE: str(home.workspace),
            Environment.COLLECTIONS: str(home.collections),
        }
        return _Launch(
            self._command, handed.descriptors, bubblewrap.environment(environment), str(home.workspace), None
        )

    def _sandboxed_launch(
        self, host: _Host, home: Home, uid: int | None, handed: _Handed, gateway_path: str, open_here: ExitStack
    ) -> _Launch:
        gateway = os.open(gateway_path, os.O_PATH | os.O_CLOEXEC)
        open_here.callback(os.close, gateway)
        if uid is not None:
            os.chown(f"/proc/self/fd/{gateway}", uid, uid)  # to connect to a socket is to write to it
        info = _Info(open_here)
        etc = {path: _in_memory(content, open_here) for path, content in bubblewrap.files().items()}
        filter_fd = _in_memory(seccomp.program(counts_memory=handed.counts_memory), open_here)
        reachable = self._spawner.reachable
        plan = bubblewrap.Plan(
            workspace=reachable(str(home.workspace)),
            collections=reachable(str(home.collections)),
            environment=bubblewrap.environment(
                {
                    **handed.environment,
                    Environment.GATEWAY_FD: str(gateway),
                    Environment.WORKSPACE: bubblewrap.WORKSPACE,
                    Environment.COLLECTIONS: bubblewrap.COLLECTIONS,
                }
            ),
            tmp_bytes=self._settings.tmp,
            seccomp_fd=filter_fd,
            info_fd=info.inside,
            block_fd=info.blocked,
            counts_memory=handed.counts_memory,
        )
        arguments = bubblewrap.arguments(plan, host.system, reachable, str(self._workspaces.data_dir), etc)
        # Through a descriptor, so that the machine's list of processes shows no paths.
        arguments_fd = _in_memory(b"".join(one.encode() + b"\0" for one in arguments), open_here)
        command = (reachable(host.program), "--args", str(arguments_fd), "--", *self._command)
        keep = [*handed.descriptors, gateway, info.inside, info.blocked, filter_fd, arguments_fd, *etc.values()]
        return _Launch(command, keep, {}, "/", info)

    async def _until_ready(self, sandbox: Sandbox) -> None:
        """Return when it answers; raise LaunchError when it ends before. The caller has a timeout."""
        asking = asyncio.create_task(_ask_health(str(sandbox.address.path)))
        ending = asyncio.create_task(sandbox.ended.wait())
        try:
            await asyncio.wait({asking, ending}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done() and isinstance(asking.exception(), LaunchError):
                await asking
            if not asking.done() or asking.exception() is not None:
                words = await sandbox.words_at_end()
                why = f" ({asking.exception()})" if asking.done() else ""
                raise LaunchError(f"the runtime did not answer as it should{why}: {words}")
        finally:
            for task in (asking, ending):
                task.cancel()
            await asyncio.gather(asking, ending, return_exceptions=True)
        if sandbox.root is None:
            return
        inside = process.children(sandbox.root) if self._is_sandboxed else [sandbox.root]
        sandbox.main = inside[0] if inside else None
        for one in {sandbox.root, *inside}:
            limits.kill_first(one.pid)

    async def close(self) -> None:
        """End the thread that starts processes; every sandbox that still runs ends with it."""
        await asyncio.to_thread(self._spawner.close)


@dataclass(frozen=True, slots=True)
class _Handed:
    """What every runtime gets, with a sandbox or without: descriptors, and the variables that say which is which."""

    environment: Mapping[str, str]
    descriptors: list[int]
    counts_memory: bool  # a control group does, for its sandbox


@dataclass(frozen=True, slots=True)
class _Launch:
    """How a process is to be started: `info` when it is bubblewrap, which tells more."""

    command: Sequence[str]
    keep: list[int]
    environment: Mapping[str, str]
    cwd: str
    info: _Info | None


class _Info:
    """A pipe by which bubblewrap tells the number of its first process, and one by which it is told to go on then."""

    def __init__(self, open_here: ExitStack) -> None:
        self._outside, self.inside = os.pipe2(os.O_CLOEXEC)
        self.blocked, self._go_on = os.pipe2(os.O_CLOEXEC)
        self._closing_inside = ExitStack()
        self._closing_inside.callback(os.close, self.inside)
        self._closing_inside.callback(os.close, self.blocked)
        open_here.callback(os.close, self._outside)
        open_here.callback(os.close, self._go_on)
        open_here.callback(self._closing_inside.close)

    def let_it_run(self) -> None:
        """Nothing inside has run yet: bubblewrap waits for this byte."""
        with contextlib.suppress(BrokenPipeError):  # it has given up; its end says so
            os.write(self._go_on, b"1")

    async def first_process(self) -> int | None:
        """The host's number of the first process inside; None when bubblewrap has given up. Once, and when it runs."""
        self._closing_inside.close()  # so that its end is the pipe's end
        read = b""
        try:
            async with asyncio.timeout(_INFO_TIMEOUT_SECONDS):
                while b"}" not in read:
                    await self._readable()
                    if not (more := os.read(self._outside, 4096)):
                        return None
                    read += more
        except TimeoutError:
            return None
        return int(json.loads(read)["child-pid"])

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        is_readable = asyncio.Event()
        loop.add_reader(self._outside, is_readable.set)
        try:
            await is_readable.wait()
        finally:
            loop.remove_reader(self._outside)


def _listen(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _in_memory(content: bytes, open_here: ExitStack) -> int:
    """A descriptor from which these bytes can be read once."""
    descriptor = os.memfd_create("sandbox", os.MFD_CLOEXEC)
    open_here.callback(os.close, descriptor)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


async def _end(sandbox: Sandbox) -> None:
    try:
        await sandbox.terminate("its start has failed", 0)
    except TimeoutError:
        log.error("a sandbox whose start has failed does not end", runtime_id=sandbox.id)


async def _ask_health(path: str) -> None:
    """Return when GET /health answers 200; raise LaunchError when it answers something else."""
    reader, writer = await asyncio.open_unix_connection(path, limit=_MOST_HEALTH_BYTES)
    try:
        writer.write(f"GET {RuntimePath.HEALTH} HTTP/1.1\r\nHost: runtime\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        status_line = await reader.readline()
        if status_line.split(b" ")[1:2] != [b"200"]:
            raise LaunchError(f"the runtime answered {status_line[:80]!r} when asked for its health")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _compile_runtime() -> None:
    """Sandboxes can't write bytecode: without this, each start of an editable install compiles the runtime anew."""
    folder = Path(amplifier_api_server.__file__).parent / "runtime"
    if os.access(folder, os.W_OK):
        compileall.compile_dir(folder, quiet=2)
