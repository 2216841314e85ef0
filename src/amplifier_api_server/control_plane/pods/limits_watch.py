"""The limits that the kernel does not hold without cgroups: a sandbox's memory, its disk, and the machine's free disk.

Owns the watching and what is done about it. Refuses to punish early: a tool that is too large is killed alone, and the
runtime goes on; the runtime only when it is the culprit itself. Invariant: one look at all sandboxes costs a bounded
share of a core, and one sandbox's trouble never stops the look at the others.

What no look sees is bounded elsewhere, or not at all: memory of sockets and pipes, files that are mapped and have
neither name nor descriptor (these the free disk's floor ends). docs/tenancy.md lists it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum

import structlog

from amplifier_api_server.control_plane import settings
from amplifier_api_server.control_plane.pods import process, trees
from amplifier_api_server.control_plane.pods.sandbox import Sandbox
from amplifier_api_server.control_plane.pods.workspaces import Workspaces
from amplifier_api_server.tenants.ids import RuntimeId

log = structlog.get_logger(__name__)

_SHORTEST_PAUSE_SECONDS = 0.25  # a hog was seen at 611 MiB of 512 with this
_LONGEST_PAUSE_SECONDS = 1.0
_PAUSE_PER_LOOK = 10  # so that looking costs at most a tenth of a core, until the longest pause
_FAIR_BUDGET_SECONDS = 0.2  # for reading shares of pages: a process with 65,000 mappings is slow to read

_MOST_ENTRIES = 200_000  # files and folders of one runtime: what a walk counts in a second
_MOST_OPEN_FILES = 4096
_MEASURE_AGAIN_SECONDS = 2.0
_MEASURE_FULL_AGAIN_SECONDS = 0.5
_MEASURE_ANYWAY_SECONDS = 15.0  # while tools run: making empty files writes next to nothing
_PAUSE_PER_MEASURE = 10
_GROWTH_BYTES = (
    1024 * 1024
)  # less is no growth: deleting, and saying so in a log, must stay possible in a full workspace
_STRIKES = 3

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Held:
    """The memory of one process."""

    pid: int
    bytes: int
    is_runtime: bool = False


def too_large(held: Sequence[Held], elsewhere_bytes: int, limit_bytes: int) -> list[Held]:
    """Whom to kill so that all together, with what temporary folders hold, is within the limit again.

    Tools, the largest first and no more than needed, when they hold more than the runtime itself; else the runtime,
    with which everything ends.
    """
    total = sum(one.bytes for one in held) + elsewhere_bytes
    if total <= limit_bytes:
        return []
    tools = sorted((one for one in held if not one.is_runtime), key=lambda one: one.bytes, reverse=True)
    runtime = [one for one in held if one.is_runtime]
    if not tools or sum(one.bytes for one in tools) < sum(one.bytes for one in runtime):
        return runtime
    chosen: list[Held] = []
    for one in tools:
        if total <= limit_bytes:
            break
        chosen.append(one)
        total -= one.bytes
    return chosen


class Verdict(Enum):
    FINE = "fine"
    KILL_TOOLS = "kill the tools"
    KILL_RUNTIME = "kill the runtime"


@dataclass(frozen=True, slots=True)
class Disk:
    """A workspace as it was last measured, and how often in a row it was over its limit and still growing."""

    size: trees.Size = field(default_factory=trees.Size)
    strikes: int = 0


def judge(before: Disk, now: trees.Size, limit_bytes: int) -> tuple[Disk, Verdict]:
    """What a measurement means. A full workspace that does not grow is left alone, so that its files can be deleted.

    One that can't be measured to its end (too many files, nested too deep) counts as growing.
    """
    is_over = now.bytes > limit_bytes or not now.is_whole
    grows = now.bytes - before.size.bytes >= _GROWTH_BYTES or not now.is_whole
    if not (is_over and grows):
        return Disk(now, 0), Verdict.FINE
    after = Disk(now, before.strikes + 1)
    return after, Verdict.KILL_RUNTIME if after.strikes >= _STRIKES else Verdict.KILL_TOOLS


@dataclass(slots=True)
class _Watched:
    """What is remembered of one sandbox between two looks."""

    disk: Disk = field(default_factory=Disk)
    measured_at: float = 0.0
    measuring_took: float = 0.0
    written: int = 0
    written_last_look: int = 0
    written_at_measuring: int = 0
    busy: int = 0  # processor time of those whose writing can't be read
    busy_at_measuring: int = 0


class LimitsWatch:
    """Watches the sandboxes that `running` names, until it is cancelled."""

    def __init__(
        self, sandbox: settings.Sandbox, workspaces: Workspaces, running: Callable[[], Sequence[Sandbox]]
    ) -> None:
        self._settings = sandbox
        self._workspaces = workspaces
        self._running = running
        self._watched: dict[RuntimeId, _Watched] = {}
        # Of its own: a look must not wait for the others' work in the loop's few threads.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limits-watch")

    async def run(self) -> None:
        """Look, and look again."""
        while True:
            started = time.monotonic()
            try:
                sandboxes = [one for one in self._running() if one.root is not None and not one.ended.is_set()]
                if sandboxes:
                    loop = asyncio.get_running_loop()
                    await loop.run_in_executor(self._thread, self.look, sandboxes, loop)
            except Exception:
                log.exception("a look at the sandboxes' limits has failed; the next one follows")
            took = time.monotonic() - started
            await asyncio.sleep(min(max(_SHORTEST_PAUSE_SECONDS, took * _PAUSE_PER_LOOK), _LONGEST_PAUSE_SECONDS))

    def close(self) -> None:
        """End its thread, after the look that it may be taking."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def look(self, sandboxes: Sequence[Sandbox], loop: asyncio.AbstractEventLoop) -> None:
        """One look at all of them. Blocks; runtimes are killed by way of `loop`, where they live."""
        self._watched = {one.id: self._watched.get(one.id, _Watched()) for one in sandboxes}
        for sandbox in sandboxes:
            try:
                tools = sandbox.tools()
                self._hold_memory(sandbox, tools, loop)
                self._hold_disk(sandbox, tools, loop)
            except Exception:
                if sandbox.ended.is_set():
                    continue  # meanwhile, and its folder is gone
                log.exception("a sandbox's limits could not be looked at", runtime_id=sandbox.id)
        self._hold_free_disk(sandboxes, loop)

    def _hold_memory(self, sandbox: Sandbox, tools: Sequence[int], loop: asyncio.AbstractEventLoop) -> None:
        limit = self._settings.memory
        runtime = [] if sandbox.main is None else [sandbox.main.pid]
        held = [Held(pid, process.own_bytes(pid), is_runtime=pid in runtime) for pid in (*runtime, *tools)]
        elsewhere = sandbox.temporary_bytes()
        if not too_large(held, elsewhere, limit):
            return
        for one in too_large(_fair(held), elsewhere, limit):
            if one.is_runtime:
                _kill(sandbox, f"killed: memory over {limit // MIB} MiB", loop)
            else:
                self._kill_tools(sandbox, [one.pid], "memory")

    def _hold_disk(self, sandbox: Sandbox, tools: Sequence[int], loop: asyncio.AbstractEventLoop) -> None:
        watched = self._watched[sandbox.id]
        pids = [one.pid for one in (sandbox.root, sandbox.main) if one is not None] + list(tools)
        written = {pid: process.written_bytes(pid) for pid in pids}
        watched.written_last_look = watched.written
        watched.written = max(watched.written, sum(one for one in written.values() if one is not None))
        watched.busy = sum(process.cpu_ticks(pid) for pid, one in written.items() if one is None)
        if not self._is_due(watched, has_tools=bool(tools)):
            return
        limit = self._settings.workspace
        started = time.monotonic()
        watched.disk, verdict = judge(watched.disk, self._measure(sandbox, pids), limit)
        watched.measuring_took = time.monotonic() - started
        watched.measured_at = time.monotonic()
        watched.written_at_measuring = watched.written
        watched.busy_at_measuring = watched.busy
        if verdict is Verdict.KILL_RUNTIME:
            _kill(sandbox, f"killed: workspace over {limit // MIB} MiB or {_MOST_ENTRIES} files, and growing", loop)
        elif verdict is Verdict.KILL_TOOLS:
            self._kill_tools(sandbox, tools, "workspace")

    def _is_due(self, watched: _Watched, *, has_tools: bool) -> bool:
        """Whether to measure now: where something was written, and at once where that may have filled the workspace."""
        age = time.monotonic() - watched.measured_at
        if age < watched.measuring_took * _PAUSE_PER_MEASURE:
            return False
        written_since = watched.written - watched.written_at_measuring
        if watched.disk.strikes or watched.disk.size.bytes + written_since > self._settings.workspace:
            return age >= _MEASURE_FULL_AGAIN_SECONDS
        if written_since or watched.busy != watched.busy_at_measuring:
            return age >= _MEASURE_AGAIN_SECONDS
        return has_tools and age >= _MEASURE_ANYWAY_SECONDS

    def _measure(self, sandbox: Sandbox, pids: Sequence[int]) -> trees.Size:
        folder = trees.open_folder(self._workspaces.home(sandbox.id).workspace)
        try:
            size = trees.measure(folder, most_entries=_MOST_ENTRIES)
            device = os.fstat(folder).st_dev
        finally:
            os.close(folder)
        unnamed = process.deleted_bytes(pids, device, most_files=_MOST_OPEN_FILES)
        return trees.Size(size.bytes + unnamed, size.entries, size.is_whole)

    def _hold_free_disk(self, sandboxes: Sequence[Sandbox], loop: asyncio.AbstractEventLoop) -> None:
        """When the machine's disk is nearly full, end whoever has written most since the last look."""
        if shutil.disk_usage(self._workspaces.data_dir).free >= self._settings.min_free_disk:
            return
        most = max(sandboxes, key=lambda one: self._recently_written(one.id))
        if self._recently_written(most.id) < _GROWTH_BYTES:
            return
        if tools := most.tools():
            self._kill_tools(most, tools, "the machine's free disk")
        else:
            _kill(most, "killed: the machine's disk is nearly full, and it wrote most", loop)

    def _recently_written(self, runtime_id: RuntimeId) -> int:
        watched = self._watched[runtime_id]
        return watched.written - watched.written_last_look

    def _kill_tools(self, sandbox: Sandbox, pids: Sequence[int], limit: str) -> None:
        for pid in pids:
            found = process.identify(pid)
            if found is not None and process.send(found, signal.SIGKILL):
                log.warning("a tool's process was killed", runtime_id=sandbox.id, limit=limit)


def _fair(held: Sequence[Held]) -> list[Held]:
    """With pages that several processes share counted once, as far as there is time to read that."""
    until = time.monotonic() + _FAIR_BUDGET_SECONDS
    fair: list[Held] = []
    for one in held:
        share = process.fair_bytes(one.pid) if time.monotonic() < until else 0
        fair.append(Held(one.pid, share or one.bytes, one.is_runtime))
    return fair


def _kill(sandbox: Sandbox, reason: str, loop: asyncio.AbstractEventLoop) -> None:
    log.warning("a runtime was killed", runtime_id=sandbox.id, reason=reason)
    loop.call_soon_threadsafe(sandbox.kill, reason)
