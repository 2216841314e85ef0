"""The body of an import, read within bounds: 32 MiB of empty lists would be a gigabyte, and seconds of the event loop.

Owns how that one body becomes values, in a thread. Refuses to know what they mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from amplifier_api_server.control_plane import json_bounds
from amplifier_api_server.control_plane.sessions.transcripts import MAX_VALUES
from amplifier_api_server.tenants.errors import Malformed


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
        try:
            return await asyncio.to_thread(json_bounds.loads, raw, max_values=MAX_VALUES)
        except json_bounds.UnboundedJSON as error:
            raise Malformed(f"the body can't be read: {error}", code="invalid_json") from error
