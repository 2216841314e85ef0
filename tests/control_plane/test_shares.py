"""A pool that is shared: nobody takes it all, and whoever comes new finds a place."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.control_plane.shares import Shares


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
