"""Places of a pool that everybody shares, so that nobody takes them all.

Owns the count of one pool by who holds its places. Invariant: whoever holds more than a few has no more than are free; so
one alone gets half of the pool, several get equal parts, and there is always room for one who comes new.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

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
        self._held[holder] += 1
        try:
            yield
        finally:
            self._held[holder] -= 1
            if not self._held[holder]:
                del self._held[holder]
