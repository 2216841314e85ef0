"""A recorded stream goes on wherever a reader left it."""

import time

from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.control_plane.sessions.replay import frames_after
from amplifier_api_server.runtime.protocol import sse

ID = "req_abc"


def stream(numbers):
    return [sse(ID, number, "token", '{"content":"id: req_abc:1"}') for number in numbers]


@given(st.lists(st.integers(1, 500), unique=True).map(sorted), st.integers(-1, 510))
def test_exactly_the_later_frames_follow(numbers, after):
    frames = stream(numbers)
    later = [frame for frame, number in zip(frames, numbers, strict=True) if number > after]
    assert frames_after(b"".join(frames), ID, after) == b"".join(later)


@given(st.binary(max_size=200), st.integers(0, 9))
def test_no_recorded_bytes_break_it(frames, after):
    frames_after(frames, ID, after)


def test_frames_without_end_cost_nothing():
    """A sandbox wrote them, and may write what it likes: a step for each would hold everybody up for seconds."""
    begun = time.process_time()
    assert frames_after(b"\n\n" * 4_000_000, ID, 1) == b""
    assert frames_after(f"id: {ID}:".encode() + b"9" * 5_000_000 + b"\n\n", ID, 1) == b""
    assert time.process_time() - begun < 0.5
