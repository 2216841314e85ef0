"""Trying again, and leaving a provider alone: when, and for how long.

Owns the arithmetic of retries and the state of each provider's circuit breaker. Refuses to know what a failure is: the
caller says so, and says it only of the provider's own trouble (it can't be reached, it is silent, it answers 5xx), never of
a request's or of a key's. Pure: time and chance come in. Invariant: of a provider that is left alone, one call at a time
finds out whether it is back.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal, Protocol

_BASE_SECONDS = 0.5  # the first retry comes within this, the next one within twice as much
_LONGEST_SECONDS = 8.0


class RetrySettings(Protocol):
    """What of `settings.Models` counts here."""

    @property
    def retries(self) -> int: ...
    @property
    def retry_max_delay(self) -> timedelta: ...


def retry_delay_seconds(
    attempt: int,
    retry_after_seconds: float | None,
    *,
    settings: RetrySettings,
    chance: Callable[[], float] = random.random,
) -> float | None:
    """How long to wait after attempt number `attempt` (the first is 1) has failed; None: try this target no more.

    Exponential with full jitter: anything from 0 to 0.5 s, 1 s, 2 s, ... 8 s. What the provider asked for by Retry-After is
    waited for in full, and the jitter comes on top, so that those who were sent away together don't come back together.
    None when that would be longer than `retry_max_delay`, or when there were `retries` already.
    """
    if attempt > settings.retries:
        return None
    longest = settings.retry_max_delay.total_seconds()
    asked = max(0.0, retry_after_seconds or 0.0)
    if asked > longest:
        return None
    jitter = chance() * min(_LONGEST_SECONDS, _BASE_SECONDS * 2.0 ** min(attempt - 1, 16))
    return min(asked + jitter, longest)


State = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, slots=True)
class Circuit:
    """One provider's breaker: who failed in a row, whom it answered last, until when it is left alone."""

    failures: int = 0
    failing: frozenset[str] = frozenset()  # whose calls these were; two of them are enough to know
    answered: tuple[tuple[str, float], ...] = ()  # the latest two whom it answered, and when; the latest first
    opens_at: float | None = None  # when one call may try it; None: it is closed
    trial_ends_at: float | None = None  # a call tries it, and has so long to say how it went

    def state(self, now: float) -> State:
        if self.opens_at is None:
            return "closed"
        return "open" if now < self.opens_at else "half_open"


@dataclass(frozen=True, slots=True)
class Policy:
    """When to stop, and for how long. `trial_seconds`: a call that tries may take this long before another one may."""

    failures: int
    open_seconds: float
    trial_seconds: float


def asked(circuit: Circuit, now: float, policy: Policy) -> tuple[bool, Circuit]:
    """Whether a call may go out now, and the breaker after that."""
    match circuit.state(now):
        case "closed":
            return True, circuit
        case "open":
            return False, circuit
        case _:
            if circuit.trial_ends_at is not None and now < circuit.trial_ends_at:
                return False, circuit
            return True, replace(circuit, trial_ends_at=now + policy.trial_seconds)


def after_failure(circuit: Circuit, now: float, policy: Policy, who: str) -> Circuit:
    """One more in a row. While it is open, what calls that had begun before tell changes nothing.

    One tenant's failures alone say nothing of the provider while it answers others: that tenant may well know how to make it
    fail, and must not take it from everybody.
    """
    state = circuit.state(now)
    if state == "open":
        return circuit
    failing = circuit.failing if len(circuit.failing) > 1 else circuit.failing | {who}
    failed = Circuit(circuit.failures + 1, failing, circuit.answered)
    if state == "closed" and failed.failures < policy.failures:
        return failed
    answers_others = any(other != who and now - at < policy.open_seconds for other, at in circuit.answered)
    if state == "closed" and len(failing) == 1 and answers_others:
        return failed
    return replace(failed, opens_at=now + policy.open_seconds)


def after_success(circuit: Circuit, now: float, who: str) -> Circuit:
    """Whatever was before is forgotten, but whom it answered."""
    others = tuple(one for one in circuit.answered if one[0] != who)
    return Circuit(answered=((who, now), *others[:1]))


class Breakers:
    """A breaker for each provider, by its name. Every call that `allows` let through says how it went, by `succeeded`,
    `failed` or, where that tells nothing of the provider, `released`. `who`: the tenant whose call it was.
    """

    def __init__(
        self,
        failures: int,
        open_seconds: float,
        *,
        trial_seconds: float = 60.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = Policy(failures, open_seconds, trial_seconds)
        self._now = now
        self._circuits: dict[str, Circuit] = {}

    def allows(self, name: str) -> bool:
        """Whether a call may go to this provider now. Of one that was left alone for long enough: to the first who asks."""
        may, self._circuits[name] = asked(self._circuits.get(name, Circuit()), self._now(), self._policy)
        return may

    def succeeded(self, name: str, who: str = "") -> None:
        """It answered."""
        self._circuits[name] = after_success(self._circuits.get(name, Circuit()), self._now(), who)

    def failed(self, name: str, who: str = "") -> bool:
        """It did not. True: it is left alone from now on, and was not before."""
        now, circuit = self._now(), self._circuits.get(name, Circuit())
        following = self._circuits[name] = after_failure(circuit, now, self._policy, who)
        return following.state(now) == "open" and circuit.state(now) != "open"

    def released(self, name: str) -> None:
        """The call ended and nothing is known of the provider by it: another one may try."""
        circuit = self._circuits.get(name)
        if circuit is not None and circuit.trial_ends_at is not None:
            self._circuits[name] = replace(circuit, trial_ends_at=None)

    def state(self, name: str) -> State:
        return self._circuits.get(name, Circuit()).state(self._now())

    def retry_after_seconds(self, name: str) -> float | None:
        """How long it is still left alone; None where it isn't."""
        circuit = self._circuits.get(name)
        if circuit is None or circuit.opens_at is None:
            return None
        return max(0.0, circuit.opens_at - self._now())
