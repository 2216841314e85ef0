"""The control groups of one sandbox: made, entered, weighed, asked for what the kernel killed, and ended.

In each hierarchy a sandbox has a group with two in it: `main` for the runtime, `tools` for what it starts, with a lower
limit of memory and processes, so that the kernel takes a tool and never the runtime, however small and many the tools
are. Where the kernel can end a whole group (`cgroup.kill`), `tools` holds one group for each of the calls that may run
at once. The runtime moves a call's first process there before it runs anything, and ends whatever is left by one write.

Invariants: the runtime is handed files and no folders (from a folder's descriptor the host's whole tree can be reached
by `..`); no process but the runtime holds them, and no path in a sandbox leads to them, so a tool has no way out of its
group.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from amplifier_api_server.control_plane import settings
from amplifier_api_server.control_plane.pods import process
from amplifier_api_server.runtime.protocol import Environment
from amplifier_api_server.tenants.ids import RuntimeId

log = structlog.get_logger(__name__)

_RUNTIME_RESERVE_BYTES = 128 * 1024 * 1024  # of the sandbox's memory tools can't have; at most a quarter of it
_RUNTIME_RESERVE_PROCESSES = 16  # threads, and supervisors that are just starting
_OWN_PROCESSES = 3  # bubblewrap's, which are not the tenant's
_TCP_SHARE = 8  # v1 counts TCP's buffers for themselves
_MOST_CALLS = 128  # at once in one sandbox; two descriptors each
_FILES_PER_CALL = 8  # of those that a process may have open the runtime spends a quarter
_V1_WEIGHT, _V2_WEIGHT = 1024, 100  # of one tenant among others: the kernel's defaults
_REMOVE_SECONDS = 5.0
_READ_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Root:
    """The group that holds all sandboxes' in one hierarchy. `controllers` are those that it bounds them by."""

    folder: Path
    controllers: frozenset[str]
    is_v2: bool

    @property
    def can_kill(self) -> bool:
        return (self.folder / "cgroup.kill").exists()

    def prepare(self, weight: int) -> None:
        """Let sandboxes' groups have the controllers, and weigh `weight` together. Raises OSError."""
        if self.is_v2 and not os.access(self.folder.parent / "cgroup.procs", os.W_OK):
            raise PermissionError(errno.EACCES, "processes can't be moved out of it", str(self.folder.parent))
        if self.is_v2:
            _hand_down(self.folder, self.controllers)
        if "cpu" in self.controllers:
            write(self.folder / ("cpu.weight" if self.is_v2 else "cpu.shares"), str(weight))


