"""Work of many callers is done a little at a time, by turns. The clocks are the tests' own."""

import asyncio
import collections
import contextvars
import heapq
import itertools
import logging
from dataclasses import dataclass, field

import pytest
from websockets.frames import Opcode

from amplifier_api_server.control_plane import fair_queue
from amplifier_api_server.control_plane.fair_queue import (
    BURST_OF_ALL,
    BURST_OF_ONE,
    SHARE_OF_ALL,
    SHARE_OF_ONE,
    TURN_SECONDS,
    FairQueue,
)
from amplifier_api_server.control_plane.stepwise import StepwiseProtocol
from tests.control_plane.test_upgraded import frame, upgrade

_MOST, _AT_ONCE = 128, 16
_FRAME_SECONDS = TURN_SECONDS / _MOST


class Clock:
    """Seconds of work, which go on by what is done; seconds of the wall, which stand still or run far ahead."""

    def __init__(self):
        self.worked = self.wall = 0.0

    def work(self, seconds):
        self.worked += seconds
        self.wall += seconds
        return 0

    def queue(self):
        return FairQueue(lambda: self.worked, lambda: self.wall)

    def idle_queue(self):
        """One whose callers never had their share: much time passes between two steps."""

        def later():
            self.wall += 3600
            return self.wall

        return FairQueue(lambda: self.worked, later)


@pytest.fixture
def clock():
    return Clock()


@dataclass
class Flood:
    """So many frames to handle, a few at a time."""

    clock: Clock
    turns: FairQueue
    network: str
    frames: int
    handled: list = field(default_factory=list)

    def wait(self):
        self.turns.put(self.network, self.step)

    def step(self):
        taken = min(_AT_ONCE, self.frames)
        self.frames -= taken
        self.handled.append((self.network, taken))
        if self.frames:
            self.wait()
        return self.clock.work(taken * _FRAME_SECONDS)


async def each_turn(handled):
    """How many frames each turn of the loop handled, until a turn handles none."""
    counts = []
    while True:
        before = len(handled)
        await asyncio.sleep(0)
        if len(handled) == before:
            return counts
        counts.append(sum(taken for _, taken in handled[before:]))


async def test_one_turn_of_the_loop_handles_so_many_frames_of_all_sockets(clock):
    turns, handled = clock.idle_queue(), []
    for number in range(60):
        Flood(clock, turns, f"192.0.2.{number % 3}", 100, handled).wait()
    counts = await each_turn(handled)
    assert sum(counts) == 6000
    assert max(counts) <= _MOST + _AT_ONCE


async def test_networks_take_turns_however_many_sockets_they_have(clock):
    turns, handled = clock.idle_queue(), []
    for _ in range(60):
        Flood(clock, turns, "192.0.2.1", 1000, handled).wait()
    Flood(clock, turns, "192.0.2.2", 64, handled).wait()
    await each_turn(handled)
    honest = [place for place, (network, _) in enumerate(handled) if network == "192.0.2.2"]
    assert honest == [1, 3, 5, 7], "every other turn is the honest network's, which has one socket of 61"


async def test_sockets_of_one_network_take_turns(clock):
    turns, first, second = clock.idle_queue(), [], []
    Flood(clock, turns, "192.0.2.1", 100_000, first).wait()
    Flood(clock, turns, "192.0.2.1", 16, second).wait()
    await asyncio.sleep(0)
    assert sum(taken for _, taken in second) == 16


