"""Frames of all sockets are handled a few at a time, by turns: counted, not timed."""

import asyncio
import logging
from dataclasses import dataclass, field

import pytest
from websockets.frames import Opcode

from amplifier_api_server.control_plane.socket_turns import FRAMES_AT_ONCE, StepwiseProtocol, Turns
from tests.control_plane.test_upgraded import frame, upgrade

_A_TURN = 128 + FRAMES_AT_ONCE  # the last socket's may pass the bound


@dataclass
class Flood:
    """A socket with so many frames to handle."""

    turns: Turns
    network: str
    frames: int
    handled: list = field(default_factory=list)
    is_broken: bool = False
    is_aborted: bool = False

    @property
    def loop(self):
        return asyncio.get_running_loop()

    def take_turn(self, frames):
        if self.is_broken:
            raise RuntimeError("a mistake")
        taken = min(frames, self.frames)
        self.frames -= taken
        self.handled.append((self.network, taken))
        if self.frames:
            self.turns.wait(self)
        return taken

    def abort(self):
        self.is_aborted = True


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
    turns, handled = Turns(), []
    for number in range(60):
        turns.wait(Flood(turns, f"192.0.2.{number % 3}", 100, handled))
    counts = await each_turn(handled)
    assert sum(counts) == 6000
    assert max(counts) <= _A_TURN


async def test_networks_take_turns_however_many_sockets_they_have():
    turns, handled = Turns(), []
    for _ in range(60):
        turns.wait(Flood(turns, "192.0.2.1", 1000, handled))
    turns.wait(Flood(turns, "192.0.2.2", 64, handled))
    await each_turn(handled)
    honest = [place for place, (network, _) in enumerate(handled) if network == "192.0.2.2"]
    assert honest == [1, 3, 5, 7], "every other turn is the honest network's, which has one socket of 61"


async def test_sockets_of_one_network_take_turns():
    turns, first, second = Turns(), [], []
    turns.wait(Flood(turns, "192.0.2.1", 100_000, first))
    turns.wait(Flood(turns, "192.0.2.1", 16, second))
    await asyncio.sleep(0)
    assert sum(taken for _, taken in second) == 16


async def test_a_socket_that_fails_is_cut_off_alone():
    turns, handled = Turns(), []
    broken = Flood(turns, "192.0.2.1", 1, is_broken=True)
    turns.wait(broken)
    turns.wait(Flood(turns, "192.0.2.2", 40, handled))
    assert sum(await each_turn(handled)) == 40
    assert broken.is_aborted


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
