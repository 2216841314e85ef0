"""What the memory backend counts with: one object a key, of three kinds. Times are arguments; nothing is awaited.

Rates and leases pass by the monotonic clock; the wall clock says which day it is, and no more. So nothing is granted,
refused or forgotten because somebody set the machine's clock: a day that it left and came back to stands as it stood.

Each kind has the same four verbs: `decide` changes nothing, `commit` makes an allowed decision count, `standing`
tells, and `is_idle` says whether forgetting the object would change any later answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from amplifier_api_server.control_plane.limits.backend import Budget, Held, Rate, Standing
from amplifier_api_server.tenants.quotas import (
    DAY_SECONDS,
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

_ALLOW = Allow()
_KEPT_SECONDS: Final = float(
    DAY_SECONDS
)  # of a budget, since it changed; what counts still is read from the ledger again
_FORGET_EVERY_SECONDS: Final = 1800.0


class Now(NamedTuple):
    """This moment by both clocks."""

    passed: float  # seconds of the monotonic clock
    wall: float  # seconds since the epoch

    @property
    def day(self) -> int:
        return day_of(self.wall)

    def on_the_wall(self, passed: float) -> float:
        """A moment of the monotonic clock as it is told to people."""
        return self.wall + (passed - self.passed)


class Meter:
    """Requests of one rate."""

    __slots__ = ("_bucket", "_empty_at")

    def __init__(self, now: Now) -> None:
        self._bucket = Bucket(0.0, now.passed)
        self._empty_at = now.passed

    def decide(self, want: Rate, now: Now) -> Allow | Deny:
        if want.limit is None:
            return _ALLOW
        self._bucket = drained(self._bucket, want.limit, want.period_seconds, now.passed)
        return decide_rate(self._bucket, want.limit, want.period_seconds)

    def commit(self, want: Rate) -> None:
        """One request more. `decide` came just before, with the same time."""
        if want.limit is not None:
            self._bucket = Bucket(self._bucket.level + 1, self._bucket.at)
            self._empty_at = empty_at(self._bucket, want.limit, want.period_seconds)

    def refund(self, want: Rate) -> None:
        """One request less, of those that have not drained by themselves."""
        if want.limit is not None:
            self._bucket = Bucket(max(0.0, self._bucket.level - 1), self._bucket.at)
            self._empty_at = empty_at(self._bucket, want.limit, want.period_seconds)

    def standing(self, want: Rate, now: Now) -> Standing:
        if want.limit is None:
            return Standing(want.name, None, 0, 0, None, now.wall)
        bucket = drained(self._bucket, want.limit, want.period_seconds, now.passed)
        left = requests_left(bucket, want.limit)
        resets_at = now.on_the_wall(empty_at(bucket, want.limit, want.period_seconds))
        return Standing(want.name, want.limit, max(0, math.ceil(bucket.level - 1e-6)), 0, left, resets_at)

    def is_idle(self, now: Now) -> bool:
        return self._empty_at <= now.passed


class Places:
    """Places of one limit, by holder."""

    __slots__ = ("_first_expiry", "_is_seeded", "expiries", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._is_seeded = False
        self.expiries: dict[str, float] = {}
        self._first_expiry = NEVER  # a lower bound: a renewal may have moved it on

    def decide(self, want: Held, now: Now) -> Allow | Deny:
        self.expire(now)
        return decide_place(self.expiries, want.holder, want.limit, now.passed)

    def commit(self, want: Held, now: Now) -> None:
        """Have or renew a place. A renewal by lease never shortens a place that has no expiry."""
        until = NEVER if want.ttl_seconds is None else now.passed + want.ttl_seconds
        self.hold(want.holder, max(until, self.expiries.get(want.holder, until)))

    def hold(self, holder: str, until: float) -> None:
        self.expiries[holder] = until
        self._first_expiry = min(self._first_expiry, until)

    def is_seeded(self, now: Now) -> bool:
        return self._is_seeded

    def seed(self, holders: Iterable[str]) -> None:
        """Who has a place by the record, until released."""
        self._is_seeded = True
        for holder in holders:
            self.hold(holder, NEVER)

    def renew(self, holder: str, ttl_seconds: float, now: Now) -> bool:
        self.expire(now)
        if holder not in self.expiries:
            return False
        if self.expiries[holder] != NEVER:
            self.expiries[holder] = now.passed + ttl_seconds
        return True

    def standing(self, want: Held, now: Now) -> Standing:
        self.expire(now)
        used = len(self.expiries)
        left = None if want.limit is None else max(0, want.limit - used)
        resets_at = now.on_the_wall(min(self.expiries.values(), default=now.passed))
        return Standing(want.name, want.limit, used, 0, left, resets_at, tuple(self.expiries))

    def expire(self, now: Now) -> None:
        if self._first_expiry <= now.passed:
            self.expiries = {holder: until for holder, until in self.expiries.items() if until > now.passed}
            self._first_expiry = min(self.expiries.values(), default=NEVER)

    def is_idle(self, now: Now) -> bool:
        self.expire(now)
        return not self.expiries


@dataclass(slots=True)
class Reservation:
    """What a running turn holds of a day. Kept after it expired, so that its settling counts for its own day."""

    day: int
    amount: int
    expires_at: float  # by the monotonic clock


@dataclass(slots=True)
class Day:
    """What was spent in a UTC day."""

    spent: int = 0
    is_seeded: bool = False  # the ledger was asked: what other processes spent, and this one before its start, is in it
    changed_at: float = 0.0  # by the monotonic clock


class Budgets:
    """Spending of one tenant by UTC day, and what running turns hold of it."""

    __slots__ = ("_days", "_forgot_at", "_reservations", "_settled", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._forgot_at = 0.0
        self._days: dict[int, Day] = {}
        self._reservations: dict[str, Reservation] = {}
        self._settled: dict[str, float] = {}  # holder -> when

    def decide(self, want: Budget, now: Now) -> Allow | Deny:
        """A holder that reserves again keeps what it has; one that is settled can't begin again."""
        if want.holder in self._settled:
            return Deny(None)
        mine = self._live(want.holder, now)
        if mine is not None:
            return Allow(mine.amount)
        return decide_budget(want.limit, self._used(now.day, now), want.amount, want.at_least, now.wall)

    def commit(self, want: Budget, amount: int, now: Now) -> None:
        mine = self._live(want.holder, now)
        day = now.day if mine is None else mine.day
        self._reservations[want.holder] = Reservation(day, amount, now.passed + want.ttl_seconds)

    def extend(self, want: Budget, now: Now) -> int:
        """Up to `want.amount` more, of the day of the reservation; an expired or unknown one begins anew, with that
        alone.
        """
        if want.holder in self._settled:
            return 0
        mine = self._reservations.get(want.holder)
        day = mine.day if mine is not None else now.day
        decision = decide_budget(want.limit, self._used(day, now), want.amount, 1, now.wall)
        if isinstance(decision, Deny):
            return 0
        live = self._live(want.holder, now)
        held = live.amount if live is not None else 0
        self._reservations[want.holder] = Reservation(day, held + decision.amount, now.passed + want.ttl_seconds)
        return decision.amount

    def give_back(self, holder: str, amount: int) -> None:
        mine = self._reservations.get(holder)
        if mine is not None:
            mine.amount = max(0, mine.amount - max(0, amount))

    def is_seeded(self, now: Now) -> bool:
        """Whether the ledger was asked about today."""
        return now.day in self._days and self._days[now.day].is_seeded

    def seed(self, now: Now, spent: int) -> None:
        """What the ledger says was spent today. It holds all that was settled here, because it is written before."""
        day = self._day(now.day, now)
        day.is_seeded = True
        day.spent = max(spent, day.spent)

    def renew(self, holder: str, ttl_seconds: float, now: Now) -> bool:
        mine = self._live(holder, now)
        if mine is None:
            return False
        mine.expires_at = now.passed + ttl_seconds
        return True

    def settle(self, holder: str, spent: int, now: Now) -> None:
        mine = self._reservations.pop(holder, None)
        if mine is not None:
            self._settled[holder] = now.passed
            self._day(mine.day, now).spent += max(0, spent)
        self._forget_old(now)

    def standing(self, want: Budget, now: Now) -> Standing:
        today = self._days.get(now.day)
        spent, reserved = today.spent if today is not None else 0, self._reserved(now.day, now)
        left = None if want.limit is None else max(0, want.limit - spent - reserved)
        return Standing(want.name, want.limit, spent, reserved, left, next_day_at(now.wall), self.live(now))

    def live(self, now: Now) -> tuple[str, ...]:
        return tuple(holder for holder, mine in self._reservations.items() if mine.expires_at > now.passed)

    def is_idle(self, now: Now) -> bool:
        self._forget_old(now)
        return not self._reservations and not self._settled and not self._days

    def _live(self, holder: str, now: Now) -> Reservation | None:
        mine = self._reservations.get(holder)
        return mine if mine is not None and mine.expires_at > now.passed else None

    def _used(self, day: int, now: Now) -> int:
        known = self._days.get(day)
        return (known.spent if known is not None else 0) + self._reserved(day, now)

    def _reserved(self, day: int, now: Now) -> int:
        return sum(
            mine.amount for mine in self._reservations.values() if mine.day == day and mine.expires_at > now.passed
        )

    def _day(self, day: int, now: Now) -> Day:
        found = self._days.setdefault(day, Day())
        found.changed_at = now.passed
        return found

    def _forget_old(self, now: Now) -> None:
        """What did not change for a day, also what expired without ever being settled. Looks twice an hour."""
        if 0 <= now.passed - self._forgot_at < _FORGET_EVERY_SECONDS:
            return
        self._forgot_at, before = now.passed, now.passed - _KEPT_SECONDS
        self._days = {number: day for number, day in self._days.items() if day.changed_at > before}
        self._settled = {holder: at for holder, at in self._settled.items() if at > before}
        self._reservations = {h: mine for h, mine in self._reservations.items() if mine.expires_at > before}