async def test_a_step_that_fails_keeps_no_other_from_its_turn(clock):
    turns, handled, told = clock.idle_queue(), [], []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    turns.put("192.0.2.1", lambda: 1 // 0)
    Flood(clock, turns, "192.0.2.2", 40, handled).wait()
    await asyncio.sleep(0)
    assert sum(await each_turn(handled)) == 40
    assert [type(one) for one in told] == [ZeroDivisionError]


async def test_what_is_run_gives_its_result_or_its_error_in_the_callers_context():
    turns, name = FairQueue(), contextvars.ContextVar("name")
    name.set("mine")
    assert await turns.run("a", name.get) == "mine"
    with pytest.raises(ZeroDivisionError):
        await turns.run("a", lambda: 1 // 0)
    cancelled = asyncio.ensure_future(turns.run("a", lambda: pytest.fail("it was cancelled")))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert await turns.run("a", lambda: "next") == "next"


def opened():
    protocol = StepwiseProtocol(64_000, logging.getLogger("test"))
    protocol.receive_data(upgrade())
    (request,) = protocol.events_received()
    protocol.send_response(protocol.accept(request))
    return protocol


@pytest.mark.parametrize("size", [1, 5, 7, 64, 1 << 20])
def test_one_step_parses_one_frame_however_the_bytes_come(size):
    data = (frame(9, b"") + frame(1, b"text") + frame(10, b"x" * 125)) * 50
    protocol, found = opened(), []
    for start in range(0, len(data), size):
        protocol.reader.feed_data(data[start : start + size])
        while protocol.step():
            (one,) = protocol.events_received()
            found.append((one.opcode, len(one.data)))
    assert found == [(Opcode.PING, 0), (Opcode.TEXT, 4), (Opcode.PONG, 125)] * 50
    assert not protocol.reader.buffer


def test_what_is_no_frame_is_told_by_a_step():
    protocol = opened()
    protocol.reader.feed_data(b"\xff\xff\xff\xff")
    assert protocol.step()
    assert protocol.parser_exc is not None


async def test_a_step_is_done_now_while_the_turn_has_room_and_else_in_its_turn(clock):
    queue, done = clock.idle_queue(), []

    def step(name):
        return lambda: (done.append(name), clock.work(0.6 * TURN_SECONDS))[1]

    for name in ("a1", "a2", "a3"):
        queue.do("a", step(name))
    assert done == ["a1", "a2"], "the third finds no room"
    queue.do("b", step("b1"))
    queue.do("a", step("a4"))
    assert done == ["a1", "a2"], "nothing passes what waits"
    await asyncio.sleep(0)
    assert done == ["a1", "a2", "a3", "b1"], "they take turns"
    await asyncio.sleep(0)
    assert done == ["a1", "a2", "a3", "b1", "a4"]
    await asyncio.sleep(0)
    queue.do("a", step("a5"))
    assert done[-1] == "a5"


async def test_what_a_step_begins_elsewhere_leaves_less_room_in_its_turn(clock):
    queue, done = clock.idle_queue(), []
    for name in ("a", "b", "c"):
        queue.put(name, lambda name=name: (done.append(name), TURN_SECONDS / 2)[1])
    await asyncio.sleep(0)
    assert done == ["a", "b"]


async def test_a_step_that_asks_for_another_loses_none(clock):
    queue, done = clock.idle_queue(), []

    def first():
        queue.put("a", lambda: (done.append("third"), 0)[1])
        return 0

    queue.put("a", first)
    queue.put("a", lambda: (done.append("second"), 0)[1])
    await asyncio.sleep(0)
    assert done == ["second", "third"]


class Loop:
    """An event loop whose time is the sum of what is done in it."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self._ready, self._timers, self._count = collections.deque(), [], itertools.count()
        monkeypatch.setattr(fair_queue.asyncio, "get_running_loop", lambda: self)

    def call_soon(self, call, *given):
        self._ready.append(handle := asyncio.Handle(call, given, self))
        return handle

    def call_later(self, seconds, call, *given):
        handle = asyncio.Handle(call, given, self)
        heapq.heappush(self._timers, (self.now + max(seconds, 1e-6), next(self._count), handle))  # as any clock ticks
        return handle

    def get_debug(self):
        return False

    def run_until(self, end):
        while self.now < end:
            while self._timers and self._timers[0][0] <= self.now:
                self._ready.append(heapq.heappop(self._timers)[2])
            if not self._ready:
                self.now = min(self._timers[0][0] if self._timers else end, end)
            for _ in range(len(self._ready)):
                if not (handle := self._ready.popleft()).cancelled():
                    handle._run()

    def call_exception_handler(self, context):
        raise context["exception"]

    def queue(self):
        return FairQueue(lambda: self.now, lambda: self.now)


class Greedy:
    """A caller that always has more to do."""

    def __init__(self, loop, queue, key, step_seconds):
        self._loop, self._queue, self._key, self._step_seconds = loop, queue, key, step_seconds
        self.worked = 0.0
        queue.put(key, self.step)

    def step(self):
        self.worked += self._step_seconds
        self._loop.now += self._step_seconds
        self._queue.put(self._key, self.step)
        return 0


_SECONDS = 5.0


@pytest.mark.parametrize("step_seconds", [0.0001, 0.0007, 0.02])
@pytest.mark.parametrize("callers", [1, 2, 7])
def test_greedy_callers_have_their_share_each_and_together(monkeypatch, callers, step_seconds):
    loop = Loop(monkeypatch)
    queue = loop.queue()
    greedy = [Greedy(loop, queue, f"ten_{number}", step_seconds) for number in range(callers)]
    loop.run_until(_SECONDS)
    worked = [one.worked for one in greedy]
    expected = min(SHARE_OF_ONE, SHARE_OF_ALL / callers) * _SECONDS
    assert sum(worked) <= SHARE_OF_ALL * _SECONDS + BURST_OF_ALL + TURN_SECONDS + step_seconds
    for one in worked:
        assert 0.9 * expected - step_seconds <= one <= expected + BURST_OF_ONE + step_seconds


@pytest.mark.parametrize("step_seconds", [0.0005, 0.02])
def test_a_caller_that_asks_for_little_waits_for_one_step_of_greedy_ones(monkeypatch, step_seconds):
    loop = Loop(monkeypatch)
    queue = loop.queue()
    for number in range(5):
        Greedy(loop, queue, f"ten_{number}", step_seconds)
    waits = []

    def ask():
        asked_at = loop.now
        queue.put("modest", lambda: (waits.append(loop.now - asked_at), 0)[1])
        loop.call_later(0.1, ask)

    loop.call_later(2.0, ask)
    loop.run_until(_SECONDS)
    assert len(waits) > 25
    assert max(waits) <= TURN_SECONDS + step_seconds


async def test_what_is_done_elsewhere_counts_as_its_callers(clock):
    queue = clock.queue()
    await queue.admit("a", 1000)
    waiting = asyncio.ensure_future(queue.admit("a", 0))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
