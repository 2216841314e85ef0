"""What the kernel does not hold of a sandbox's limits: its disk, the machine's free disk, and memory without control groups.

Owns the watching and what is done about it. Refuses to punish early: a tool that is too large is killed alone, and the
runtime goes on; the runtime only when it is the culprit itself. Invariant: one look at all sandboxes costs a bounded
share of a core, and one sandbox's trouble never stops the look at the others. `disk_watch` says whom the disk's limits end.

What no look sees is bounded elsewhere, or not at all: pipes, other memory of the kernel's. docs/tenancy.md lists it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from amplifier_api_server.control_plane import settings
from amplifier_api_server.control_plane.pods import process
from amplifier_api_server.control_plane.pods.disk_watch import DiskWatch, Verdict
from amplifier_api_server.control_plane.pods.process import ProcessId
from amplifier_api_server.control_plane.pods.sandbox import Sandbox
from amplifier_api_server.control_plane.pods.workspaces import Workspaces

log = structlog.get_logger(__name__)

_SHORTEST_PAUSE_SECONDS = 0.25
_PAUSE_WITH_TOOLS_SECONDS = 0.05  # while tools run whose memory is only watched: a process takes 2 GiB in a second
_LONGEST_PAUSE_SECONDS = 1.0
_PAUSE_PER_LOOK = 10  # so that looking costs at most a tenth of a core, until the longest pause
_FAIR_BUDGET_SECONDS = 0.2  # for reading shares of pages: a process with 65,000 mappings is slow to read

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Held:
    """The memory of one process."""

    process: ProcessId
    bytes: int
    is_runtime: bool = False


def too_large(held: Sequence[Held], elsewhere_bytes: int, limit_bytes: int) -> list[Held]:
    """Whom to kill so that all together, with what temporary folders hold, is within the limit again.

    Tools, the largest first and no more than needed, when they and what lies elsewhere, which is mostly theirs and ends
    with them, are more than the runtime itself; else the runtime, with which everything ends.
    """
    total = sum(one.bytes for one in held) + elsewhere_bytes
    if total <= limit_bytes:
        return []
    tools = sorted((one for one in held if not one.is_runtime), key=lambda one: one.bytes, reverse=True)
    runtime = [one for one in held if one.is_runtime]
    if not tools or sum(one.bytes for one in tools) + elsewhere_bytes < sum(one.bytes for one in runtime):
        return runtime
    chosen: list[Held] = []
    for one in tools:
        if total <= limit_bytes:
            break
        chosen.append(one)
        total -= one.bytes
    return chosen


class LimitsWatch:
    """Watches the sandboxes that `running` names, until it is cancelled."""

    def __init__(
        self, sandbox: settings.Sandbox, workspaces: Workspaces, running: Callable[[], Sequence[Sandbox]]
    ) -> None:
        self._settings = sandbox
        self._running = running
        self.disk = DiskWatch(sandbox, workspaces)
        self._watches_tools = False  # memory of some, at the last look
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
            shortest = _PAUSE_WITH_TOOLS_SECONDS if self._watches_tools else _SHORTEST_PAUSE_SECONDS
            await asyncio.sleep(min(max(shortest, took * _PAUSE_PER_LOOK), _LONGEST_PAUSE_SECONDS))

    def close(self) -> None:
        """End its thread, after the look that it may be taking."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def look(self, sandboxes: Sequence[Sandbox], loop: asyncio.AbstractEventLoop) -> None:
        """One look at all of them. Blocks; runtimes are killed by way of `loop`, where they live."""
        self.disk.begin([one.id for one in sandboxes])
        self._watches_tools = False
        for sandbox in sandboxes:
            try:
                tools = sandbox.tools()
                if sandbox.group.holds_memory:
                    self._report_memory(sandbox)
                else:
                    self._hold_memory(sandbox, tools, loop)
                self._hold_disk(sandbox, tools, loop)
            except Exception:
                if sandbox.ended.is_set():
                    continue  # meanwhile, and its folder is gone
                log.exception("a sandbox's limits could not be looked at", runtime_id=sandbox.id)

    def _report_memory(self, sandbox: Sandbox) -> None:
        """The kernel holds it; that it has killed is to be said all the same."""
        if killed := sandbox.group.newly_killed_tools():
            log.warning("a tool's process was killed", runtime_id=sandbox.id, limit="memory", processes=killed)

    def _hold_memory(self, sandbox: Sandbox, tools: Sequence[ProcessId], loop: asyncio.AbstractEventLoop) -> None:
        self._watches_tools = self._watches_tools or bool(tools)
        limit = self._settings.memory
        held = [Held(one, process.own_bytes(one.pid)) for one in tools]
        if sandbox.main is not None:
            held.insert(0, Held(sandbox.main, process.own_bytes(sandbox.main.pid), is_runtime=True))
        elsewhere = sandbox.temporary_bytes() + sandbox.socket_bytes()
        if not too_large(held, elsewhere, limit):
            return
        for one in too_large(_fair(held), elsewhere, limit):
            if one.is_runtime:
                _kill(sandbox, f"killed: memory over {limit // MIB} MiB", loop)
            else:
                self._kill_tools(sandbox, [one.process], "memory")

    def _hold_disk(self, sandbox: Sandbox, tools: Sequence[ProcessId], loop: asyncio.AbstractEventLoop) -> None:
        pids = [one.pid for one in (sandbox.root, sandbox.main, *tools) if one is not None]
        for found in self.disk.look(sandbox.id, pids, has_tools=bool(tools)):
            if found.verdict is Verdict.KILL_TOOLS and (tools or not found.with_runtime):
                self._kill_tools(sandbox, tools, found.limit)
            else:
                _kill(sandbox, f"killed: {found.reason}", loop)

    def _kill_tools(self, sandbox: Sandbox, tools: Sequence[ProcessId], limit: str) -> None:
        for one in tools:
            if process.send(one, signal.SIGKILL):
                log.warning("a tool's process was killed", runtime_id=sandbox.id, limit=limit)


def _fair(held: Sequence[Held]) -> list[Held]:
    """With pages that several processes share counted once, as far as there is time to read that."""
    until = time.monotonic() + _FAIR_BUDGET_SECONDS
    fair: list[Held] = []
    for one in held:
        share = process.fair_bytes(one.process.pid) if time.monotonic() < until else 0
        fair.append(Held(one.process, share or one.bytes, one.is_runtime))
    return fair


def _kill(sandbox: Sandbox, reason: str, loop: asyncio.AbstractEventLoop) -> None:
    log.warning("a runtime was killed", runtime_id=sandbox.id, reason=reason)
    loop.call_soon_threadsafe(sandbox.kill, reason)
