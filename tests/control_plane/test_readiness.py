"""What fails is told once, tried again ever more rarely, and is over when it works."""

import pytest
import structlog

from amplifier_api_server.control_plane.readiness import Backoff, Readiness, Retries
from amplifier_api_server.control_plane.telemetry import Telemetry
from amplifier_api_server.tenants.errors import Unavailable
from tests.tenants.embedded import TestClock


@pytest.fixture
def readiness() -> Readiness:
    return Readiness(Telemetry(), TestClock())


class Times:
    at = 0.0

    def backoff(self, first: float = 1, longest: float = 60, share: float = 0) -> Backoff:
        return Backoff(first, longest, now=lambda: self.at, share=lambda: share)


def test_a_failure_is_logged_once_for_each_kind_and_once_when_it_is_over(readiness):
    with structlog.testing.capture_logs() as lines:
        for number in range(100):
            readiness.failing("disk", f"{number} MiB are free in run_{number:022d}")
            readiness.failing("disk", "it is read-only")
        readiness.works("disk")
        readiness.works("disk")
    assert [line["log_level"] for line in lines] == ["error", "error", "info"]
    assert lines[-1]["failures"] == 200


def test_kinds_that_never_end_are_bounded(readiness):
    with structlog.testing.capture_logs() as lines:
        for number in range(1000):
            readiness.failing("disk", "x" * number)
    assert len(lines) == 16
    assert len(readiness.failing_parts["disk"].kinds) == 16


def test_what_fails_is_in_the_metrics_until_it_works(readiness):
    telemetry = readiness._telemetry
    readiness.failing("disk", "full")
    readiness.failing("disk", "full")
    assert b'amplifier_failing{part="disk"} 1.0' in telemetry.exposition()
    readiness.works("disk")
    assert b'amplifier_failing{part="disk"} 0.0' in telemetry.exposition()
    assert b'amplifier_failures_total{part="disk"} 2.0' in telemetry.exposition()


def test_pauses_double_up_to_a_bound_and_begin_anew_when_it_works():
    times = Times()
    backoff, pauses = times.backoff(), []
    for _ in range(9):
        backoff.failed()
        pauses.append(backoff.wait_seconds)
        backoff.failed()  # another one that was under way
        assert backoff.wait_seconds == pauses[-1]
        times.at += backoff.wait_seconds
        assert backoff.wait_seconds == 0
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    backoff.worked()
    backoff.failed()
    assert backoff.wait_seconds == 1


def test_pauses_have_some_chance_in_them():
    times = Times()
    shares = [times.backoff(share=share) for share in (0, 0.5, 0.999)]
    for one in shares:
        one.failed()
    assert [round(one.wait_seconds, 2) for one in shares] == [1, 0.88, 0.75]


def test_a_part_works_when_everything_of_it_does(readiness):
    times = Times()
    retries = Retries(readiness, "sweeps", times.backoff)
    retries.failed("one", "one", OSError("full"))
    retries.failed("two", "two", Unavailable("the database can't be used now"))
    assert not retries.may_try("one")
    assert retries.may_try("three")
    times.at += 1
    assert retries.may_try("one")
    retries.worked("one")
    assert readiness.failing_parts["sweeps"].cause == "two: the database can't be used now"
    retries.keep({"one"})  # the other is not there any more
    assert not readiness.failing_parts


def test_a_mistake_of_ours_is_logged_with_its_traceback_and_the_systems_failures_are_not(readiness):
    retries = Retries(readiness, "sweeps", Times().backoff)
    with structlog.testing.capture_logs() as lines:
        retries.failed("one", "one", KeyError("x"))
        retries.failed("two", "two", TimeoutError())
    assert [line["exc_info"] is not None for line in lines] == [True, False]
    assert lines[1]["cause"] == "two: TimeoutError"
