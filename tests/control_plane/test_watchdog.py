"""The event loop's watchdog, on a loop that really stands still."""

import asyncio
import sys
import threading

import pytest
import structlog

from amplifier_api_server.control_plane import watchdog
from amplifier_api_server.control_plane.fair_queue import FairQueue
from amplifier_api_server.control_plane.telemetry import RareLines, Telemetry
from amplifier_api_server.control_plane.watchdog import Watchdog


@pytest.fixture
async def watched():
    telemetry = Telemetry()
    one = Watchdog(telemetry.loop_delays, telemetry.loop_stalls)
    one._lines = RareLines(1, lambda: 0.0)  # its time stands still
    one.start()
    yield telemetry
    await one.close()


def sample(telemetry, name):
    return telemetry.registry.get_sample_value(name) or 0


def spin_until(found):
    """What a blocked loop does. It ends when the watchdog has told of it; never by itself, but for a test that fails."""
    while not found.wait(0):
        pass


@pytest.fixture
def told(monkeypatch):
    """The lines of stalls, and an event that is set by the first."""
    lines, is_there = [], threading.Event()

    def note(_logger, _name, event):
        lines.append(event)
        is_there.set()
        raise structlog.DropEvent

    logger = structlog.wrap_logger(None, processors=[note], wrapper_class=structlog.BoundLogger)
    monkeypatch.setattr(watchdog, "log", logger)
    return lines, is_there


async def beaten(telemetry):
    """Until one more beat has come."""
    before = sample(telemetry, "amplifier_event_loop_delay_seconds_count")
    while sample(telemetry, "amplifier_event_loop_delay_seconds_count") == before:
        await asyncio.sleep(0.001)


@pytest.mark.timeout(30)
async def test_a_loop_that_stands_still_is_told_with_the_function_that_holds_it(watched, told):
    lines, is_there = told
    await FairQueue().run("a", lambda: spin_until(is_there))
    await beaten(watched)
    assert len(lines) == 1
    assert lines[0]["event"] == "the event loop stood still"
    assert lines[0]["late_ms"] >= 100
    assert lines[0]["at"].startswith("control_plane/fair_queue.py:")
    assert lines[0]["at"].endswith("FairQueue._done.<locals>.step")
    assert "FairQueue._turn" in lines[0]["by"]
    assert "spin_until" in lines[0]["code"] or "threading" in lines[0]["code"]
    assert sample(watched, "amplifier_event_loop_stalls_total") >= 1
    assert sample(watched, "amplifier_event_loop_delay_seconds_sum") >= 0.1


@pytest.mark.timeout(30)
async def test_many_stalls_are_counted_and_told_by_few_lines(watched, told):
    lines, is_there = told
    spin_until(is_there)
    await beaten(watched)
    for _ in range(3):
        until = asyncio.get_running_loop().time() + 0.2
        while asyncio.get_running_loop().time() < until:
            pass
        await beaten(watched)
    assert sample(watched, "amplifier_event_loop_stalls_total") >= 4
    assert len(lines) == 1


async def test_what_no_thread_could_see_is_told_all_the_same(told):
    telemetry = Telemetry()
    one = Watchdog(telemetry.loop_delays, telemetry.loop_stalls)
    one._due_at = 1.0  # long ago, and no thread has looked
    one._beats(asyncio.get_running_loop())
    one._beat.cancel()
    assert [(line["at"], line["stalls"]) for line in told[0]] == [("unknown", 1)]


def test_a_stack_is_told_without_a_value():
    def holds(_value):
        return watchdog.where(sys._getframe())

    told = holds("amp_live_0123456789")
    assert "test_watchdog.py" in told["code"]
    assert "0123456789" not in str(told)
