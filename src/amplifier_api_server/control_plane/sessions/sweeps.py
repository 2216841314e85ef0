"""What time does to sessions: idle ones are suspended, aged ones closed, leases of what lives are renewed.

Each sweep takes a bounded number of rows, and one bad row never keeps the others from their turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta

import structlog

from amplifier_api_server.control_plane.clock import Clock, Steadiness
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.limits.admission import Admission
from amplifier_api_server.control_plane.pods.fleet import Fleet
from amplifier_api_server.control_plane.sessions.endings import Endings
from amplifier_api_server.control_plane.sessions.live import LiveTurns
from amplifier_api_server.control_plane.sessions.residency import Residency
from amplifier_api_server.control_plane.sessions.service import Sessions
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.ids import SessionId, TenantId
from amplifier_api_server.tenants.models import Session
from amplifier_api_server.tenants.repository import runtimes, sessions

log = structlog.get_logger(__name__)

_KEEP_GONE = timedelta(days=1)
_LEFT_AFTER = timedelta(minutes=1)  # longer than from a session's row to its turn's, and than an end is read for
_FORGET_EVERY_SECONDS = 600.0
_ROWS = 100  # a pass; there is another one a second later
_AT_ONCE = 16  # each may wait for a sandbox that does not answer


async def _each(rows: Iterable[Session], work: Callable[[Session], Awaitable[None]]) -> None:
    """Do it for every row, a few at once."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(row: Session) -> None:
        async with places:
            try:
                await work(row)
            except Exception:
                log.exception("a session could not be swept", session_id=row.id)

    await asyncio.gather(*(one(row) for row in rows))


class Sweeps:
    """The reconciler runs these after each pass."""

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        sessions: Sessions,
        residency: Residency,
        live: LiveTurns,
        endings: Endings,
        fleet: Fleet,
        admission: Admission,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._database = database
        self._sessions = sessions
        self._residency = residency
        self._live = live
        self._endings = endings
        self._fleet = fleet
        self._admission = admission
        self._clock = clock
        self._steadiness = Steadiness(clock)
        self._followed_at: float | None = None  # when the clock was set that the rows' times follow
        self._renewed_at = clock.monotonic()
        self._forgot_at: float | None = None

    async def suspend_idle(self) -> None:
        """Suspend sessions that nobody used for `sessions.idle_timeout`, or their tier's."""

        async def suspend(row: Session) -> None:
            await self._residency.suspend(TenantId(row.tenant_id), SessionId(row.id))

        await _each(await self._older("idle_timeout", sessions.idle_of_all_tenants), suspend)

    async def _older(self, name: str, query: Callable[..., Awaitable[list[Session]]]) -> list[Session]:
        """Sessions past the time that the setting `name` gives, by tier."""
        settings, now = self._settings.sessions, self._clock.now()
        own = {tier: getattr(times, name) for tier, times in settings.tiers.items() if getattr(times, name) is not None}
        found = []
        async with self._database.read() as db:
            for tier, time in [(None, getattr(settings, name)), *own.items()]:
                found += await query(db, before=now - time, limit=_ROWS, tier=tier, others=tuple(own))
        return found

    async def close_aged(self) -> None:
        """Close sessions older than `sessions.max_duration`, or their tier's."""
        if not self._steadiness.is_given():
            await self._follow_clock()
            return

        async def close(row: Session) -> None:
            await self._sessions.close(TenantId(row.tenant_id), SessionId(row.id), "system")
            log.info("session closed by age", session_id=row.id)

        await _each(await self._older("max_duration", sessions.aged_of_all_tenants), close)

    async def _follow_clock(self) -> None:
        """Where the clock was set back, what was used last in what is now the future was used last now: or it would not be
        idle until then.
        """
        if self._followed_at != self._steadiness.set_at:
            self._followed_at = self._steadiness.set_at
            async with self._database.write() as db:
                await sessions.follow_clock_of_all_tenants(db, self._clock.now())

    async def close_left(self) -> None:
        """Close and clear away the sessions of single executions that were left: the server ended, or it failed then."""
        if not self._steadiness.is_given():
            return
        async with self._database.read() as db:
            found = await sessions.uncleared_of_all_tenants(db, before=self._clock.now() - _LEFT_AFTER, limit=_ROWS)

        async def clear(row: Session) -> None:
            tenant_id, session_id = TenantId(row.tenant_id), SessionId(row.id)
            await self._sessions.close(tenant_id, session_id, "system")
            await self._sessions.clear(tenant_id, session_id)

        await _each(found, clear)

    async def free_deleted(self) -> None:
        """Close the sessions of tenants that were deleted, by whichever process: their files go, and their trees."""
        async with self._database.read() as db:
            found = await sessions.of_deleted_of_all_tenants(db, limit=_ROWS)
        if not found:
            return

        async def close(row: Session) -> None:
            await self._sessions.close(TenantId(row.tenant_id), SessionId(row.id), "system")

        await _each(found, close)

    async def forget_gone_runtimes(self) -> None:
        """Delete the rows of runtimes that ended a day ago: the log has told all there was to say."""
        now = self._clock.monotonic()
        if self._forgot_at is not None and now - self._forgot_at < _FORGET_EVERY_SECONDS:
            return
        self._forgot_at = now
        async with self._database.write() as db:
            await runtimes.forget_gone_of_all_tenants(db, self._clock.now() - _KEEP_GONE)

    async def end_overdue_turns(self) -> None:
        await self._endings.sweep()

    async def empty_draining(self) -> None:
        """Take the sessions without a running turn out of runtimes that drain; the others follow at their turn's end."""
        for runtime_id in await self._fleet.draining():
            tenant_id = self._fleet.tenants.get(runtime_id)
            for session_id in list(self._fleet.sessions.get(runtime_id, {})):
                if tenant_id is not None:
                    try:
                        await self._residency.suspend(tenant_id, session_id)
                    except Exception:
                        log.exception("a session could not be taken out of a draining runtime", session_id=session_id)

    async def renew_leases(self) -> None:
        """Renew what is held by what lives; the rest expires by itself."""
        now = self._clock.monotonic()
        if (now - self._renewed_at) * 3 < self._settings.rate_limiting.lease_ttl.total_seconds():
            return
        self._renewed_at = now
        active = [
            (tenant_id, member_id, session_id)
            for runtime_id, tenant_id in list(self._fleet.tenants.items())
            for session_id, member_id in list(self._fleet.sessions.get(runtime_id, {}).items())
        ]
        await self._admission.renew(
            active=active,
            turns=[(turn.tenant_id, turn.id) for turn in self._live.all()],
            sandboxes=[(tenant_id, runtime_id) for runtime_id, tenant_id in self._fleet.tenants.items()],
        )

    def all(self) -> list[Callable[[], Awaitable[None]]]:
        return [
            self.suspend_idle,
            self.close_aged,
            self.close_left,
            self.free_deleted,
            self.end_overdue_turns,
            self.empty_draining,
            self.renew_leases,
            self.forget_gone_runtimes,
        ]
