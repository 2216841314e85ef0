"""Work of many callers is done a little at a time, by turns: counted, not timed."""

import asyncio
import contextvars
import logging
from dataclasses import dataclass, field

import pytest
from websockets.frames import Opcode

from amplifier_api_server.control_plane.stepwise import StepwiseProtocol
from amplifier_api_server.control_plane.turns import Turns
from tests.control_plane.test_upgraded import frame, upgrade

_MOST, _AT_ONCE = 128, 16


@dataclass
class Flood:
    """So many frames to handle, a few at a time."""

    turns: Turns
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
        return taken


async def each_turn(handled):
    """How many frames each turn of the loop handled, until a turn handles none."""
    counts = []
    while True:
        before = len(handled)
        await asyncio.sleep(0)
        if len(handled) == before:
            return counts
        counts.append(sum(taken for _, taken in handled[before:]))


async def test_one_turn_of_the_loop_handles_so_many_frames_of_all_sockets():
    turns, handled = Turns(_MOST), []
    for number in range(60):
        Flood(turns, f"192.0.2.{number % 3}", 100, handled).wait()
    counts = await each_turn(handled)
    assert sum(counts) == 6000
    assert max(counts) <= _MOST + _AT_ONCE


async def test_networks_take_turns_however_many_sockets_they_have():
    turns, handled = Turns(_MOST), []
    for _ in range(60):
        Flood(turns, "192.0.2.1", 1000, handled).wait()
    Flood(turns, "192.0.2.2", 64, handled).wait()
    await each_turn(handled)
    honest = [place for place, (network, _) in enumerate(handled) if network == "192.0.2.2"]
    assert honest == [1, 3, 5, 7], "every other turn is the honest network's, which has one socket of 61"


async def test_sockets_of_one_network_take_turns():
    turns, first, second = Turns(_MOST), [], []
    Flood(turns, "192.0.2.1", 100_000, first).wait()
    Flood(turns, "192.0.2.1", 16, second).wait()
    await asyncio.sleep(0)
    assert sum(taken for _, taken in second) == 16


async def test_a_step_that_fails_keeps_no_other_from_its_turn():
    turns, handled, told = Turns(_MOST), [], []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    turns.put("192.0.2.1", lambda: 1 // 0)
    Flood(turns, "192.0.2.2", 40, handled).wait()
    await asyncio.sleep(0)
    assert sum(await each_turn(handled)) == 40
    assert [type(one) for one in told] == [ZeroDivisionError]


async def test_what_is_run_gives_its_result_or_its_error_in_the_callers_context():
    turns, name = Turns(1), contextvars.ContextVar("name")
    name.set("mine")
    assert await turns.run("a", name.get, lambda: 1) == "mine"
    with pytest.raises(ZeroDivisionError):
        await turns.run("a", lambda: 1 // 0, lambda: 1)
    cancelled = asyncio.ensure_future(turns.run("a", lambda: pytest.fail("it was cancelled"), lambda: 1))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert await turns.run("a", lambda: "next", lambda: 1) == "next"


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


async def test_a_step_is_done_now_while_the_turn_has_room_and_else_in_its_turn():
    turns, done = Turns(10), []

    def step(name, worth=6):
        return lambda: (done.append(name), worth)[1]

    for name in ("a1", "a2", "a3"):
        turns.do("a", step(name))
    assert done == ["a1", "a2"], "the third finds no room"
    turns.do("b", step("b1"))
    turns.do("a", step("a4"))
    assert done == ["a1", "a2"], "nothing passes what waits"
    await asyncio.sleep(0)
    assert done == ["a1", "a2", "a3", "b1"], "they take turns"
    await asyncio.sleep(0)
    assert done == ["a1", "a2", "a3", "b1", "a4"]
    await asyncio.sleep(0)
    turns.do("a", step("a5"))
    assert done[-1] == "a5"
