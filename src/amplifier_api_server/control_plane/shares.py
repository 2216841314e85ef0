"""Places of a pool that everybody shares, so that nobody takes them all.

Owns the count of one pool by who holds its places. Invariant: whoever holds more than a few has no more than are free; so
one alone gets half of the pool, several get equal parts, and there is always room for one who comes new.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from amplifier_api_server.tenants.errors import Unavailable

_FEW = 2  # places that everybody may have while there are any


def share_of(free: int) -> int:
    """How many places one may hold, with one more than now, where so many are free."""
    return max(_FEW, free) if free > 0 else 0


class Shares:
    """The places."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._held: Counter[str] = Counter()

    @property
    def free(self) -> int:
        return self._total - self._held.total()

    def has_room(self, holder: str) -> bool:
        return self._held[holder] < share_of(self.free)

    @contextmanager
    def place(self, holder: str) -> Iterator[None]:
        """One place, for as long as the block lasts. Ask `has_room` before, in the same step."""
        self._take(holder)
        try:
            yield
        finally:
            self._give_back(holder)

    def _take(self, holder: str) -> None:
        self._held[holder] += 1

    def _give_back(self, holder: str) -> None:
        self._held[holder] -= 1
        if not self._held[holder]:
            del self._held[holder]


class WaitingShares(Shares):
    """Places that are waited for: holders take turns, each with its own in order."""

    def __init__(self, total: int, most_of_one: int, wait_seconds: float) -> None:
        super().__init__(total)
        self._most_of_one = most_of_one
        self._wait_seconds = wait_seconds
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    def has_room(self, holder: str) -> bool:
        return self._held[holder] < self._most_of_one and super().has_room(holder)

    @asynccontextmanager
    async def turn(self, holder: str) -> AsyncIterator[None]:
        """One place, for as long as the block lasts. Raises Unavailable where there is none within `wait_seconds`."""
        if holder not in self._waiting and self.has_room(holder):
            self._take(holder)
        else:
            await self._wait(holder)
        try:
            yield
        finally:
            self._give_back(holder)

    async def _wait(self, holder: str) -> None:
        given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(holder, deque()).append(given)
        try:
            async with asyncio.timeout(self._wait_seconds):
                await given
        except BaseException as error:
            if given.done() and not given.cancelled():  # it was given in the same turn of the loop
                self._give_back(holder)
            else:
                self._leave(holder, given)
            if isinstance(error, TimeoutError):
                raise Unavailable("too many of your requests wait for one another; try again") from error
            raise

    def _leave(self, holder: str, given: asyncio.Future[None]) -> None:
        queue = self._waiting.get(holder, deque())
        if given in queue:  # else its turn came first, and passed it over
            queue.remove(given)
            if not queue:
                del self._waiting[holder]

    def _give_back(self, holder: str) -> None:
        super()._give_back(holder)
        while (following := next(filter(self.has_room, self._waiting), None)) is not None:
            queue = self._waiting.pop(following)
            given = queue.popleft()
            if queue:
                self._waiting[following] = queue
            if not given.done():  # else it was cancelled, and is about to leave
                self._take(following)
                given.set_result(None)
