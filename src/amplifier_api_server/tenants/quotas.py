"""Limits as arithmetic: may one more pass, and how does it stand then? Pure; times are arguments.

The times of rates and places are seconds of a monotonic clock, so that setting the machine's clock neither refuses nor
lets through anybody; those of days are seconds since the epoch.

Three kinds. A rate is GCRA in its continuous-state leaky bucket form (ITU-T I.371, annex A: the same decisions as
virtual scheduling): the bucket holds what was used lately and drains at the limit's pace. Places are held by named holders
until each one's expiry. A budget is a day's limit of which running turns reserve parts. Invariant: what is allowed
never brings the count above the limit of that moment, and what was refused changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

DAY_SECONDS = 86_400
NEVER = math.inf

# Of one request: far above the rounding of a bucket's level, far below anything that could let one more through.
_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Allow:
    """It may pass."""

    amount: int = 1  # of a budget: what may be reserved


@dataclass(frozen=True, slots=True)
class Deny:
    """It may not. `retry_after_seconds` is when it could, if nothing else comes first; None: time alone won't help."""

    retry_after_seconds: float | None


class Bucket(NamedTuple):
    """How full a rate's bucket was at a time, in requests."""

    level: float
    at: float


def drained(bucket: Bucket, limit: int, period_seconds: float, now: float) -> Bucket:
    """The bucket now. Where `now` is before its time, nothing drains, and it goes on draining from now."""
    passed = max(0.0, now - bucket.at)
    return Bucket(max(0.0, bucket.level - passed * limit / period_seconds), now)


def decide_rate(bucket: Bucket, limit: int, period_seconds: float) -> Allow | Deny:
    """May one more request pass? `bucket` is drained to now; the one that passes adds 1 to its level."""
    if bucket.level + 1 <= limit + _TOLERANCE:
        return Allow()
    if limit < 1:
        return Deny(None)
    return Deny((bucket.level + 1 - limit) * period_seconds / limit)


def requests_left(bucket: Bucket, limit: int) -> int:
    """How many more would pass at once. `bucket` is drained to now."""
    return max(0, math.floor(limit - bucket.level + _TOLERANCE))


def empty_at(bucket: Bucket, limit: int, period_seconds: float) -> float:
    """When the whole burst is there again."""
    return bucket.at + (bucket.level * period_seconds / limit if limit > 0 else 0.0)


def decide_place(expiries: Mapping[str, float], holder: str, limit: int | None, now: float) -> Allow | Deny:
    """May `holder` have a place? One that has one keeps it, whatever the limit became since.

    `expiries` says until when each holder has its place (NEVER: until it is released); some may be over.
    """
    if limit is None or expiries.get(holder, -NEVER) > now:
        return Allow()
    live = [until for until in expiries.values() if until > now]
    if len(live) < limit:
        return Allow()
    if limit < 1:
        return Deny(None)
    enough_are_over = sorted(live)[len(live) - limit]
    return Deny(None if enough_are_over == NEVER else enough_are_over - now)


def decide_budget(limit: int | None, used: int, wanted: int, at_least: int, now: float) -> Allow | Deny:
    """How much of a day's `limit` may be reserved, up to `wanted`, when `used` is spent or reserved by others
    already. `now` is in seconds since the epoch.
    """
    amount = wanted if limit is None else min(wanted, limit - used)
    if amount < at_least or amount <= 0:
        return Deny(next_day_at(now) - now)
    return Allow(amount)


def day_of(now: float) -> int:
    """The UTC day, counted from the epoch's."""
    return int(now // DAY_SECONDS)


def next_day_at(now: float) -> float:
    """The next UTC midnight."""
    return float((day_of(now) + 1) * DAY_SECONDS)
