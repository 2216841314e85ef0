"""What credentials are good for, remembered for a moment: the cache and the queue that every kind of credential has.

Owns how long a verdict is believed, and that look-ups which come together are one query, one at a time: a flood of invented
credentials costs the database one connection and pushes out no good one. Refuses to know what a credential is. Invariant:
what was read before a change was told (`forget`) is not remembered after it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import structlog

from amplifier_api_server.control_plane.auth.credentials import Verdict
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.tenants.errors import Unavailable

log = structlog.get_logger(__name__)

_MAX_KNOWN = 20_000  # that work: about 20 MB
_MAX_REFUSED = 4_000
_MAX_WAITING = 2_000  # look-ups; beyond it the service says that it is not available, instead of growing
_MAX_TOGETHER = 200  # in one query: below SQLite's and asyncpg's limits on parameters
_MAX_TRIES = 5
_LOOKUP_TIMEOUT_SECONDS = 10.0

K = TypeVar("K", bound=Hashable)
Read = Callable[[Sequence[K]], Awaitable[Mapping[K, Verdict]]]  # a verdict for each


@dataclass(slots=True)
class _Known:
    verdict: Verdict
    loaded_at: float  # by the monotonic clock, as `used_at`
    used_at: float


class Verdicts(Generic[K]):
    """Of one kind of credential, by what it is looked up by. One a process; `close` at its end."""

    def __init__(self, read: Read[K], clock: Clock, *, ttl_seconds: float) -> None:
        self._read_rows = read
        self._clock = clock
        self._ttl_seconds = ttl_seconds
        self._known: OrderedDict[K, _Known] = OrderedDict()  # the longest unloaded first
        self._refused: OrderedDict[K, _Known] = OrderedDict()
        self._waiting: dict[K, asyncio.Future[Verdict]] = {}
        self._lookups: asyncio.Task[None] | None = None
        self._changes = 0  # counts what was forgotten, so that an answer from before is not remembered after

    def remembered(self, key: K) -> Verdict | None:
        """What is believed of it now, without asking anybody."""
        known, now = self._known.get(key) or self._refused.get(key), self._clock.monotonic()
        if known is None or not 0 <= now - known.loaded_at < self._ttl_seconds:
            return None
        known.used_at = now
        return known.verdict

    async def of(self, key: K) -> Verdict:
        """What it is good for. Raises Unavailable."""
        return self.remembered(key) or await self._looked_up(key)

    async def again(self, keys: Sequence[K]) -> dict[K, Verdict]:
        """What they are good for as of now, whatever is remembered. Raises what the database raises."""
        found: dict[K, Verdict] = {}
        for start in range(0, len(keys), _MAX_TOGETHER):
            async with asyncio.timeout(_LOOKUP_TIMEOUT_SECONDS):
                found.update(await self._read(list(keys[start : start + _MAX_TOGETHER])))
        return found

    def forget(self, is_meant: Callable[[Principal], bool]) -> None:
        """Call after the commit that changed what these may do: the next request is looked up again."""
        self._changes += 1
        for key, known in list(self._known.items()):
            if known.verdict.principal is not None and is_meant(known.verdict.principal):
                del self._known[key]
        self._refused.clear()  # a tenant that is active again, a member who was made since

    async def close(self) -> None:
        """Let go of what is waiting."""
        if self._lookups is not None:
            self._lookups.cancel()
            await asyncio.gather(self._lookups, return_exceptions=True)

    async def _looked_up(self, key: K) -> Verdict:
        waiting = self._waiting.get(key)
        if waiting is None:
            # Strangers are refused, and not those who were let in a moment ago: else strangers could lock them out.
            if len(self._waiting) >= _MAX_WAITING and key not in self._known:
                raise Unavailable("too many callers are being looked up; try again", retry_after_seconds=1)
            waiting = self._waiting[key] = asyncio.get_running_loop().create_future()
            if self._lookups is None or self._lookups.done():
                self._lookups = asyncio.create_task(self._look_up())
        try:
            async with asyncio.timeout(_LOOKUP_TIMEOUT_SECONDS):
                return await asyncio.shield(waiting)  # shared with others: one caller's going away is not theirs
        except TimeoutError as error:
            raise Unavailable("the caller could not be looked up in time; try again", retry_after_seconds=1) from error

    async def _look_up(self) -> None:
        """Answer everything that waits, batch by batch, until nothing does."""
        while self._waiting:
            batch = list(islice(self._waiting, _MAX_TOGETHER))
            verdicts: Mapping[K, Verdict] = {}
            try:
                async with asyncio.timeout(_LOOKUP_TIMEOUT_SECONDS):
                    verdicts = await self._read([*batch, *self._worth_refreshing(_MAX_TOGETHER - len(batch))])
            except Exception:
                log.exception("callers could not be looked up", callers=len(batch))
            finally:
                for key in batch:
                    waiting = self._waiting.pop(key)
                    if waiting.done():
                        continue
                    if (verdict := verdicts.get(key)) is not None:
                        waiting.set_result(verdict)
                    else:
                        waiting.set_exception(Unavailable("the database does not answer", retry_after_seconds=1))
                        waiting.exception()  # seen: nobody may be left to wait for it

    async def _read(self, keys: Sequence[K]) -> Mapping[K, Verdict]:
        """Verdicts of `keys`, remembered."""
        for _ in range(_MAX_TRIES):
            changes, now = self._changes, self._clock.monotonic()
            verdicts = await self._read_rows(keys)
            if changes == self._changes:
                break
        if changes == self._changes:
            for key, verdict in verdicts.items():
                self._remember(key, verdict, now)
        return verdicts

    def _remember(self, key: K, verdict: Verdict, now: float) -> None:
        kind, other, most = self._known, self._refused, _MAX_KNOWN
        if verdict.principal is None:
            kind, other, most = other, kind, _MAX_REFUSED
        other.pop(key, None)
        kind[key] = _Known(verdict, loaded_at=now, used_at=now - 1e-6)
        kind.move_to_end(key)
        while len(kind) > most:
            kind.popitem(last=False)

    def _worth_refreshing(self, most: int) -> list[K]:
        """Known ones that were used since they were loaded and will be looked up again soon; the unused are dropped.

        A thousand busy callers are thus a few queries a second, not a thousand.
        """
        found: list[K] = []
        before = self._clock.monotonic() - self._ttl_seconds / 2
        for key in list(islice(self._known, most)):
            known = self._known[key]
            if known.loaded_at > before:
                break
            if key in self._waiting:
                continue
            if known.used_at > known.loaded_at:
                found.append(key)
            else:
                del self._known[key]
        return found
