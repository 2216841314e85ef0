"""Time as an argument: the one thing here that tests replace everywhere."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What time it is, and how much of it has passed. The first may jump, either way and by days; the second never does."""

    def now(self) -> datetime:
        """Aware UTC now: for what is stored or shown, and for what ends at a time that somebody named."""

    def monotonic(self) -> float:
        """Seconds since some moment, the same while the process runs: for every interval, age, lease and throttle."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()
