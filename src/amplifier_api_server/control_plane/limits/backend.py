"""Where limits are counted: one small protocol, with a suite that every backend passes.

A backend takes every want of a request or none, in one step (in Redis: one script over keys of one `{tenant}` slot).
It knows numbers and keys, not tiers, HTTP or why. Units are whole requests, whole tokens, whole sessions. The backend's
own clock alone decides (the memory backend's is injected): leases and rates pass by a clock that nobody sets, days are the
wall clock's, and what is told is in seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Rate:
    """One request of `limit` a `period_seconds`, by GCRA with a burst of `limit`."""

    key: str
    name: str  # the limit's name in tiers.Limits: it is what a refusal says
    limit: int | None  # None passes, and counts nothing
    period_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Held:
    """A place among `limit` for `holder`, until released, or until `ttl_seconds` pass without a renewal (None: never).

    Taking a place that the holder has already renews it and is no second one.
    """

    key: str
    name: str
    limit: int | None  # None counts without a limit
    holder: str
    ttl_seconds: float | None


@dataclass(frozen=True, slots=True)
class Budget:
    """A reservation of up to `amount` of what is left of `limit` in the UTC day, refused when less than `at_least` is
    left.

    It expires after `ttl_seconds` without renewal: what it held is then free again. `settle` turns it into spending.
    """

    key: str
    name: str
    limit: int | None  # None counts without a limit
    holder: str
    amount: int
    at_least: int
    ttl_seconds: float


Want = Rate | Held | Budget


@dataclass(frozen=True, slots=True)
class Standing:
    """How one limit stands now, for headers and explanations."""

    name: str
    limit: int | None
    used: int  # requests counted against the burst, tokens spent today, places taken
    reserved: int  # tokens held by running turns; 0 for others
    remaining: int | None  # None for unlimited
    resets_at: (
        float  # a rate: when its burst is whole again; a budget: the UTC midnight; places: the first expiry, or inf
    )
    holders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Granted:
    standings: tuple[Standing, ...]  # one for each want, in order
    amounts: Mapping[str, int]  # what each Budget's holder got


@dataclass(frozen=True, slots=True)
class Denied:
    name: str  # of the first limit that said no
    standings: tuple[Standing, ...]  # of all wants, unchanged by this call
    retry_after_seconds: float | None  # None: time alone won't help


class LimitsBackend(Protocol):
    """Where limits are counted. Every method is atomic and safe to call again."""

    async def take(self, wants: Sequence[Want]) -> Granted | Denied:
        """Everything or nothing. The wants of one call have different keys."""

    async def refund(self, rate: Rate) -> None:
        """Take back one request that was counted: it counts as if it had never come."""

    async def release(self, key: str, holder: str) -> None:
        """Give a place back; nothing when it is not held."""

    async def renew(self, key: str, holder: str, ttl_seconds: float) -> bool:
        """Hold a place or a reservation for `ttl_seconds` more; False when it had expired (it is not taken anew)."""

    async def extend(self, budget: Budget) -> int:
        """Add up to `budget.amount` to the holder's reservation; what was added, 0 when nothing is left."""

    async def give_back(self, key: str, holder: str, amount: int) -> None:
        """Lower the holder's reservation by `amount`; nothing where it holds none."""

    async def settle(self, key: str, holder: str, spent: int) -> None:
        """End the reservation and count `spent`, once: a second settle of the same holder changes nothing.

        Counts even where the reservation expired before: what was used was used. The day that counts is that of the
        reservation's beginning. Settled holders are remembered for a day. A holder that never reserved here
        (the backend lost its memory) changes nothing: the ledger is written first, and the next `seed` reads it.
        """

    async def seed(self, key: str, load: Callable[[], Awaitable[int | Sequence[str]]]) -> None:
        """Fill a budget's spending of today (int) or a Held's holders without expiry (strings) from the record, if that
        is unknown here.

        The first caller loads, others wait for it; a failed load leaves it unknown and raises.
        """

    async def standing(self, want: Want) -> Standing:
        """How it stands, taking nothing."""

    async def snapshot(self) -> Mapping[str, int]:
        """Leases and reservations held now, by limit name: for metrics and for tests that nothing leaked."""
