"""How fast something is taken from one peer: a bucket of tokens that fills with time.

Owns no timer and refuses nothing: it says how long to wait, and its owner waits or gives up. Time is monotonic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

_MESSAGE_BYTES: Final = 16 * 1024  # a larger message takes as long to read as several


def weight_of(message: str) -> float:
    """As how many messages one counts."""
    return 1 + len(message) / _MESSAGE_BYTES


class Pace:
    """One for each thing that is paced: at most `burst` at once, by default a second's worth."""

    def __init__(self, per_second: float, burst: float | None = None, now: Callable[[], float] = monotonic) -> None:
        self._per_second = per_second
        self._burst = per_second if burst is None else burst
        self._now = now
        self._left = self._burst
        self._at = now()

    def wait_seconds(self, weight: float = 1) -> float:
        """Take this much; after how many seconds it may be used."""
        now = self._now()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second) - weight
        self._at = now
        return max(0.0, -self._left / self._per_second)

    async def take(self, weight: float = 1) -> None:
        """Returns when this much may be taken."""
        if seconds := self.wait_seconds(weight):
            await asyncio.sleep(seconds)
