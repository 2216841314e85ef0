"""Whom the watch kills: as tables, and as a property."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from amplifier_api_server.control_plane import settings
from amplifier_api_server.control_plane.pods.disk_watch import MIB, Below, Verdict, Workspace, judge, judge_below
from amplifier_api_server.control_plane.pods.limits_watch import Held, LimitsWatch, too_large
from amplifier_api_server.control_plane.pods.process import ProcessId
from amplifier_api_server.control_plane.pods.trees import Size


def of(pid: int, size: int, *, is_runtime: bool = False) -> Held:
    return Held(ProcessId(pid, 0), size, is_runtime)


RUNTIME = of(2, 40, is_runtime=True)


@pytest.mark.parametrize(
    ("held", "elsewhere", "killed"),
    [
        ([], 0, []),
        ([RUNTIME], 0, []),
        ([RUNTIME, of(3, 60)], 0, []),
        ([RUNTIME, of(3, 61)], 0, [3]),
        ([RUNTIME, of(3, 60)], 1, [3]),
        ([RUNTIME, of(3, 30), of(4, 50)], 0, [4]),
        ([RUNTIME, of(3, 60), of(4, 50)], 0, [3]),
        ([RUNTIME, of(3, 70), of(4, 80)], 0, [4, 3]),
        ([RUNTIME, *(of(pid, 10) for pid in range(3, 13))], 0, [3, 4, 5, 6]),
        ([of(2, 90, is_runtime=True), of(3, 20)], 0, [2]),
        ([of(2, 101, is_runtime=True)], 0, [2]),
        ([RUNTIME], 61, [2]),
        ([RUNTIME, of(3, 10), of(4, 5)], 61, [3, 4]),
        ([RUNTIME, of(3, 10), of(4, 5)], 46, [3]),
    ],
)
def test_memory_over_100(held: list[Held], elsewhere: int, killed: list[int]) -> None:
    assert [one.process.pid for one in too_large(held, elsewhere, 100)] == killed


@given(st.lists(st.integers(0, 1000), max_size=20), st.integers(0, 1000), st.integers(0, 200), st.integers(1, 2000))
def test_what_is_left_is_within_the_limit_or_is_only_the_runtimes_fault(
    tools: list[int], runtime: int, elsewhere: int, limit: int
) -> None:
    held = [of(1, runtime, is_runtime=True), *(of(pid + 2, size) for pid, size in enumerate(tools))]
    killed = too_large(held, elsewhere, limit)
    left = sum(one.bytes for one in held if one not in killed) + elsewhere
    if not killed:
        assert sum(one.bytes for one in held) + elsewhere <= limit
    elif killed[0].is_runtime:
        assert len(killed) == 1
    else:
        assert left <= limit or len(killed) == len(tools)
        assert left + killed[-1].bytes > limit  # the last one was needed


def size(mib: float, *, is_whole: bool = True) -> Size:
    return Size(int(mib * MIB), 10, is_whole)


@pytest.mark.parametrize(
    ("measured", "verdicts"),
    [
        ([size(50), size(100), size(90)], ["fine", "fine", "fine"]),
        ([size(50), size(101), size(101), size(101)], ["fine", "kill the tools", "fine", "fine"]),
        ([size(50), size(110), size(120), size(130)], ["fine", "kill the tools", "kill the tools", "kill the runtime"]),
        ([size(50), size(110), size(110.5), size(120)], ["fine", "kill the tools", "fine", "kill the tools"]),
        ([size(120), size(119), size(118)], ["kill the tools", "fine", "fine"]),
        ([size(1, is_whole=False)] * 3, ["kill the tools", "kill the tools", "kill the runtime"]),
    ],
)
def test_disk_over_100_mib(measured: list[Size], verdicts: list[str]) -> None:
    disk, found = Workspace(), []
    for one in measured:
        disk, verdict = judge(disk, one, 100 * MIB)
        found.append(verdict)
    assert found == [Verdict(name) for name in verdicts]


KIB = 1024
FINE, TOOLS, RUNTIME_TOO = "fine", "kill the tools", "kill the runtime"


@pytest.mark.parametrize(
    ("looks", "verdicts"),
    [
        # Each look is of (KiB in the workspace, its entries, KiB that its processes have written so far).
        ([(900, 5, 0), (900, 5, 0), (1100, 5, 0)], [FINE, FINE, FINE]),
        ([(0, 5, 0), (90, 5, 0), (180, 5, 0), (270, 5, 0)], [FINE, FINE, FINE, TOOLS]),  # little by little
        ([(0, 5, 0), (300, 5, 0), (600, 5, 0), (900, 5, 0)], [FINE, TOOLS, TOOLS, RUNTIME_TOO]),
        ([(0, 5, 0), (300, 5, 0), (300, 5, 0), (600, 5, 0)], [FINE, TOOLS, FINE, TOOLS]),
        ([(9000, 5, 0), (4000, 5, 0), (0, 5, 0), (200, 5, 0), (300, 5, 0)], [FINE, FINE, FINE, FINE, TOOLS]),
        ([(0, 5, 0), (0, 40, 0), (0, 69, 0), (0, 70, 0)], [FINE, FINE, FINE, TOOLS]),  # empty files
        ([(0, 5, 0), (0, 5, 700), (0, 5, 1025)], [FINE, FINE, TOOLS]),  # where no walk finds it
        ([(9000, 99, 0), (5000, 60, 4000), (0, 20, 9000)], [FINE, FINE, FINE]),  # deleting is written down too
    ],
)
def test_whoever_adds_to_a_nearly_full_disk_is_found_however_slowly(
    looks: list[tuple[int, int, int]], verdicts: list[str]
) -> None:
    below: Below | None = None
    found = []
    for kib, entries, written in looks:
        below, verdict = judge_below(below, Size(kib * KIB, entries), written * KIB)
        found.append(verdict)
    assert found == [Verdict(name) for name in verdicts]


class Vanishing:
    """A sandbox whose folder is gone when it is looked at; `has_ended`: because it ended meanwhile."""

    id, root, main = "run_1", None, None

    def __init__(self, *, has_ended: bool) -> None:
        self.ended = asyncio.Event()
        self.has_ended = has_ended

    def tools(self) -> list[int]:
        if self.has_ended:
            self.ended.set()
        raise FileNotFoundError(self.id)


@pytest.mark.parametrize("has_ended", [True, False])
async def test_a_sandbox_that_ends_as_it_is_looked_at_is_no_trouble(tmp_path: Path, has_ended: bool) -> None:
    class Workspaces:
        data_dir = tmp_path

    watch = LimitsWatch(settings.Sandbox(min_free_disk=0), Workspaces(), list)
    with capture_logs() as logged:
        await asyncio.to_thread(watch.look, [Vanishing(has_ended=has_ended)], asyncio.get_running_loop())
    watch.close()
    assert [one["log_level"] for one in logged] == ([] if has_ended else ["error"])
