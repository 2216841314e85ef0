"""How often somebody may try what costs us, or lets them guess: so many times within a while, then not until it has passed.

Whoever tries is counted before the work begins, so that a hundred tries at once are a hundred; what came to something is
given back. What is known is of this process, and bounded: with the most remembered, the longest unheard of is forgotten.
Somebody with that many networks can so try a little more often, and takes nothing from anybody else.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.tenants.errors import Refused

POLL_SECONDS: Final = 4.0  # of the 5 that devices are told: a client's clock is not ours
_MAX_KNOWN = 20_000


class Throttles:
    """What is counted of logins. A network may be a whole office's, so it may do more than one login or key."""

    def __init__(self, clock: Clock) -> None:
        self.polls = Polls(clock, seconds=POLL_SECONDS)
        self.starts = Throttle(clock, most=60, seconds=60.0, what="device logins from this network")
        self.guesses = Throttle(clock, most=5, seconds=600.0, what="wrong codes")  # RFC 8628, 5.1
        self.guesses_of_network = Throttle(clock, most=50, seconds=600.0, what="wrong codes from this network")
        self.callbacks = Throttle(clock, most=60, seconds=60.0, what="failed logins from this network")


class Polls:
    """When each device asked last. A poll costs a look, and no turn among the writers."""

    def __init__(self, clock: Clock, *, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._last: OrderedDict[bytes, float] = OrderedDict()  # by the code's digest

    def is_too_soon(self, digest: bytes) -> bool:
        """Whether this poll comes less than `seconds` after the one before. It counts as one either way."""
        now = self._clock.monotonic()
        before = self._last.get(digest)
        self._last[digest] = now
        self._last.move_to_end(digest)
        while len(self._last) > _MAX_KNOWN:
            self._last.popitem(last=False)
        return before is not None and now - before < self._seconds


class _While(NamedTuple):
    """A while that began with a try, and how many there were in it."""

    began_at: float  # by the monotonic clock
    tries: int


class Throttle:
    """`most` tries within `seconds` of the first, each by whoever it is counted for."""

    def __init__(self, clock: Clock, *, most: int, seconds: float, what: str) -> None:
        self._clock = clock
        self._most = most
        self._seconds = seconds
        self._what = what
        self._tries: OrderedDict[str, _While] = OrderedDict()

    def take(self, who: str) -> None:
        """One try more. Raises Refused (`too_many_attempts`) where there were too many, and counts none then."""
        now = self._clock.monotonic()
        began_at, tries = self._tries.get(who, _While(now, 0))
        if now - began_at >= self._seconds:
            began_at, tries = now, 0
        if tries >= self._most:
            wait = max(1.0, began_at + self._seconds - now)
            raise Refused(f"too many {self._what}; wait", code="too_many_attempts", retry_after_seconds=wait)
        self._tries[who] = _While(began_at, tries + 1)
        self._tries.move_to_end(who)
        while len(self._tries) > _MAX_KNOWN:
            self._tries.popitem(last=False)

    def give_back(self, who: str) -> None:
        """The try that was taken came to something."""
        found = self._tries.get(who)
        if found is not None:
            self._tries[who] = found._replace(tries=max(0, found.tries - 1))
