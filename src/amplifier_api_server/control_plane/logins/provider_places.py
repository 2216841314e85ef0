"""Who may wait for a login provider at once. Anybody can have us ask one, so nobody gets all the places.

Owns the shares: each provider has places of its own, so that one that stalls holds up its own logins alone; and of these a
network of clients gets a few, of the last ones a single one. In this process's memory, and as large as what is under way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from amplifier_api_server.tenants.errors import Unavailable

OF_A_PROVIDER: Final = 64
OF_A_NETWORK: Final = 8
KEPT_FOR_NEWCOMERS: Final = 16  # of a provider's places: for networks that have none


class ProviderPlaces:
    """One a process."""

    def __init__(self) -> None:
        self._held: dict[str, Counter[str]] = {}

    @contextmanager
    def taken(self, provider: str, network: str) -> Iterator[None]:
        """A place for as long as the block goes on. Raises Unavailable (`busy`)."""
        held = self._held.setdefault(provider, Counter())
        total = held.total()
        share = OF_A_NETWORK if total < OF_A_PROVIDER - KEPT_FOR_NEWCOMERS else 1
        if total >= OF_A_PROVIDER or held[network] >= share:
            raise Unavailable("too many people are logging in; try again", code="busy", retry_after_seconds=1)
        held[network] += 1
        try:
            yield
        finally:
            held[network] -= 1
            if not held[network]:
                del held[network]
