"""Which begun logins have been taken to their provider: each is once, however often its cookie and answer are sent again.

Bounded: with the most remembered, the oldest of the network that has most of them is forgotten, so that nobody pushes out
another's. What was begun is good for `LIFETIME`, so nothing needs to be known for longer.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Final

from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.logins.begun import LIFETIME

_MAX_KNOWN: Final = 20_000


class UsedStates:
    """One a process."""

    def __init__(self, clock: Clock, *, most: int = _MAX_KNOWN) -> None:
        self._clock = clock
        self._most = most
        self._used: OrderedDict[str, tuple[str, float]] = (
            OrderedDict()
        )  # state -> by whom, and until when; oldest first
        self._of_network: Counter[str] = Counter()

    def use(self, state: str, network: str) -> bool:
        """Whether this is its first use. From now on there was one."""
        now = self._clock.monotonic()
        while self._used and next(iter(self._used.values()))[1] <= now:
            self._forget(next(iter(self._used)))
        if state in self._used:
            return False
        if len(self._used) >= self._most:
            self._forget(self._oldest_of_the_fullest())
        self._used[state] = network, now + LIFETIME.total_seconds()
        self._of_network[network] += 1
        return True

    def _oldest_of_the_fullest(self) -> str:
        ((fullest, _),) = self._of_network.most_common(1)
        return next(state for state, (network, _) in self._used.items() if network == fullest)

    def _forget(self, state: str) -> None:
        network, _ = self._used.pop(state)
        self._of_network[network] -= 1
        if not self._of_network[network]:
            del self._of_network[network]
