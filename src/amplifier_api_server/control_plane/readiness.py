"""What fails in this server now, part by part: what `/ready` answers, and what the log and the metrics tell of it.

Owns the parts' states, which the parts tell: `failing` at every failure, `works` when that is over. Refuses to know what a
part is. Invariants: a failure is logged when it begins, once more for every other kind that shows until it is over, and when
it is over, however often it happens; what is kept is bounded; a cause is for everybody to read, so it names no tenant, no key
and nothing that a caller sent.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from types import MappingProxyType

import structlog

from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.telemetry import Telemetry
from amplifier_api_server.tenants.errors import DomainError

log = structlog.get_logger(__name__)

_CAUSE_CHARS = 300
_MOST_KINDS = 16  # of one failure that are logged; then it is told by its count alone
_VARIES = re.compile(r"\b[a-z]+_[0-9A-Za-z]{16,}|\d+")
_JITTER = 0.25  # of a pause, so that what failed together is not tried together


@dataclass(slots=True)
class Failing:
    """A part that does not work, since its last time that it did."""

    cause: str
    since: datetime
    began_at: float  # the same, by the monotonic clock
    is_blocking: bool  # the server is not ready for it
    failures: int = 0
    kinds: set[str] = field(default_factory=set)


class Readiness:
    """Every part that fails. Parts are named by words of ours: they are labels of a metric."""

    def __init__(self, telemetry: Telemetry, clock: Clock) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._failing: dict[str, Failing] = {}

    @property
    def failing_parts(self) -> Mapping[str, Failing]:
        return MappingProxyType(self._failing)

    def failing(self, part: str, cause: str, *, is_blocking: bool = False, error: BaseException | None = None) -> None:
        """The part failed, once more. `error`, a mistake of this software, is logged with its traceback.

        Causes that differ in ids and figures alone are of one kind.
        """
        found = self._failing.get(part)
        if found is None:
            found = self._failing[part] = Failing(cause, self._clock.now(), self._clock.monotonic(), is_blocking)
            self._telemetry.failing.labels(part).set(1)
        found.cause = cause[:_CAUSE_CHARS]
        found.is_blocking = is_blocking
        found.failures += 1
        self._telemetry.failures.labels(part).inc()
        kind = _VARIES.sub("#", found.cause)
        if kind not in found.kinds and len(found.kinds) < _MOST_KINDS:
            found.kinds.add(kind)
            log.error("a part of the server fails", part=part, cause=found.cause, exc_info=error)

    def works(self, part: str) -> None:
        """The part did what it should. Cheap to call each time."""
        found = self._failing.pop(part, None)
        if found is not None:
            self._telemetry.failing.labels(part).set(0)
            seconds = self._clock.monotonic() - found.began_at
            log.info("a part of the server works again", part=part, failures=found.failures, seconds=round(seconds, 1))


class Backoff:
    """How long what fails again and again is left alone: twice as long after each failure, up to a bound."""

    def __init__(
        self,
        first_seconds: float,
        longest_seconds: float,
        *,
        now: Callable[[], float] = monotonic,
        share: Callable[[], float] = random.random,
    ) -> None:
        self._first_seconds = first_seconds
        self._longest_seconds = longest_seconds
        self._now = now
        self._share = share
        self._pause_seconds = 0.0
        self._until = 0.0

    @property
    def wait_seconds(self) -> float:
        """Until it should be tried again; 0 when it may be now."""
        return max(0.0, self._until - self._now()) if self._pause_seconds else 0.0

    def failed(self) -> None:
        """It failed. Another try that was under way at the last failure lengthens no pause."""
        if not self.wait_seconds:
            self._pause_seconds = min(self._longest_seconds, self._pause_seconds * 2 or self._first_seconds)
            self._until = self._now() + self._pause_seconds * (1 - _JITTER * self._share())

    def worked(self) -> None:
        self._pause_seconds = 0.0


class Retries:
    """Things of one kind, each of which is tried again by itself: together they are one part of the server."""

    def __init__(self, readiness: Readiness, part: str, make_backoff: Callable[[], Backoff]) -> None:
        self._readiness = readiness
        self._part = part
        self._make_backoff = make_backoff
        self._failing: dict[str, Backoff] = {}

    def may_try(self, name: str) -> bool:
        found = self._failing.get(name)
        return found is None or not found.wait_seconds

    def failed(self, name: str, what: str, error: Exception) -> None:
        """`what` failed with `error`: of the server's surroundings, or a mistake of this software."""
        self._failing.setdefault(name, self._make_backoff()).failed()
        known = isinstance(error, DomainError | OSError)  # TimeoutError is an OSError
        self._readiness.failing(self._part, f"{what}: {told(error)}", error=None if known else error)

    def worked(self, name: str) -> None:
        if self._failing.pop(name, None) is not None and not self._failing:
            self._readiness.works(self._part)

    def keep(self, names: Container[str]) -> None:
        """Forget those that are not there any more."""
        for name in [one for one in self._failing if one not in names]:
            self.worked(name)


def told(error: BaseException) -> str:
    """An error in words: many of the system's have none but their kind."""
    return (error.detail if isinstance(error, DomainError) else str(error)) or type(error).__name__
