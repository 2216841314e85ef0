"""One HTTP/1.1 connection from a peer that may be hostile: a sandbox, or anybody at the public door.

Owns the bounds that uvicorn's protocol leaves to a proxy in front of it, which there may be none of: how large a request's
head is, how long one takes to arrive, how many connections a listener has, how long a peer may leave its answer unread. A
peer past a bound is cut off; it harms itself alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from amplifier_api_server.control_plane.corked import Corked
from amplifier_api_server.control_plane.errors import PROBLEM_TYPE, TITLES, encode, problem

# A peer's malformed requests are its own trouble and would flood the log. The applications log what they raise themselves.
_log = logging.getLogger("uvicorn.error.bounded")
_log.setLevel(logging.CRITICAL)


_RECEIVED_AT_ONCE_BYTES = (
    256 * 1024
)  # what the loop hands over in one piece: the end of a body may be in it, before a head


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one peer may take."""

    connections: int = 256  # of one listener: a few for each session that one runtime may host
    head_bytes: int = 32 * 1024
    idle_seconds: float = 75.0  # without a request, or with a head that does not end
    unread_seconds: float = 120.0  # with an answer that is not read


class Connections(ServerState):
    """The connections of one listener. Once closed, one that was being accepted then is cut off too."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False

    def close(self) -> list[asyncio.Task[None]]:
        """Cut every connection off; the requests that are still being answered."""
        self.is_closed = True
        for connection in list(self.connections):
            connection.shutdown()
        return list(self.tasks)


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 of uvicorn's, within `Bounds`."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], bounds: Bounds) -> None:
        super().__init__(config, server_state, app_state)
        self.logger = _log
        self.access_log = False
        self.bounds = bounds
        self._head_bytes_left = bounds.head_bytes
        self._barren_bytes = 0  # since the last byte of a body, or the end of a request
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._is_upgraded = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", Corked(transport, self.loop)))
        if len(self.connections) > self.bounds.connections:
            self.refuse_connection()
        else:
            self._await_head()

    def refuse_connection(self) -> None:
        """There are too many."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop(self._head_timer)
        self._stop(self._unread_timer)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._barren_bytes += len(data)
        super().data_received(data)
        # The parser keeps the pieces of a header, or of a chunked body's trailer, that does not end, and tells nobody.
        is_barren = self._barren_bytes > self.bounds.head_bytes + _RECEIVED_AT_ONCE_BYTES
        if is_barren and not self._is_upgraded and not self.transport.is_closing():
            self._head_bytes_left = -1
            self.send_400_response("the head is too large")

    def on_body(self, body: bytes) -> None:
        self._barren_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._barren_bytes = 0
        super().on_message_complete()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes_left = self.bounds.head_bytes

    def on_url(self, url: bytes) -> None:
        self._take_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._take_head(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop(self._head_timer)
        self._head_timer = None
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop(self._unread_timer)
        self._unread_timer = self.loop.call_later(self.bounds.unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop(self._unread_timer)
        self._unread_timer = None
        super().resume_writing()

    def _await_head(self) -> None:
        """The next request's head, from its first byte or none at all to its last, within `idle_seconds`."""
        self._stop(self._head_timer)
        self._head_timer = self.loop.call_later(self.bounds.idle_seconds, self.transport.abort)

    def _take_head(self, count: int) -> None:
        self._head_bytes_left -= count
        if self._head_bytes_left < 0:  # the parser stops, the peer is told 400 and cut off
            raise ValueError("the request's head is too large")

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


class SandboxProtocol(BoundedProtocol):
    """From a sandbox. `app_state` becomes `scope["state"]`: who is on the other end."""

    def __init__(self, config: Config, server_state: Connections, app_state: dict[str, Any], bounds: Bounds) -> None:
        super().__init__(config, server_state, app_state, bounds)
        self._listener = server_state

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._listener.is_closed:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Requests sent ahead of their answers would pile up in memory; no client that we know of sends them.
        if self.pipeline:
            self.transport.abort()

    def shutdown(self) -> None:
        """Cut the peer off, whatever it was doing."""
        if self.transport is not None:
            self.transport.abort()


class PublicProtocol(BoundedProtocol):
    """From anybody. What can't become a request is refused with a problem, like everything else."""

    public_bounds = Bounds()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, self.public_bounds)

    def send_400_response(self, msg: str) -> None:
        """The parser gave up: no HTTP/1.1, or a head that is too large."""
        too_large = self._head_bytes_left < 0
        status, code = (431, "headers_too_large") if too_large else (400, "invalid_http")
        detail = f"the request's head has more than {self.bounds.head_bytes} bytes" if too_large else msg
        self._refuse(status, code, detail)

    def refuse_connection(self) -> None:
        self._refuse(503, "too_many_connections", "this server has as many connections as it takes; try again")

    def handle_websocket_upgrade(self) -> None:
        """From here on the connection is `ws_protocol_class`'s, which counts as one of ours."""
        if self.pipeline or (self.cycle is not None and not self.cycle.response_complete):
            self.transport.abort()  # sent ahead of an answer, into which it would write
            return
        self._stop(self._unread_timer)
        self._is_upgraded = True
        super().handle_websocket_upgrade()

    def _refuse(self, status: int, code: str, detail: str) -> None:
        body = encode(problem(status, code, detail))
        head = (
            f"HTTP/1.1 {status} {TITLES[status]}\r\ncontent-type: {PROBLEM_TYPE}\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {os.urandom(12).hex()}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()


def public_protocol(bounds: Bounds) -> type[PublicProtocol]:
    """`PublicProtocol` within `bounds`: uvicorn makes its own instances."""
    return type("PublicProtocol", (PublicProtocol,), {"public_bounds": bounds})


def protocol_config(app: Any) -> Config:
    """Uvicorn's configuration for `SandboxProtocol`: no logging set up, no websockets, no headers of its own."""
    config = Config(
        app,
        http=SandboxProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=3600,  # `Bounds.idle_seconds` is what holds
    )
    config.load()
    return config
