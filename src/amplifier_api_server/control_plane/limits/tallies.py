"""What the memory backend counts with: one object a key, of three kinds. Times are arguments; nothing is awaited.

Each kind has the same four verbs: `decide` changes nothing, `commit` makes an allowed decision count, `standing`
tells, and `is_idle` says whether forgetting the object would change any later answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from amplifier_api_server.control_plane.limits.backend import Budget, Held, Rate, Standing
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

_ALLOW = Allow()


class Meter:
    """Requests of one rate."""

    __slots__ = ("_bucket", "_empty_at")

    def __init__(self, now: float) -> None:
        self._bucket = Bucket(0.0, now)
        self._empty_at = now

    def decide(self, want: Rate, now: float) -> Allow | Deny:
        if want.limit is None:
            return _ALLOW
        self._bucket = drained(self._bucket, want.limit, want.period_seconds, now)
        return decide_rate(self._bucket, want.limit, want.period_seconds)

    def commit(self, want: Rate) -> None:
        """One request more. `decide` came just before, with the same time."""
        if want.limit is not None:
            self._bucket = Bucket(self._bucket.level + 1, self._bucket.at)
            self._empty_at = empty_at(self._bucket, want.limit, want.period_seconds)

    def standing(self, want: Rate, now: float) -> Standing:
        if want.limit is None:
            return Standing(want.name, None, 0, 0, None, now)
        bucket = drained(self._bucket, want.limit, want.period_seconds, now)
        left = requests_left(bucket, want.limit)
        resets_at = empty_at(bucket, want.limit, want.period_seconds)
        return Standing(want.name, want.limit, max(0, math.ceil(bucket.level - 1e-6)), 0, left, resets_at)

    def is_idle(self, now: float) -> bool:
        return self._empty_at <= now


class Places:
    """Places of one limit, by holder."""

    __slots__ = ("_first_expiry", "expiries", "is_seeded", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_seeded = False
        self.expiries: dict[str, float] = {}
        self._first_expiry = NEVER  # a lower bound: a renewal may have moved it on

    def decide(self, want: Held, now: float) -> Allow | Deny:
        self.expire(now)
        return decide_place(self.expiries, want.holder, want.limit, now)

    def commit(self, want: Held, now: float) -> None:
        """Have or renew a place. A renewal by lease never shortens a place that has no expiry."""
        until = NEVER if want.ttl_seconds is None else now + want.ttl_seconds
        self.hold(want.holder, max(until, self.expiries.get(want.holder, until)))

    def hold(self, holder: str, until: float) -> None:
        self.expiries[holder] = until
        self._first_expiry = min(self._first_expiry, until)

    def seed(self, holders: Iterable[str]) -> None:
        """Who has a place by the record, until released."""
        self.is_seeded = True
        for holder in holders:
            self.hold(holder, NEVER)

    def renew(self, holder: str, ttl_seconds: float, now: float) -> bool:
        self.expire(now)
        if holder not in self.expiries:
            return False
        if self.expiries[holder] != NEVER:
            self.expiries[holder] = now + ttl_seconds
        return True

    def standing(self, want: Held, now: float) -> Standing:
        self.expire(now)
        used = len(self.expiries)
        left = None if want.limit is None else max(0, want.limit - used)
        resets_at = min(self.expiries.values(), default=now)
        return Standing(want.name, want.limit, used, 0, left, resets_at, tuple(self.expiries))

    def expire(self, now: float) -> None:
        if self._first_expiry <= now:
            self.expiries = {holder: until for holder, until in self.expiries.items() if until > now}
            self._first_expiry = min(self.expiries.values(), default=NEVER)

    def is_idle(self, now: float) -> bool:
        self.expire(now)
        return not self.expiries


@dataclass(slots=True)
class Reservation:
    """What a running turn holds of a day. Kept after it expired, so that its settling counts for its own day."""

    day: int
    amount: int
    expires_at: float


class Budgets:
    """Spending of one tenant by UTC day, and what running turns hold of it."""

    __slots__ = ("_forgot_on", "_reservations", "_settled", "is_seeded", "name", "spent_by_day")

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_seeded = False
        self._forgot_on = 0
        self.spent_by_day: dict[int, int] = {}
        self._reservations: dict[str, Reservation] = {}
        self._settled: dict[str, int] = {}  # holder -> its reservation's day

    def decide(self, want: Budget, now: float) -> Allow | Deny:
        """A holder that reserves again keeps what it has; one that is settled can't begin again."""
        if want.holder in self._settled:
            return Deny(None)
        mine = self._reservations.get(want.holder)
        if mine is not None and mine.expires_at > now:
            return Allow(mine.amount)
        used = self.spent_by_day.get(day_of(now), 0) + self._reserved(day_of(now), now)
        return decide_budget(want.limit, used, want.amount, want.at_least, now)

    def commit(self, want: Budget, amount: int, now: float) -> None:
        mine = self._reservations.get(want.holder)
        day = day_of(now) if mine is None or mine.expires_at <= now else mine.day
        self._reservations[want.holder] = Reservation(day, amount, now + want.ttl_seconds)

    def extend(self, want: Budget, now: float) -> int:
        """Up to `want.amount` more, of the day of the reservation; an expired or unknown one begins anew, with that
        alone.
        """
        if want.holder in self._settled:
            return 0
        mine = self._reservations.get(want.holder)
        is_live = mine is not None and mine.expires_at > now
        day = mine.day if mine is not None else day_of(now)
        used = self.spent_by_day.get(day, 0) + self._reserved(day, now)
        decision = decide_budget(want.limit, used, want.amount, 1, now)
        if isinstance(decision, Deny):
            return 0
        held = mine.amount if mine is not None and is_live else 0
        self._reservations[want.holder] = Reservation(day, held + decision.amount, now + want.ttl_seconds)
        return decision.amount

    def seed(self, day: int, spent: int) -> None:
        """What the ledger says was spent in `day`. It holds all that was settled here, because it is written before."""
        self.is_seeded = True
        self.spent_by_day[day] = max(spent, self.spent_by_day.get(day, 0))

    def renew(self, holder: str, ttl_seconds: float, now: float) -> bool:
        mine = self._reservations.get(holder)
        if mine is None or mine.expires_at <= now:
            return False
        mine.expires_at = now + ttl_seconds
        return True

    def settle(self, holder: str, spent: int, now: float) -> None:
        mine = self._reservations.pop(holder, None)
        if mine is not None:
            self._settled[holder] = mine.day
            self.spent_by_day[mine.day] = self.spent_by_day.get(mine.day, 0) + max(0, spent)
        self._forget_old(day_of(now))

    def standing(self, want: Budget, now: float) -> Standing:
        day = day_of(now)
        spent, reserved = self.spent_by_day.get(day, 0), self._reserved(day, now)
        left = None if want.limit is None else max(0, want.limit - spent - reserved)
        return Standing(want.name, want.limit, spent, reserved, left, next_day_at(now), self.live(now))

    def live(self, now: float) -> tuple[str, ...]:
        return tuple(holder for holder, mine in self._reservations.items() if mine.expires_at > now)

    def is_idle(self, now: float) -> bool:
        self._forget_old(day_of(now))
        return not self._reservations and not self._settled and not self.spent_by_day

    def _reserved(self, day: int, now: float) -> int:
        return sum(mine.amount for mine in self._reservations.values() if mine.day == day and mine.expires_at > now)

    def _forget_old(self, today: int) -> None:
        """Days before yesterday, with what was settled in them and what expired in them without ever being settled."""
        if self._forgot_on >= today:
            return
        self._forgot_on = today
        self.spent_by_day = {day: spent for day, spent in self.spent_by_day.items() if day >= today - 1}
        self._settled = {holder: day for holder, day in self._settled.items() if day >= today - 1}
        self._reservations = {h: mine for h, mine in self._reservations.items() if mine.day >= today - 1}
