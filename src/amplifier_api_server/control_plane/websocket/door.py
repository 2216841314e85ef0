"""`/ws`: lets connections in, and knows those that are open.

Owns the upgrade's own answer, the work that outlives its connection, and the end of all of them when the server stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.errors import PROBLEM_TYPE, encode, headers_of, problem_of, status_of
from amplifier_api_server.control_plane.routes import Receive, Scope, Send
from amplifier_api_server.control_plane.services import Services
from amplifier_api_server.control_plane.upgraded import KNOWN
from amplifier_api_server.control_plane.websocket.callers import Caller, carried_by
from amplifier_api_server.control_plane.websocket.calls import Calls
from amplifier_api_server.control_plane.websocket.connection import Connection, Uses
from amplifier_api_server.control_plane.websocket.work import Work
from amplifier_api_server.tenants.errors import DomainError, Unavailable

log = structlog.get_logger(__name__)


class WebsocketDoor:
    """One a process: what the edge calls for each connection."""

    def __init__(self, services: Services, calls: Calls) -> None:
        self._services = services
        self.settings = services.settings
        self._open: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_draining = False
        self._uses = Uses(
            settings=services.settings.websocket,
            streams=services.streams,
            telemetry=services.telemetry,
            clock=services.clock,
            make_caller=lambda token: Caller(services.authenticator, token=token),
            work=Work(services, calls),
            beside=self._beside,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, from its upgrade to its end."""
        await receive()  # websocket.connect
        principal: Principal | None = None
        try:
            if self._is_draining:
                raise Unavailable("the server is stopping", retry_after_seconds=1)
            caller = carried_by(scope, self._services.authenticator, self.settings)
            if caller is not None:
                principal = await caller.principal()
                self._services.streams.require_room(principal)
        except DomainError as error:
            await _refuse(send, error, scope["state"]["http_request_id"])
            return
        await send({"type": "websocket.accept"})
        connection = Connection(self._uses, receive, send, caller)
        self._open.add(connection)
        self._services.telemetry.sockets.inc()
        try:
            await connection.run(principal, scope.get("extensions", {}).get(KNOWN, lambda: None))
        finally:
            self._open.discard(connection)
            self._services.telemetry.sockets.dec()

    def _beside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Work that goes on when its connection ends, as a request's does."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def drain(self) -> None:
        """Let nobody in any more, and end the connections on which nothing is under way, each as soon as that is so."""
        self._is_draining = True
        for connection in list(self._open):
            connection.drain()

    async def close(self) -> None:
        """End what still works for connections, after the last of them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _refuse(send: Send, error: DomainError, http_request_id: str) -> None:
    """Answer the upgrade as any request is answered (ASGI's WebSocket denial response)."""
    raw = encode(problem_of(error))
    headers = [
        (b"content-type", PROBLEM_TYPE.encode()),
        (b"x-request-id", http_request_id.encode()),
        *headers_of(error),
    ]
    await send({"type": "websocket.http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "websocket.http.response.body", "body": raw})
