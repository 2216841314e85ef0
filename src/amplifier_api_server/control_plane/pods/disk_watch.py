"""What sandboxes put on the disk: each one's workspace against its bound, and all of them while the disk is nearly full.

Owns measuring and the judgement. Refuses to end anything (that is `limits_watch`) and to know tenants. Invariants: below the
floor of free disk whoever adds to what it had when that was reached is found, however slowly it does, and whether or not
the file system counts what processes write; deleting is never held against anybody.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from amplifier_api_server.control_plane import settings
from amplifier_api_server.control_plane.disk import Floor, room_of
from amplifier_api_server.control_plane.pods import process, trees
from amplifier_api_server.control_plane.pods.trees import Size
from amplifier_api_server.control_plane.pods.workspaces import Workspaces
from amplifier_api_server.tenants.ids import RuntimeId

MIB = 1024 * 1024

_MOST_ENTRIES = 200_000  # files and folders of one runtime: what a walk counts in a second
_MOST_OPEN_FILES = 4096
_MOST_DESCRIPTORS = 65_536  # of a sandbox, that are looked at
_MEASURE_AGAIN_SECONDS = 2.0
_MEASURE_FULL_AGAIN_SECONDS = 0.5
_MEASURE_ANYWAY_SECONDS = 15.0  # while tools run: making empty files writes next to nothing
_PAUSE_PER_MEASURE = 10
_PAUSE_PER_MEASURE_BELOW = 1  # below the floor half of this thread's time may go into measuring
# Less is no growth in a full workspace: deleting, and saying so in a log, must stay possible.
_GROWTH_BYTES = MIB
_STRIKES = 3
# The same below the floor, but of everything since that was reached, not of one look.
_BELOW_BYTES = MIB // 4
_BELOW_ENTRIES = 64
_BELOW_WRITTEN_BYTES = MIB  # by the processes' own account, over what is there already or where no walk finds it


class Verdict(Enum):
    FINE = "fine"
    KILL_TOOLS = "kill the tools"
    KILL_RUNTIME = "kill the runtime"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is to be done about a sandbox, and which limit says so."""

    verdict: Verdict
    limit: str
    reason: str
    with_runtime: bool = True  # where no tool runs, it is the runtime that grew


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace as it was last measured, and how often in a row it was over its limit and still growing."""

    size: Size = field(default_factory=Size)
    strikes: int = 0


def judge(before: Workspace, now: Size, limit_bytes: int) -> tuple[Workspace, Verdict]:
    """What a measurement means. A full workspace that does not grow is left alone, so that its files can be deleted.

    One that can't be measured to its end (too many files, nested too deep) counts as growing.
    """
    is_over = now.bytes > limit_bytes or not now.is_whole
    grows = now.bytes - before.size.bytes >= _GROWTH_BYTES or not now.is_whole
    if not (is_over and grows):
        return Workspace(now, 0), Verdict.FINE
    after = Workspace(now, before.strikes + 1)
    return after, _verdict_of(after.strikes)


@dataclass(frozen=True, slots=True)
class Below:
    """A sandbox since the disk fell below its floor."""

    least: Size  # the smallest that it was since then, or since it was last found to grow
    last: Size
    written: int  # by its processes' account, when it was last found to grow or to shrink
    strikes: int = 0


def judge_below(before: Below | None, now: Size, written: int) -> tuple[Below, Verdict]:
    """What a measurement means below the floor: everything that was added since counts together, in bytes and in files.

    What is written where no walk finds it (a file that is mapped and has no name) counts by the processes' own account.
    """
    if before is None:
        return Below(now, now, written), Verdict.FINE
    grown = now.bytes - before.least.bytes, now.entries - before.least.entries
    is_shrinking = now.bytes < before.last.bytes or now.entries < before.last.entries
    unseen = 0 if is_shrinking else written - before.written
    if grown[0] > _BELOW_BYTES or grown[1] > _BELOW_ENTRIES or unseen > _BELOW_WRITTEN_BYTES or not now.is_whole:
        return Below(now, now, written, before.strikes + 1), _verdict_of(before.strikes + 1)
    least = Size(min(now.bytes, before.least.bytes), min(now.entries, before.least.entries))
    return Below(least, now, written if is_shrinking else before.written, before.strikes), Verdict.FINE


def _verdict_of(strikes: int) -> Verdict:
    return Verdict.KILL_RUNTIME if strikes >= _STRIKES else Verdict.KILL_TOOLS


@dataclass(slots=True)
class _Watched:
    """What is remembered of one sandbox between two looks. Times are a monotonic clock's."""

    workspace: Workspace = field(default_factory=Workspace)
    below: Below | None = None
    arrivals: int = -1  # what had arrived when it was measured
    measured_at: float = 0.0
    measuring_took: float = 0.0
    written: int = 0
    written_at_measuring: int = 0
    written_in_sight: int = 0  # when no process could hide files
    busy: int = 0  # processor time of those whose writing can't be read
    busy_at_measuring: int = 0


