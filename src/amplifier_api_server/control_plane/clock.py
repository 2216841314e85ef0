"""Time as an argument: the one thing here that tests replace everywhere."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final, Protocol

import structlog

log = structlog.get_logger(__name__)

_JUMP_SECONDS: Final = 60.0  # more than NTP mends at once without being asked to
_TRIAL_SECONDS: Final = 3600.0  # for somebody to notice, and to set it back


def rfc3339(at: datetime) -> str:
    """A time as every door and every record has it: in UTC, with a `Z`."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


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


class Steadiness:
    """Whether the machine's clock may be believed about ages: what was set lately is on trial.

    A row's time is all that is known of how old it is, and what is deleted for its age does not come back when the clock
    does. So whoever deletes by age asks here first, each time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen = clock.now().timestamp(), clock.monotonic()
        self.set_at: float | None = None  # by the monotonic clock, as far as it was noticed

    def is_given(self) -> bool:
        """Whether no more time than passed has gone by since this was asked last, and for an hour before."""
        (was, was_at), (now, at) = self._seen, (self._clock.now().timestamp(), self._clock.monotonic())
        self._seen = now, at
        jump = (now - was) - (at - was_at)
        if abs(jump) > _JUMP_SECONDS:
            self.set_at = at
            log.warning("the machine's clock was set; for an hour nothing is deleted for its age", seconds=round(jump))
        return self.set_at is None or at - self.set_at >= _TRIAL_SECONDS
