"""API keys: what each is good for, and when it was used last."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice

import structlog
from sqlalchemy.exc import SQLAlchemyError

from amplifier_api_server.control_plane.auth.credentials import Verdict, judge
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.auth.verdicts import Verdicts
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import Unavailable
from amplifier_api_server.tenants.repository import keys

log = structlog.get_logger(__name__)

_WRITE_LAST_USED_SECONDS = 60.0
_WRITTEN_TOGETHER = 500
_WRITE_TIMEOUT_SECONDS = 10.0


class KnownKeys:
    """One a process; `run` beside the server, `close` at its end."""

    def __init__(self, database: Database, settings: Settings, clock: Clock) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._used: dict[str, float] = {}
        self.verdicts: Verdicts[bytes] = Verdicts(
            self._read, clock, ttl_seconds=settings.auth.cache_ttl.total_seconds()
        )

    async def principal_of(self, digest: bytes) -> Principal:
        """Whose key it is. Raises Unauthenticated, Forbidden, Unavailable."""
        now = self._clock.now().timestamp()
        verdict = self.verdicts.remembered(digest) or await self.verdicts.of(digest)
        principal = verdict.admit(now)
        self._used[principal.credential_id] = now
        return principal

    async def run(self) -> None:
        """Write down, about once a minute and for ever, when keys were used last."""
        while True:
            await asyncio.sleep(_WRITE_LAST_USED_SECONDS)
            await self.write_last_used()

    async def write_last_used(self) -> None:
        """Write down what was used since the last time. A failure costs that, is logged, and stops nothing."""
        used, self._used = self._used, {}
        items = iter(used.items())
        while batch := {key_id: datetime.fromtimestamp(at, UTC) for key_id, at in islice(items, _WRITTEN_TOGETHER)}:
            try:
                async with asyncio.timeout(_WRITE_TIMEOUT_SECONDS), self._database.write() as db:
                    await keys.set_last_used_of_all_tenants(db, batch)
            except (SQLAlchemyError, Unavailable, OSError, TimeoutError):
                log.exception("when keys were used last was not written", keys=len(batch))

    async def close(self) -> None:
        await self.verdicts.close()
        await self.write_last_used()

    async def _read(self, digests: Sequence[bytes]) -> Mapping[bytes, Verdict]:
        now = self._clock.now()
        async with self._database.read() as db:
            found = await keys.find_by_digest(db, digests)
        return {digest: judge(found.get(digest), self._settings, now) for digest in digests}
