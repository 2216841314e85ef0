from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.tenants.quotas import (
    NEVER,
    Allow,
    Bucket,
    Deny,
    day_of,
    decide_budget,
    decide_place,
    decide_rate,
    drained,
    empty_at,
    next_day_at,
    requests_left,
)

NOW = 1_795_417_440.0
LIMITS = st.integers(1, 2000)
GAPS = st.lists(st.floats(0, 90), min_size=1, max_size=200)


def passed(limit: int, times: list[float]) -> list[float]:
    """The times at which a request passed."""
    bucket, found = Bucket(0.0, NOW), []
    for now in times:
        bucket = drained(bucket, limit, 60.0, now)
        if isinstance(decide_rate(bucket, limit, 60.0), Allow):
            bucket = Bucket(bucket.level + 1, bucket.at)
            found.append(now)
    return found


@given(LIMITS, GAPS)
def test_never_more_than_a_burst_and_what_drained_since(limit: int, gaps: list[float]):
    times, now = [], NOW
    for gap in gaps:
        now += gap
        times += [now] * 3
    done = passed(limit, times)
    for first in range(len(done)):
        for last in range(first, len(done)):
            allowed = limit + (done[last] - done[first]) * limit / 60.0
            assert last - first + 1 <= math.floor(allowed + 1e-3)


@given(LIMITS)
def test_exactly_the_burst_passes_at_once_however_large_the_clock_is(limit: int):
    assert len(passed(limit, [NOW] * (limit + 5))) == limit


@given(LIMITS)
def test_waiting_as_long_as_was_said_is_enough_and_a_little_less_is_not(limit: int):
    bucket = Bucket(float(limit), NOW)
    denied = decide_rate(bucket, limit, 60.0)
    assert isinstance(denied, Deny)
    assert denied.retry_after_seconds is not None
    assert 0 < denied.retry_after_seconds <= 60
    after = NOW + denied.retry_after_seconds
    assert isinstance(decide_rate(drained(bucket, limit, 60.0, after + 1e-6), limit, 60.0), Allow)
    assert isinstance(decide_rate(drained(bucket, limit, 60.0, after - 0.01 * 60 / limit), limit, 60.0), Deny)


@given(LIMITS, st.floats(0, 2000))
def test_what_is_said_to_be_left_is_what_passes(limit: int, level: float):
    bucket = Bucket(min(level, float(limit)), NOW)
    left = requests_left(bucket, limit)
    for _ in range(left):
        assert isinstance(decide_rate(bucket, limit, 60.0), Allow)
        bucket = Bucket(bucket.level + 1, NOW)
    assert isinstance(decide_rate(bucket, limit, 60.0), Deny)


def test_a_limit_of_nothing_lets_nothing_pass_and_says_that_time_does_not_help():
    assert decide_rate(Bucket(0.0, NOW), 0, 60.0) == Deny(None)
    assert decide_place({}, "a", 0, NOW) == Deny(None)
    assert empty_at(Bucket(0.0, NOW), 0, 60.0) == NOW


def test_a_time_before_the_buckets_gives_nothing_away_and_holds_nobody_up():
    earlier = drained(Bucket(10.0, NOW), 10, 60.0, NOW - 3600)
    assert earlier == Bucket(10.0, NOW - 3600)
    assert drained(earlier, 10, 60.0, NOW - 3600 + 6) == Bucket(9.0, NOW - 3600 + 6)


def test_places():
    held = {"a": NOW + 10, "b": NOW + 20, "gone": NOW - 1, "kept": NEVER}
    assert decide_place(held, "a", 1, NOW) == Allow()  # has one already
    assert decide_place(held, "c", 4, NOW) == Allow()
    assert decide_place(held, "c", 3, NOW) == Deny(10)
    assert decide_place(held, "c", 2, NOW) == Deny(20)
    assert decide_place(held, "c", 1, NOW) == Deny(None)  # "kept" never ends by itself
    assert decide_place(held, "gone", 3, NOW) == Deny(10)
    assert decide_place(held, "c", None, NOW) == Allow()


@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.sampled_from([NOW - 1, NOW + 1, NOW + 5, NEVER])),
    st.integers(0, 6),
    st.text("abcdefg", min_size=1, max_size=2),
)
def test_what_is_allowed_never_brings_the_count_above_the_limit(expiries: dict[str, float], limit: int, holder: str):
    live = {one for one, until in expiries.items() if until > NOW}
    if isinstance(decide_place(expiries, holder, limit, NOW), Allow):
        assert holder in live or len(live) < limit
    else:
        assert holder not in live
        assert len(live) >= limit


def test_budgets():
    assert decide_budget(100, 0, 30, 1, NOW) == Allow(30)
    assert decide_budget(100, 90, 30, 1, NOW) == Allow(10)
    assert decide_budget(100, 100, 30, 1, NOW) == Deny(next_day_at(NOW) - NOW)
    assert decide_budget(100, 90, 30, 20, NOW) == Deny(next_day_at(NOW) - NOW)
    assert decide_budget(100, 5000, 30, 1, NOW) == Deny(next_day_at(NOW) - NOW)
    assert decide_budget(None, 5000, 30, 1, NOW) == Allow(30)


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 5000), st.integers(1, 5000))
def test_a_reservation_fits_into_what_is_left_or_is_refused(limit: int, used: int, wanted: int, at_least: int):
    decision = decide_budget(limit, used, wanted, at_least, NOW)
    if isinstance(decision, Allow):
        assert at_least <= decision.amount <= wanted
        assert used + decision.amount <= limit
    else:
        assert limit - used < at_least or wanted < at_least


@given(st.floats(0, 4e9))
def test_the_next_day_begins_within_a_day(now: float):
    assert 0 < next_day_at(now) - now <= 86_400
    assert day_of(next_day_at(now)) == day_of(now) + 1
