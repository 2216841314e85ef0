"""Open streams end when the key that opened them works no more, also where nobody told this process.

Time ends keys, and so do other processes: a replica, the command line. A revocation that is made here ends its streams at
once (`OpenStreams.end_credential`); this finds the rest within a second.
"""

from __future__ import annotations

import asyncio

import structlog

from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.sessions.streams import OpenStreams
from amplifier_api_server.tenants.repository import keys

log = structlog.get_logger(__name__)

_PAUSE_SECONDS = 0.7
_TOGETHER = 200  # keys in one query
_QUERY_SECONDS = 10.0


class StreamRights:
    """Looks after the streams of this process."""

    def __init__(self, *, streams: OpenStreams, database: Database, clock: Clock) -> None:
        self._streams = streams
        self._database = database
        self._clock = clock

    async def run(self) -> None:
        """Look, for ever. A failure is logged, and the next look follows."""
        while True:
            await asyncio.sleep(_PAUSE_SECONDS)
            try:
                await self.look()
            except Exception:
                log.exception("the keys of open streams could not be looked up")

    async def look(self) -> None:
        """End the streams of keys that work no more."""
        open_now = self._streams.credential_ids()
        for start in range(0, len(open_now), _TOGETHER):
            batch = open_now[start : start + _TOGETHER]
            async with asyncio.timeout(_QUERY_SECONDS), self._database.read() as db:
                working = await keys.working_of_all_tenants(db, batch, self._clock.now())
            for key_id in batch:
                if key_id not in working:
                    log.info("streams end with their key", key_id=key_id)
                    self._streams.end_credential(key_id)
