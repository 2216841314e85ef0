"""Asking an identity provider for a document that is kept: one fetch at a time, for all who wait for it.

Owns when it is asked again: not while a fetch runs, and not within the cooldown of the last one, whether that failed or not.
So what anybody can have us ask for costs the provider one request each `COOLDOWN_SECONDS`. Refuses to know what is fetched,
and from whom.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Final

from amplifier_api_server.control_plane.clock import Clock

COOLDOWN_SECONDS: Final = 10.0


class Fetching:
    """`fetch` keeps what it finds and says whether it found any; it raises nothing. `close` at the end."""

    def __init__(self, fetch: Callable[[], Awaitable[bool]], clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def age_seconds(self) -> float:
        """Since it was fetched last; infinite where it never was."""
        return math.inf if self._fetched_at is None else self._clock.monotonic() - self._fetched_at

    def begin(self) -> bool:
        """Have a fetch run, unless it was tried a moment ago; whether one runs."""
        if self._running is not None and not self._running.done():
            return True
        now = self._clock.monotonic()
        if self._tried_at is not None and now - self._tried_at < COOLDOWN_SECONDS:
            return False
        self._tried_at = now
        self._running = asyncio.get_running_loop().create_task(self._run())
        return True

    async def finished(self) -> None:
        """Wait for the fetch that runs, or that is begun for it; not at all within the cooldown."""
        if self.begin() and self._running is not None:
            await asyncio.wait([self._running])  # shared with others: one caller's going away is not theirs

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        if await self._fetch():
            self._fetched_at = self._clock.monotonic()
