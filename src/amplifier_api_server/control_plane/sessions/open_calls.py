"""What the model calls of running turns have used so far, kept where the next start of a killed server finds it.

Owns `open_calls` of the turns' rows. Refuses to count: the gateway says what a call has used. Invariants: a call that the
ledger has is charged by the ledger alone (`left_of` asks it); nothing is written where calls used nothing new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import structlog
from pydantic import TypeAdapter, ValidationError

from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.model_gateway.turns import CallUsage, MeteredTurn
from amplifier_api_server.tenants.errors import DomainError
from amplifier_api_server.tenants.ids import TenantId, TurnId
from amplifier_api_server.tenants.models import Turn
from amplifier_api_server.tenants.repository import turns, usage

log = structlog.get_logger(__name__)

_EVERY_SECONDS = 1.0  # so a killed server loses at most what providers said in its last second
_WRITE_SECONDS = 10.0
_CALLS = TypeAdapter(list[CallUsage])


class OpenCalls:
    """Writes what `running` turns have used, until it is cancelled."""

    def __init__(self, running: Iterable[MeteredTurn], database: Database) -> None:
        self._running = running
        self._database = database
        self._written: dict[TurnId, int] = {}  # tokens of each turn's open calls, as its row has them

    async def run(self) -> None:
        """Write every second what has changed."""
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            try:
                await self.write()
            except DomainError:
                pass  # the database can't be used, which it tells by itself; the next round has the same and more
            except Exception:
                log.exception("what model calls have used so far could not be kept")

    async def write(self) -> None:
        """Write what has changed since the last time, in one transaction."""
        found = [(turn, turn.unrecorded()) for turn in self._running]
        used = {turn.turn_id: sum(call.total_tokens for call in calls) for turn, calls in found}
        changed = [(turn, calls) for turn, calls in found if used[turn.turn_id] != self._written.get(turn.turn_id, 0)]
        if changed:
            async with self._database.write(_WRITE_SECONDS) as db:
                for turn, calls in changed:
                    kept = _CALLS.dump_python(calls, mode="json")
                    await turns.set_open_calls(db, turn.tenant_id, turn.turn_id, kept)
        self._written = used


async def left_of(database: Database, turn: Turn) -> Sequence[CallUsage]:
    """What a running turn of an earlier process had used beyond what the ledger has."""
    if not turn.open_calls:
        return []
    try:
        calls = _CALLS.validate_python(turn.open_calls)
    except ValidationError:
        log.error("what a lost turn's model calls used can't be read", request_id=turn.id)
        return []
    async with database.read(_WRITE_SECONDS) as db:
        recorded = await usage.sources_of(db, TenantId(turn.tenant_id), TurnId(turn.id))
    return [call for call in calls if f"call:{call.call_id}" not in recorded]
