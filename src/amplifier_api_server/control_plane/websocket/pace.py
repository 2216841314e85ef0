"""How fast a connection's messages are taken: a bucket of tokens that fills with time, one second's worth deep."""

from __future__ import annotations

import asyncio


class Pace:
    """One for a connection."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._left = float(per_second)
        self._at = asyncio.get_running_loop().time()

    async def take(self) -> None:
        """Returns when one more may be taken."""
        now = asyncio.get_running_loop().time()
        self._left = min(self._per_second, self._left + (now - self._at) * self._per_second)
        self._at = now
        self._left -= 1
        if self._left < 0:
            await asyncio.sleep(-self._left / self._per_second)
