"""Open streams end when who opened them may no more, also where nobody told this process.

Time ends credentials, and so do other processes: a replica, the command line, whoever keeps a provider's tokens. A revocation
that is made here ends its streams at once (`OpenStreams`); this finds the rest within a second. Invariant: a stream is read
by somebody who would be let in again now, with every right that they had when it began.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.sessions.streams import End, OpenStreams
from amplifier_api_server.tenants.errors import Unavailable
from amplifier_api_server.tenants.permissions import beyond

log = structlog.get_logger(__name__)

_PAUSE_SECONDS = 0.7


class LooksAgain(Protocol):
    """The authenticator's side."""

    async def still(self, principals: list[Principal]) -> list[Principal | None]: ...


class StreamRights:
    """Looks after the streams of this process."""

    def __init__(self, *, streams: OpenStreams, authenticator: LooksAgain, clock: Clock) -> None:
        self._streams = streams
        self._authenticator = authenticator
        self._clock = clock

    async def run(self) -> None:
        """Look, for ever. A failure is logged, and the next look follows."""
        while True:
            await asyncio.sleep(_PAUSE_SECONDS)
            try:
                await self.look()
            except Unavailable:
                pass  # the database has told it
            except Exception:
                log.exception("the callers of open streams could not be looked up")

    async def look(self) -> None:
        """End the streams of those who may no more: first by the clock alone, which needs no database."""
        now = self._clock.now().timestamp()
        left: list[tuple[Principal, End]] = []
        for principal, end in self._streams.all():
            if principal.expires_at is not None and principal.expires_at <= now:
                _end(principal, end, "it has expired")
            else:
                left.append((principal, end))
        # Many streams have one caller, which is one object while its verdict is remembered.
        callers = list({id(principal): principal for principal, _ in left}.values())
        current = dict(zip(map(id, callers), await self._authenticator.still(callers), strict=True))
        for principal, end in left:
            why = _why_not(principal, current[id(principal)])
            if why is not None:
                _end(principal, end, why)


def _why_not(then: Principal, now: Principal | None) -> str | None:
    """Why a stream may not go on, or None."""
    if now is None:
        return "it works no more"
    if (now.tenant_id, now.member_id) != (then.tenant_id, then.member_id):
        return "it is somebody else's now"
    lost = beyond(then.grants, now.grants)
    return f"it holds {lost[0]} no more" if lost else None


def _end(principal: Principal, end: End, why: str) -> None:
    log.info("a stream ends with its credential", credential_id=principal.credential_id, why=why)
    try:
        end()
    except Exception:
        log.exception("a stream could not be ended", credential_id=principal.credential_id)
