"""Following a tenant's events, for every door: from now on, from the oldest that is kept, or from where one left off.

Owns the readers of this process and what old events come to. A reader holds a position and one page of rows, and nothing
waits for it in memory: a slow one reads later, one that falls behind `events.retention` is told that it missed something.
Invariant: a reader is given every event after its position that it may read, once and in order, or `events_gone`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from datetime import datetime

import structlog

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import Clock, Steadiness
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.tenant_events.rights import readable
from amplifier_api_server.tenants.errors import Gone, Refused, Unavailable
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.models import TenantEvent
from amplifier_api_server.tenants.repository import tenant_events

log = structlog.get_logger(__name__)

START = -1  # a position: before the oldest event that is kept
_PAGE = 100
_QUERY_SECONDS = 10.0
_LOOK_SECONDS = 1.0  # for what other processes wrote: the command line, a replica
_SILENCE_SECONDS = 60.0  # a reader looks by itself so often, whatever it was told
_FORGOTTEN_ROWS = 1000  # a pass; there is another one a second later
_FORGET_EVERY_SECONDS = 60.0


class Follower:
    """One reader, for one task. `end` may be called from anywhere, and again."""

    def __init__(self, followers: Followers, tenant_id: TenantId, position: int, types: Collection[str]) -> None:
        self.tenant_id = tenant_id
        self.position = position  # the number of the last event that it needs no more
        self._followers = followers
        self._types = frozenset(types)
        self._woken = asyncio.Event()
        self._woken.set()
        self._is_ending = False

    def wake(self) -> None:
        self._woken.set()

    def end(self) -> None:
        """Give what is there, then no more."""
        self._is_ending = True
        self._woken.set()

    async def next(self, timeout_seconds: float) -> list[TenantEvent] | None:
        """The next events; [] when none came for so long; None when there will be no more. Raises Gone, Unavailable."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._woken.wait()
        except TimeoutError:
            return []
        self._woken.clear()
        rows = await self._followers.read(self.tenant_id, self.position)
        if not rows:
            return None if self._is_ending else []
        self._woken.set()  # there may be more
        self.position = rows[-1].id or self.position
        return [one for one in rows if one.type in self._types]

    def close(self) -> None:
        """Give its place back."""
        self._followers.forget(self)


class Followers:
    """The readers of this process."""

    def __init__(self, *, settings: Settings, database: Database, clock: Clock) -> None:
        self._settings = settings.events
        self._database = database
        self._clock = clock
        self._by_tenant: defaultdict[TenantId, set[Follower]] = defaultdict(set)
        self._is_closed = False
        self._forgot_at: float | None = None
        self._steadiness = Steadiness(clock)
        database.on_told = self.tell

    async def open(
        self, principal: Principal, after: int | None = None, types: Collection[str] | None = None
    ) -> Follower:
        """A reader of what follows number `after`; of what happens from now on, for None; of all that is kept, for START.

        Raises Forbidden for a type that the caller may not read, Gone (`events_gone`) where some of it is not kept any
        more, Refused (`event_readers_exceeded`).
        """
        tenant_id, told = principal.tenant_id, readable(principal, types)
        readers = self._by_tenant[tenant_id]
        if len(readers) >= self._settings.max_readers:
            detail = f"{len(readers)} of {self._settings.max_readers} readers follow the tenant's events; close one"
            raise Refused(
                detail, code="event_readers_exceeded", limit="event_readers", limit_value=self._settings.max_readers
            )
        found = Follower(self, tenant_id, after or 0, told)
        readers.add(found)  # before anything is awaited: what is told meanwhile wakes it
        try:
            await self._place(found, after)
        except BaseException:
            self.forget(found)
            raise
        if self._is_closed:
            found.end()
        return found

    async def _place(self, follower: Follower, after: int | None) -> None:
        async with self._database.read(_QUERY_SECONDS) as db:
            if after == START:
                follower.position = await tenant_events.last_before(db, follower.tenant_id, self._oldest())
                return
            last = await tenant_events.last_of_all_tenants(db)
        if after is None:
            follower.position = last
        elif after > last:
            raise _gone()  # of a database that was put back: what it stood for is not there
        else:
            await self.read(follower.tenant_id, after)

    async def follow(
        self, principal: Principal, after: int | None = None, types: Collection[str] | None = None
    ) -> AsyncIterator[TenantEvent]:
        """The events of a reader that `open` makes, one by one, until the server stops. Close it when done."""
        follower = await self.open(principal, after, types)
        try:
            while (events := await follower.next(_SILENCE_SECONDS)) is not None:
                for event in events:
                    yield event
        finally:
            follower.close()

    async def read(self, tenant_id: TenantId, after: int) -> list[TenantEvent]:
        """A page of events. Raises Gone where its first one is past its time: others before it may be deleted.

        (The last one past its time is never deleted, so that who missed something meets it, and who did not never does.)
        """
        async with self._database.read(_QUERY_SECONDS) as db:
            rows = list(await tenant_events.page(db, tenant_id, after=after, limit=_PAGE))
        if rows and rows[0].created_at < self._oldest():
            raise _gone()
        return rows

    def _oldest(self) -> datetime:
        return self._clock.now() - self._settings.retention

    def forget(self, follower: Follower) -> None:
        """A reader is gone. Nothing to do for one that is not there."""
        readers = self._by_tenant.get(follower.tenant_id)
        if readers is not None:
            readers.discard(follower)
            if not readers:
                del self._by_tenant[follower.tenant_id]

    def tell(self, tenant_id: str) -> None:
        """There may be something new."""
        for one in self._by_tenant.get(TenantId(tenant_id), ()):
            one.wake()

    def close(self) -> None:
        """No more is going to happen: every reader ends with what is there."""
        self._is_closed = True
        for readers in self._by_tenant.values():
            for one in readers:
                one.end()

    async def run(self) -> None:
        """Look for what other processes wrote, for ever. A failure is logged, and the next look follows."""
        seen: int | None = None
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                seen = await self.look(seen)
            except Unavailable:
                pass  # the database has told it
            except Exception:
                log.exception("new events could not be looked for")

    async def look(self, seen: int | None) -> int | None:
        """Wake the readers of events after number `seen`; the last number there is."""
        if not self._by_tenant:
            return None
        async with self._database.read(_QUERY_SECONDS) as db:
            last = await tenant_events.last_of_all_tenants(db)
            told = await tenant_events.told_of_all_tenants(db, seen) if seen is not None and last > seen else set()
        if seen is None:  # there were no readers at the last look
            told = set(self._by_tenant)
        for tenant_id in told:
            self.tell(tenant_id)
        return last

    async def sweep(self) -> None:
        """Forget events that are older than `events.retention`, a batch at a time."""
        now = self._clock.monotonic()
        if self._forgot_at is not None and now - self._forgot_at < _FORGET_EVERY_SECONDS:
            return
        if not self._steadiness.is_given():
            return
        async with self._database.write() as db:
            count = await tenant_events.forget_of_all_tenants(db, self._oldest(), _FORGOTTEN_ROWS)
        if count < _FORGOTTEN_ROWS:  # else the next pass goes on
            self._forgot_at = now


def _gone() -> Gone:
    detail = "events after this one are not kept any more; begin with what is there (from=start), or with what comes"
    return Gone(detail, code="events_gone")
