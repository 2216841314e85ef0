"""The body of an import, which may hold more values than others, and is read in a thread.

Its values are bounded all the same: 32 MiB of empty lists would be a gigabyte.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from fastapi import Request

from amplifier_api_server.control_plane.request_json import JsonRoute, parsed_unwritten
from amplifier_api_server.control_plane.services import services
from amplifier_api_server.control_plane.sessions.transcripts import MAX_VALUES

_HELD_BYTE_SECONDS: Final = 2e-9  # the interpreter is held while it is parsed, 55 ms for 32 MiB


class _ImportRequest(Request):
    async def json(self) -> Any:
        raw = await self.body()
        uses = services(self)
        await uses.fair_queue.admit(self.state.principal.tenant_id, len(raw) * _HELD_BYTE_SECONDS)
        return await asyncio.to_thread(parsed_unwritten, raw, max_values=MAX_VALUES)


class ImportRoute(JsonRoute):
    """A route whose JSON holds `MAX_VALUES` values at most."""

    request = _ImportRequest
