"""How often somebody may guess wrong: so many times within a while, then not until it has passed. Pure but for the clock.

What is known is of this process, and bounded: with the most remembered, the longest unheard of is forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.tenants.errors import Refused

POLL_SECONDS = 4.0  # of the 5 that devices are told: a client's clock is not ours
_MAX_KNOWN = 50_000


class DeviceThrottles:
    """What is counted of device logins. An address may be a proxy's, so it may do more than one login or key."""

    def __init__(self, clock: Clock) -> None:
        self.polls = Polls(clock, seconds=POLL_SECONDS)
        self.starts = Throttle(clock, most=60, seconds=60.0, what="device logins from this address")
        self.guesses = Throttle(clock, most=5, seconds=600.0, what="wrong codes")  # RFC 8628, 5.1
        self.guesses_of_address = Throttle(clock, most=50, seconds=600.0, what="wrong codes from this address")


class Polls:
    """When each device asked last. A poll costs a look, and no turn among the writers."""

    def __init__(self, clock: Clock, *, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._last: OrderedDict[bytes, float] = OrderedDict()  # by the code's digest

    def is_too_soon(self, digest: bytes) -> bool:
        """Whether this poll comes less than `seconds` after the one before. It counts as one either way."""
        now = self._clock.now().timestamp()
        before = self._last.get(digest)
        self._last[digest] = now
        self._last.move_to_end(digest)
        while len(self._last) > _MAX_KNOWN:
            self._last.popitem(last=False)
        return before is not None and now - before < self._seconds


class Throttle:
    """`most` events within `seconds`, each by whoever it is counted for."""

    def __init__(self, clock: Clock, *, most: int, seconds: float, what: str) -> None:
        self._clock = clock
        self._most = most
        self._seconds = seconds
        self._what = what
        self._events: OrderedDict[str, deque[float]] = OrderedDict()

    def require(self, who: str) -> None:
        """Raise Refused (`too_many_attempts`) where there were too many."""
        events = self._recent(who)
        if len(events) >= self._most:
            wait = max(1.0, events[0] + self._seconds - self._now())
            raise Refused(f"too many {self._what}; wait", code="too_many_attempts", retry_after_seconds=wait)

    def count(self, who: str) -> None:
        """One more."""
        self._recent(who).append(self._now())

    def _recent(self, who: str) -> deque[float]:
        events = self._events.setdefault(who, deque(maxlen=self._most))
        self._events.move_to_end(who)
        while len(self._events) > _MAX_KNOWN:
            self._events.popitem(last=False)
        while events and events[0] <= self._now() - self._seconds:
            events.popleft()
        return events

    def _now(self) -> float:
        return self._clock.now().timestamp()
