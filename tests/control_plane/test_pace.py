"""A pace, by a clock of the test's."""

from amplifier_api_server.control_plane.pace import Pace, weight_of


def test_a_burst_passes_at_once_and_the_rest_at_its_pace():
    now = 100.0
    pace = Pace(10, 20, lambda: now)
    assert [pace.wait_seconds() for _ in range(20)] == [0.0] * 20
    assert [round(pace.wait_seconds(), 3) for _ in range(3)] == [0.1, 0.2, 0.3]


def test_what_is_not_taken_is_kept_up_to_the_burst():
    now = 0.0
    pace = Pace(10, now=lambda: now)
    assert pace.wait_seconds(10) == 0
    now = 0.5
    assert pace.wait_seconds(5) == 0
    now = 1000.0
    assert pace.wait_seconds(10) == 0
    assert pace.wait_seconds(1) > 0


def test_a_large_message_counts_as_several():
    assert weight_of("x") < 1.01
    assert weight_of("x" * 2 * 1024 * 1024) == 129