class DiskWatch:
    """One thread's: `begin` a look at all sandboxes, then `look` at each."""

    def __init__(
        self, sandbox: settings.Sandbox, workspaces: Workspaces, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.floor = Floor.of(sandbox)
        self._limit_bytes = sandbox.workspace
        self._workspaces = workspaces
        self._now = now
        self._watched: dict[RuntimeId, _Watched] = {}
        self._is_below = False
        self._arrivals: dict[RuntimeId, int] = {}
        # Whether a sandbox's tenant has no room left, if that wrote so many bytes more than was measured.
        self.is_over: Callable[[RuntimeId, int], bool] = lambda _runtime_id, _more: False

    def arrived(self, runtime_id: RuntimeId) -> None:
        """Something was put into its workspace, which is to be measured now. From any thread."""
        self._arrivals[runtime_id] = self._arrivals.get(runtime_id, 0) + 1

    def held(self, runtime_id: RuntimeId) -> Size | None:
        """What its workspace took when it was measured last; None where something arrived since. From any thread."""
        watched = self._watched.get(runtime_id)
        if watched is None or watched.arrivals != self._arrivals.get(runtime_id, 0):
            return None
        return watched.workspace.size

    def begin(self, running: Sequence[RuntimeId]) -> None:
        """These run now; whatever is remembered of others is forgotten. Raises OSError."""
        self._watched = {one: self._watched.get(one) or _Watched() for one in running}
        for gone in self._arrivals.keys() - self._watched.keys():
            del self._arrivals[gone]
        self._is_below = bool(self.floor.lack(room_of(self._workspaces.data_dir)))

    def look(self, runtime_id: RuntimeId, pids: Sequence[int], *, has_tools: bool) -> list[Finding]:
        """What is wrong with a sandbox, of which `pids` are all processes. Raises OSError."""
        watched = self._watched[runtime_id]
        written = {pid: process.written_bytes(pid) for pid in pids}
        watched.written = max(watched.written, sum(one for one in written.values() if one is not None))
        watched.busy = sum(process.cpu_ticks(pid) for pid, one in written.items() if one is None)
        written_since = watched.written - watched.written_at_measuring
        may_not_grow = self._is_below or self.is_over(runtime_id, written_since)
        arrivals = self._arrivals.get(runtime_id, 0)
        is_new = arrivals != watched.arrivals
        if not self._is_due(watched, has_tools=has_tools, may_not_grow=may_not_grow, is_new=is_new):
            return []
        started = self._now()
        size = self._measure(runtime_id, watched, pids)
        watched.measured_at = self._now()
        watched.measuring_took = watched.measured_at - started
        watched.written_at_measuring = watched.written
        watched.busy_at_measuring = watched.busy
        watched.arrivals = arrivals
        if is_new:  # what was put there is no growth of its own; what its processes wrote meanwhile is
            own = min(size.bytes, written_since)
            watched.workspace, watched.below = Workspace(Size(size.bytes - own, size.entries, size.is_whole)), None
            if own < _GROWTH_BYTES:
                return []
        return [one for one in self._findings(runtime_id, watched, size) if one.verdict is not Verdict.FINE]

    def _findings(self, runtime_id: RuntimeId, watched: _Watched, size: Size) -> list[Finding]:
        watched.workspace, verdict = judge(watched.workspace, size, self._limit_bytes)
        reason = f"workspace over {self._limit_bytes // MIB} MiB or {_MOST_ENTRIES} files, and growing"
        found = [Finding(verdict, "workspace", reason, with_runtime=False)]
        if self._is_below:
            limit, why = "the machine's free disk", "the machine's disk is nearly full"
        elif self.is_over(runtime_id, 0):
            limit, why = "the tenant's share of the disk", "its tenant keeps as much as it may"
        else:
            watched.below = None
            return found
        watched.below, verdict = judge_below(watched.below, size, watched.written)
        return [*found, Finding(verdict, limit, f"{why}, and it went on writing")]

    def _is_due(self, watched: _Watched, *, has_tools: bool, may_not_grow: bool, is_new: bool) -> bool:
        """Whether to measure now: where something was written, and at once where that may have filled something."""
        age = self._now() - watched.measured_at
        if age < watched.measuring_took * (_PAUSE_PER_MEASURE_BELOW if may_not_grow else _PAUSE_PER_MEASURE):
            return False
        if may_not_grow or is_new:
            return True
        written_since = watched.written - watched.written_at_measuring
        if watched.workspace.strikes or watched.workspace.size.bytes + written_since > self._limit_bytes:
            return age >= _MEASURE_FULL_AGAIN_SECONDS
        if written_since or watched.busy != watched.busy_at_measuring:
            return age >= _MEASURE_AGAIN_SECONDS
        return has_tools and age >= _MEASURE_ANYWAY_SECONDS

    def _measure(self, runtime_id: RuntimeId, watched: _Watched, pids: Sequence[int]) -> Size:
        """What the workspace takes, with files that have no name. Of those that can't be measured everything that the
        processes wrote counts, from the last look on at which there was none.
        """
        folder = trees.open_folder(self._workspaces.home(runtime_id).workspace)
        try:
            size = trees.measure(folder, most_entries=_MOST_ENTRIES)
            device = os.fstat(folder).st_dev
        finally:
            os.close(folder)
        unnamed = process.deleted_files(pids, device, most_files=_MOST_OPEN_FILES)
        if not process.hides_files(pids, device, most_files=_MOST_DESCRIPTORS):
            watched.written_in_sight = watched.written
        hidden = watched.written - watched.written_in_sight
        return Size(size.bytes + unnamed.bytes + hidden, size.entries + unnamed.count, size.is_whole)