class Group:
    """Of one sandbox, in each hierarchy."""

    def __init__(self, runtime_id: RuntimeId, roots: Sequence[Root], sandbox: settings.Sandbox) -> None:
        self._roots = tuple(roots)
        self._name = runtime_id
        self._memory = sandbox.memory
        self._tools_memory = sandbox.memory - min(_RUNTIME_RESERVE_BYTES, sandbox.memory // 4)
        self._processes = sandbox.processes
        self._told = 0
        self._calls = min(_MOST_CALLS, sandbox.files // _FILES_PER_CALL)

    @property
    def holds_memory(self) -> bool:
        return self._with("memory") is not None

    def make(self) -> None:
        """Raises OSError; `destroy` removes what was made by then."""
        for root in self._roots:
            folder = root.folder / self._name
            folder.mkdir()
            if root.is_v2:
                _hand_down(folder, root.controllers - {"cpu"})
            for name in ("main", "tools"):
                (folder / name).mkdir()
            if "memory" in root.controllers:
                _limit_memory(folder, self._memory, is_v2=root.is_v2)
                _limit_memory(folder / "tools", self._tools_memory, is_v2=root.is_v2)
            if "pids" in root.controllers:
                most_of_tools = max(self._processes - _RUNTIME_RESERVE_PROCESSES, self._processes // 2)
                write(folder / "pids.max", str(self._processes + _OWN_PROCESSES))
                write(folder / "tools" / "pids.max", str(most_of_tools))
            if root.can_kill:
                for number in range(self._calls):
                    (folder / "tools" / str(number)).mkdir()

    def enter(self, pid: int) -> None:
        """Move a process that is to be the runtime, or the sandbox's own. Raises OSError."""
        for root in self._roots:
            write(root.folder / self._name / "main" / "cgroup.procs", str(pid))

    def open_for_runtime(self, open_here: contextlib.ExitStack) -> tuple[dict[str, str], list[int]]:
        """What the runtime is told of its groups (see runtime/call_groups.py), and the descriptors that this names."""
        if not self._roots:
            return {}, []

        def opened(path: Path, flags: int) -> int:
            descriptor = os.open(path, flags | os.O_CLOEXEC)
            open_here.callback(os.close, descriptor)
            return descriptor

        entries, calls, memory = [], [], []
        for root in self._roots:
            tools = root.folder / self._name / "tools"
            if root.can_kill:
                calls = [
                    (opened(one / "cgroup.procs", os.O_RDWR), opened(one / "cgroup.kill", os.O_WRONLY))
                    for one in (tools / str(number) for number in range(self._calls))
                ]
            else:
                entries.append(opened(tools / "cgroup.procs", os.O_WRONLY))
            if "memory" in root.controllers:
                memory = [opened(_events(tools, is_v2=root.is_v2), os.O_RDONLY), self._tools_memory]
        text = ";".join(
            (
                ",".join(map(str, entries)),
                ",".join(f"{procs}:{kill}" for procs, kill in calls),
                ",".join(map(str, memory)),
            )
        )
        return {Environment.GROUPS: text}, [*entries, *(one for pair in calls for one in pair), *memory[:1]]

    def kill(self) -> None:
        """SIGKILL for all of the sandbox at once, where the kernel has that; the end of its first process does it too."""
        for root in self._roots:
            if root.can_kill:
                with contextlib.suppress(OSError):  # it is gone
                    write(root.folder / self._name / "cgroup.kill", "1")

    def weigh(self, tenants_sandboxes: int) -> None:
        """Take this sandbox's part of what its tenant may weigh, who has so many."""
        if (root := self._with("cpu")) is not None:
            name, whole = ("cpu.weight", _V2_WEIGHT) if root.is_v2 else ("cpu.shares", _V1_WEIGHT)
            with contextlib.suppress(OSError):  # it has ended meanwhile
                write(root.folder / self._name / name, str(max(whole // max(tenants_sandboxes, 1), 2)))

    def newly_killed_tools(self) -> int:
        """How many of its tools the kernel has killed for memory since this was last asked."""
        before, self._told = self._told, self._killed("tools")
        return max(self._told - before, 0)

    def why_killed(self) -> str:
        """That the kernel has killed the runtime itself for memory, or nothing."""
        return f"killed: memory over {self._memory >> 20} MiB" if self._killed("main") else ""

    def _killed(self, name: str) -> int:
        root = self._with("memory")
        return 0 if root is None else oom_kills(_events(root.folder / self._name / name, is_v2=root.is_v2))

    def _with(self, controller: str) -> Root | None:
        return next((root for root in self._roots if controller in root.controllers), None)


def oom_kills(path: Path) -> int:
    """The count of a file like memory.events; 0 when it is gone."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _events(folder: Path, *, is_v2: bool) -> Path:
    return folder / ("memory.events" if is_v2 else "memory.oom_control")


def _hand_down(folder: Path, controllers: frozenset[str]) -> None:
    if controllers:
        write(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(controllers)))


def _limit_memory(folder: Path, limit_bytes: int, *, is_v2: bool) -> None:
    """Sockets, shared pages, temporary files and the kernel's own for it count; what is swapped out does not help."""
    if is_v2:
        write(folder / "memory.max", str(limit_bytes))
        more = {"memory.swap.max": 0}
    else:
        write(folder / "memory.limit_in_bytes", str(limit_bytes))
        more = {
            "memory.memsw.limit_in_bytes": limit_bytes,
            "memory.kmem.tcp.limit_in_bytes": limit_bytes // _TCP_SHARE,
        }
    for name, value in more.items():
        with contextlib.suppress(OSError):  # a kernel without swap, or without accounting of it
            write(folder / name, str(value))


def write(path: Path, value: str) -> None:
    """One write, as these files want it; never makes a file. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode("ascii"))
    finally:
        os.close(descriptor)


def read_pids(folder: Path) -> list[int]:
    """The processes that are in the group itself; none when it is gone."""
    try:
        return [int(line) for line in (folder / "cgroup.procs").read_text(encoding="ascii").split()]
    except OSError:
        return []


def destroy(folder: Path) -> None:
    """Kill what is in a group and in those below it, and remove them. Idempotent. What stays is logged. Blocks."""
    deadline = time.monotonic() + _REMOVE_SECONDS
    while folder.exists():
        try:
            _kill_all(folder)
            for path, _, _ in os.walk(folder, topdown=False):
                Path(path).rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            if time.monotonic() > deadline:
                log.error("a control group can't be removed; the next start tries again", error=str(error))
                return
            time.sleep(0.002)  # the kernel lets go of what it has killed


def _kill_all(folder: Path) -> None:
    if (folder / "cgroup.kill").exists():
        write(folder / "cgroup.kill", "1")
        return
    for path, _, _ in os.walk(folder):
        for pid in read_pids(Path(path)):
            found = process.identify(pid)
            if found is not None and pid in read_pids(Path(path)):  # else the number was another process's by then
                process.send(found, signal.SIGKILL)
