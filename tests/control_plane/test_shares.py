"""A pool that is shared: nobody takes it all, and whoever comes new finds a place."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.control_plane.shares import Shares, WaitingShares
from amplifier_api_server.tenants.errors import Unavailable


def taken_by(shares, holder, stack) -> int:
    """As many places as one gets who wants all."""
    count = 0
    while shares.has_room(holder):
        stack.enter_context(shares.place(holder))
        count += 1
    return count


@pytest.mark.parametrize(("total", "alone"), [(1, 1), (2, 2), (3, 2), (4, 2), (16, 8), (64, 32), (512, 256)])
def test_one_alone_gets_half(total, alone):
    with ExitStack() as stack:
        assert taken_by(Shares(total), "a", stack) == alone


def test_those_who_come_later_find_room_too():
    shares = Shares(512)
    with ExitStack() as stack:
        counts = [taken_by(shares, str(number), stack) for number in range(5)]
    assert counts == [256, 128, 64, 32, 16]
    assert shares.free == 512


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=100))
def test_no_more_places_than_there_are_and_each_is_given_back_once(total, steps):
    shares, held = Shares(total), []
    for holder, is_taking in steps:
        if is_taking and shares.has_room(str(holder)):
            place = shares.place(str(holder))
            place.__enter__()
            held.append(place)
        elif not is_taking and held:
            held.pop().__exit__(None, None, None)
        assert shares.free == total - len(held) >= 0


class Work:
    """Someone who has a place until told to give it back."""

    def __init__(self, shares, holder, log):
        self.ended = asyncio.Event()
        self.task = asyncio.create_task(self._run(shares, holder, log))

    async def _run(self, shares, holder, log):
        async with shares.turn(holder):
            log.append(holder)
            await self.ended.wait()

    async def end(self):
        self.ended.set()
        await self.task
        await asyncio.sleep(0)


async def test_who_comes_new_has_a_place_while_one_caller_waits_for_many():
    shares, log = WaitingShares(6, 2, 60), []
    greedy = [Work(shares, "greedy", log) for _ in range(20)]
    await asyncio.sleep(0)
    assert log == ["greedy"] * 2
    modest = Work(shares, "modest", log)
    await asyncio.sleep(0)
    assert log[2:] == ["modest"]
    await modest.end()
    for one in greedy:
        await one.end()
    assert log == ["greedy"] * 2 + ["modest"] + ["greedy"] * 18
    assert shares.free == 6


async def test_those_who_wait_take_turns_by_holder_and_one_who_left_or_came_too_late_keeps_no_place():
    shares, log = WaitingShares(1, 1, 60), []
    async with shares.turn("a"):
        gone, a2, a3, b1 = (Work(shares, holder, log) for holder in ("c", "a", "a", "b"))
        await asyncio.sleep(0)
        gone.task.cancel()
        await asyncio.sleep(0)
    a2.task.cancel()  # it has its place, and does not know
    await b1.end()
    await a3.end()
    assert log == ["b", "a"]
    assert shares.free == 1


async def test_one_who_is_cancelled_just_as_a_place_comes_free_takes_none_and_holds_nobody_up():
    shares, log = WaitingShares(1, 1, 60), []
    async with shares.turn("a"):
        gone, b1 = (Work(shares, holder, log) for holder in ("c", "b"))
        await asyncio.sleep(0)
        gone.task.cancel()  # it hears of that in the next turn of the loop
    await asyncio.wait({gone.task})
    assert gone.task.cancelled()
    await b1.end()
    assert log == ["b"]
    assert shares.free == 1


async def test_a_wait_ends_with_a_refusal():
    shares = WaitingShares(1, 1, 0)
    async with shares.turn("a"):
        with pytest.raises(Unavailable):
            async with shares.turn("a"):
                pytest.fail("there was no place")
    assert shares.free == 1
    async with shares.turn("a"):
        assert shares.free == 0
