"""Forgetting logins and waiting devices that are over."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

import structlog

from amplifier_api_server.control_plane.clock import Clock, Steadiness
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.tenants.repository import device_grants, logins

log = structlog.get_logger(__name__)

_EVERY_SECONDS: Final = 600.0
_KEEP_LOGINS: Final = timedelta(days=7)  # that ended: where from somebody was logged in can still be told
_KEEP_GRANTS: Final = timedelta(minutes=30)  # a device that polls late is told that it is late
_ROWS: Final = 1000
_SECONDS: Final = 10.0


class LoginSweep:
    """The reconciler runs it after each pass; it does something about every ten minutes."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._steadiness = Steadiness(clock)
        self._swept_at: float | None = None

    async def sweep(self) -> None:
        """A bounded number of rows; there is another time."""
        passed, now = self._clock.monotonic(), self._clock.now()
        if self._swept_at is not None and passed - self._swept_at < _EVERY_SECONDS:
            return
        if not self._steadiness.is_given():
            return
        async with asyncio.timeout(_SECONDS), self._database.write() as db:
            over = await logins.delete_over_of_all_tenants(db, now - _KEEP_LOGINS, _ROWS)
            late = await device_grants.delete_over_of_all_tenants(db, now - _KEEP_GRANTS, _ROWS)
        if over < _ROWS and late < _ROWS:  # else the next pass goes on
            self._swept_at = passed
        if over or late:
            log.info("logins that are over were forgotten", logins=over, devices=late)
