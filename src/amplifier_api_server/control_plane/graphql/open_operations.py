"""How many sockets and streams one credential has open, and how many operations on them. Bounded, and given back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.tenants.errors import Refused


class OpenOperations:
    """Of this process."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: Counter[str] = Counter()

    @contextmanager
    def one(self, principal: Principal) -> Iterator[None]:
        """One more, for as long as the block lasts. Raises Refused (`too_many_subscriptions`)."""
        owner = str(principal.credential_id)
        if self._open[owner] >= self._limit:
            raise Refused(
                f"this credential has {self._limit} sockets and subscriptions open; end one",
                code="too_many_subscriptions",
                limit="max_subscriptions_per_credential",
            )
        self._open[owner] += 1
        try:
            yield
        finally:
            self._open[owner] -= 1
            if self._open[owner] <= 0:
                del self._open[owner]

    def __len__(self) -> int:
        return self._open.total()
