"""One reader of `GET /v1/events`: a follower's events as server-sent events (WHATWG HTML, 9.2).

Owns what ends it early: the client leaves (one that reads nothing for long is cut off by its connection, which is the same),
or may read no more. Both cut the task that writes. When the server stops, the stream ends as a whole answer does, and the
client comes back by itself. An `id:` line alone moves the place that a client goes on from, past events that it did not ask
for.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from starlette.responses import Response

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.errors import encode, problem_of
from amplifier_api_server.control_plane.routes import Receive, Scope, Send
from amplifier_api_server.control_plane.sessions.pipe import STREAM_HEADERS
from amplifier_api_server.control_plane.sessions.streams import OpenStreams
from amplifier_api_server.control_plane.tenant_events.followers import Follower
from amplifier_api_server.control_plane.tenant_events.schemas import TenantEventView, event_id
from amplifier_api_server.runtime.protocol import one_line
from amplifier_api_server.tenants.errors import DomainError
from amplifier_api_server.tenants.models import TenantEvent

log = structlog.get_logger(__name__)

HEARTBEAT_SECONDS: Final = 15.0  # below the idle time-outs of common proxies (nginx: 60 s, AWS ALB: 60 s)
_RETRY_MILLISECONDS: Final = 1000  # how soon a browser comes back


class EventStream(Response):
    """The answer. Its follower is closed with it."""

    media_type = "text/event-stream"

    def __init__(self, follower: Follower, principal: Principal, streams: OpenStreams) -> None:
        super().__init__()
        self._follower = follower
        self._principal = principal
        self._streams = streams
        self._told = follower.position
        self._task: asyncio.Task[None] | None = None
        self._is_cut = False

    def end(self) -> None:
        """Write no more."""
        if self._task is not None and not self._is_cut:
            self._is_cut = True
            self._task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._task = asyncio.current_task()
        leaving = asyncio.create_task(self._end_when_left(receive))
        self._streams.add(self._principal, self.end)
        try:
            await self._write(send)
        except asyncio.CancelledError:
            if not self._is_cut or self._task is None or self._task.uncancel() > 0:
                raise  # the server's own: it is stopping
        finally:
            self._task = None
            self._streams.remove(self._principal, self.end)
            leaving.cancel()
            self._follower.close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)})
        await _chunk(send, b"retry: %d\n%b" % (_RETRY_MILLISECONDS, self._place()))
        loop = asyncio.get_running_loop()
        due_at = loop.time() + HEARTBEAT_SECONDS
        try:
            while (events := await self._follower.next(max(0.0, due_at - loop.time()))) is not None:
                if events:
                    await _chunk(send, b"".join(map(frame, events)))
                    self._told = events[-1].id or self._told
                elif loop.time() < due_at:
                    continue  # nothing, or nothing of its types
                else:
                    await _chunk(send, b": still here\n%b" % (self._place() if self._is_behind else b"\n"))
                due_at = loop.time() + HEARTBEAT_SECONDS
        except DomainError as error:
            log.info("a stream of events ends in an error", error=error.stable_code)
            await _chunk(send, b"event: error\ndata: %b\n\n" % _data(encode(problem_of(error)).decode()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    @property
    def _is_behind(self) -> bool:
        """Whether its client would go on from before events that it did not ask for."""
        return self._follower.position != self._told

    def _place(self) -> bytes:
        self._told = self._follower.position
        return b"id: %b\n\n" % event_id(self._told).encode()

    async def _end_when_left(self, receive: Receive) -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except DomainError as error:
            log.info("a stream's client sent what it should not", error=error.stable_code)
        self.end()


async def _chunk(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


def frame(event: TenantEvent) -> bytes:
    view = TenantEventView.of(event)
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (view.id.encode(), event.type.encode(), _data(view.model_dump_json()))


def _data(json_text: str) -> bytes:
    return one_line(json_text).encode()
