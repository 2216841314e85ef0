"""The body of an import, read within bounds: 32 MiB of empty lists would be a gigabyte, and seconds of the event loop.

Owns how that one body becomes values, in a thread. Refuses to know what they mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute

from amplifier_api_server.control_plane import json_bounds
from amplifier_api_server.control_plane.services import services
from amplifier_api_server.control_plane.sessions.transcripts import MAX_VALUES
from amplifier_api_server.tenants.errors import Malformed

_HELD_BYTE_SECONDS: Final = 2e-9  # the interpreter is held while it is parsed, 55 ms for 32 MiB


class BoundedBody(APIRoute):
    """A route whose JSON holds `MAX_VALUES` values at most."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handler(_Bounded(request.scope, request.receive))

        return bounded


class _Bounded(Request):
    async def json(self) -> Any:
        raw = await self.body()
        uses = services(self)
        await uses.fair_queue.admit(self.state.principal.tenant_id, len(raw) * _HELD_BYTE_SECONDS)
        try:
            return await asyncio.to_thread(json_bounds.loads_unwritten, raw, max_values=MAX_VALUES)
        except json_bounds.UnboundedJSON as error:
            raise Malformed(f"the body can't be read: {error}", code="invalid_json") from error
