"""When a call is tried again, and when a provider is left alone."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.control_plane.model_gateway.resilience import Breakers, retry_delay_seconds
from amplifier_api_server.control_plane.settings import Models


def delay(attempt: int, retry_after: float | None = None, chance: float = 0.5, **models) -> float | None:
    return retry_delay_seconds(attempt, retry_after, settings=Models(**models), chance=lambda: chance)


def test_waits_grow_to_a_bound_and_end_with_the_retries():
    assert [delay(n, chance=1.0, retries=10) for n in range(1, 8)] == [0.5, 1, 2, 4, 8, 8, 8]
    assert [delay(n, chance=0.0, retries=2) for n in range(1, 4)] == [0, 0, None]
    assert delay(1, retries=0) is None


def test_what_the_provider_asks_for_is_waited_for_in_full_or_not_at_all():
    assert delay(1, 3.0, chance=0.5) == 3.25
    assert delay(1, 20.0, chance=1.0) == 20.0
    assert delay(1, 20.1) is None
    assert delay(1, 5.0, retry_max_delay=timedelta(seconds=4)) is None


@given(
    attempt=st.integers(1, 50),
    retry_after=st.none() | st.floats(0, 1e9),
    chance=st.floats(0, 1, exclude_max=True),
    retries=st.integers(0, 10),
    longest=st.floats(0, 1000),
)
def test_a_delay_is_never_shorter_than_asked_nor_longer_than_allowed(attempt, retry_after, chance, retries, longest):
    settings = Models(retries=retries, retry_max_delay=timedelta(seconds=longest))
    bound = settings.retry_max_delay.total_seconds()
    found = retry_delay_seconds(attempt, retry_after, settings=settings, chance=lambda: chance)
    if attempt > retries or (retry_after or 0) > bound:
        assert found is None
    else:
        assert (retry_after or 0) <= found <= bound


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breakers(clock) -> Breakers:
    return Breakers(3, 30.0, trial_seconds=60.0, now=clock)


def test_a_provider_that_fails_again_and_again_is_left_alone_then_tried_by_one_call(breakers, clock):
    assert [breakers.failed("p") for _ in range(3)] == [False, False, True]
    assert not breakers.allows("p")
    assert breakers.allows("another")
    assert breakers.retry_after_seconds("p") == 30.0
    clock.at += 29.9
    assert not breakers.allows("p")
    clock.at += 0.1
    assert [breakers.allows("p"), breakers.allows("p")] == [True, False]
    assert breakers.state("p") == "half_open"
    assert breakers.failed("p")
    assert not breakers.allows("p")
    clock.at += 30
    assert breakers.allows("p")
    breakers.succeeded("p")
    assert breakers.state("p") == "closed"
    assert all(breakers.allows("p") for _ in range(5))
    assert breakers.retry_after_seconds("p") is None


def test_only_failures_in_a_row_count(breakers):
    for _ in range(5):
        breakers.failed("p")
        breakers.failed("p")
        breakers.succeeded("p")
    assert breakers.allows("p")


def test_a_trial_that_says_nothing_lets_another_one_try(breakers, clock):
    for _ in range(3):
        breakers.failed("p")
    clock.at += 30
    assert breakers.allows("p")
    breakers.released("p")
    assert breakers.allows("p")
    assert not breakers.allows("p")
    clock.at += 60  # and so does one that never comes back
    assert breakers.allows("p")


def test_one_tenant_can_not_take_a_provider_from_those_whom_it_answers(breakers, clock):
    breakers.succeeded("p", "good")
    assert not any(breakers.failed("p", "evil") for _ in range(50))
    assert breakers.allows("p")
    assert breakers.failed("p", "good")  # now it is not one tenant alone
    assert not breakers.allows("p")


def test_a_tenant_that_is_alone_there_is_believed(breakers, clock):
    breakers.succeeded("p", "only")
    breakers.succeeded("p", "other")
    clock.at += 31
    assert [breakers.failed("p", "only") for _ in range(3)] == [False, False, True]


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "succeeded", "failed", "released", "wait"]),
        st.sampled_from(["a", "b"]),
        st.floats(0, 100),
    ),
    max_size=60,
)


@given(EVENTS)
def test_whatever_happens_an_open_provider_is_asked_by_one_at_a_time_and_never_for_ever_closed(events):
    clock = Clock()
    breakers = Breakers(2, 30.0, trial_seconds=60.0, now=clock)
    opened_at = tried_at = None
    for event, who, seconds in events:
        before = breakers.state("p")
        match event:
            case "wait":
                clock.at += seconds
            case "ask":
                allowed = breakers.allows("p")
                if before == "closed":
                    assert allowed
                elif before == "open":
                    assert not allowed
                elif allowed:
                    assert tried_at is None or clock.at >= tried_at + 60
                    tried_at = clock.at
            case "succeeded":
                breakers.succeeded("p", who)
                assert breakers.state("p") == "closed"
                tried_at = None
            case "failed":
                if breakers.failed("p", who):
                    opened_at, tried_at = clock.at, None
            case "released":
                breakers.released("p")
                tried_at = None
        if breakers.state("p") == "open":
            assert opened_at is not None
            assert clock.at < opened_at + 30
    clock.at += 91  # whatever was, somebody may try by then
    assert breakers.allows("p")
