"""A recorded stream goes on wherever a reader left it."""

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
