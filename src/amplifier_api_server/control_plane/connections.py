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
from email.utils import formatdate
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import get_remote_addr
from uvicorn.server import ServerState

from amplifier_api_server.control_plane.corked import Corked
from amplifier_api_server.control_plane.errors import PROBLEM_TYPE, TITLES, encode, problem
from amplifier_api_server.control_plane.fair_queue import FairQueue
from amplifier_api_server.control_plane.peers import Peers, Place
from amplifier_api_server.control_plane.pieces import PIECE_BYTES, Pieces
from amplifier_api_server.control_plane.upgraded import BoundedSocket

# A peer's malformed requests are its own trouble and would flood the log. The applications log what they raise themselves.
_log = logging.getLogger("uvicorn.error.bounded")
_log.setLevel(logging.CRITICAL)


_MAX_HEADERS = 256  # of one request: each costs some 160 bytes beside its text
_ONE_HOST = "a request of HTTP/1.1 has one Host header (RFC 9112, 3.2)"
_LINGER_SECONDS = 1.0  # for a refusal to be read
_WORK_OF_ONE = 100  # pieces and callbacks of the parser, some 10 us each, of one connection until another has its turn
_REQUEST_SECONDS = 0.002  # of a request that is begun: what the application does with it takes about as long


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


class _Flow(FlowControl):
    """Uvicorn's, with a second reason to read no further: what came already has to wait."""

    is_ahead = False

    def hold(self, is_ahead: bool) -> None:
        if is_ahead != self.is_ahead:
            self.is_ahead = is_ahead
            if not self.read_paused:
                self._set_reading(not is_ahead)

    def pause_reading(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self._set_reading(False)

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self._set_reading(not self.is_ahead)

    def _set_reading(self, is_on: bool) -> None:
        if self._transport.is_closing():
            return
        if is_on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 of uvicorn's, within `Bounds`.

    A request is parsed once the one before it was answered and its answer taken; until then it waits as the bytes that came,
    at most as many as are read at once.
    """

    flow: _Flow

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        bounds: Bounds,
        queue: FairQueue | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._queue = queue or FairQueue()
        self._whose = ""  # in whose turn it is parsed
        self.logger = _log
        self.access_log = False
        self.bounds = bounds
        self._pieces = Pieces()
        self._is_whole = True  # the request that was begun last, to its end
        self._has_head = False  # that request's is complete
        self._announced_bytes = 0  # of its body, by Content-Length
        self._body_bytes_left = 0
        self._work = 0
        self._begun = 0  # requests, in this turn
        self._is_parsing_on = False
        self._is_ahead = False  # what waits was sent before the answer to what came before it
        self._head_bytes_left = bounds.head_bytes
        self._barren_bytes = 0  # since the last byte of a body, or the end of a request
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._is_upgraded = False
        self._is_hostless = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if not self.admits(transport):
            self.refuse_connection(transport)
            return
        super().connection_made(cast("asyncio.Transport", Corked(transport, self.loop)))
        self.flow = _Flow(self.transport)
        self._await_head()

    def admits(self, transport: asyncio.Transport) -> bool:
        """Whether there is room for this connection."""
        return len(self.connections) < self.bounds.connections

    def refuse_connection(self, transport: asyncio.Transport) -> None:
        """There are too many."""
        transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is None:  # it was refused
            return
        self._stop(self._head_timer)
        self._stop(self._unread_timer)
        self._unset_keepalive_if_required()
        self._pieces.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        self._pieces.add(data)
        if not self._is_parsing_on:
            self._is_parsing_on = True
            self._queue.do(self._whose, self._parse)
            if self._is_parsing_on and self._pieces and not self._may_wait(len(self._pieces)):
                self._parse_cheap()

    def _parse(self) -> float:
        """Parse what came, as far as it is its turn; how many seconds of work follow from it."""
        self._is_parsing_on = False
        self._work = self._begun = 0
        while self._pieces and not self._must_wait():
            if self._work > _WORK_OF_ONE:
                self._is_parsing_on = True
                self._queue.put(self._whose, self._parse)
                break
            self._parse_piece()
        self._hold_back()
        return self._begun * _REQUEST_SECONDS

    def _parse_cheap(self) -> None:
        """Parse before its turn what costs little, as there is no room to keep it: heads, and bodies of a known length."""
        while self._pieces and not self._must_wait() and not self._is_chunked:
            self._parse_piece()
        self._hold_back()

    @property
    def _is_chunked(self) -> bool:
        """A body of unknown length is under way, which may be made of very many chunks."""
        return self._has_head and not self._is_whole and not self._body_bytes_left

    def _hold_back(self) -> None:
        """Read no more while something waits."""
        if not self._is_upgraded and not self.transport.is_closing():
            self._is_ahead = bool(self._pieces) and (self._is_ahead or self._must_wait())
            self.flow.hold(bool(self._pieces))
            self.held_ahead(len(self._pieces))

    def held_ahead(self, count: int) -> None:
        """So many bytes wait for their turn."""

    def _may_wait(self, count: int) -> bool:
        """Whether there is room for so many bytes that only wait until others had their turn; then nothing more is read."""
        self.flow.hold(True)
        return True

    def cut_off(self, reason: str) -> None:
        """The peer is past a bound."""
        self.transport.abort()

    def _must_wait(self) -> bool:
        """Between two requests: until the one is answered, and the peer takes its answer."""
        if not self._is_whole:
            return False
        return self.flow.write_paused or not (self.cycle is None or self.cycle.response_complete)

    def _parse_piece(self) -> None:
        piece = self._pieces.take(self._body_bytes_left)
        self._work += 1
        self._barren_bytes += len(piece)
        if self._body_bytes_left:
            self._body_bytes_left -= len(piece)
        super().data_received(cast("bytes", piece))
        # The parser keeps the pieces of a header, or of a chunked body's trailer, that does not end, and tells nobody.
        is_barren = self._barren_bytes > self.bounds.head_bytes + PIECE_BYTES
        if is_barren and not self._is_upgraded and not self.transport.is_closing():
            self._head_bytes_left = -1
            self.send_400_response("the head is too large")
        if self._is_upgraded or self.transport.is_closing():
            self._pieces.clear()

    def on_body(self, body: bytes) -> None:
        self._work += 1
        self._barren_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._barren_bytes = 0
        self._body_bytes_left = 0
        self._is_whole = True
        super().on_message_complete()

    def on_message_begin(self) -> None:
        self._is_whole = self._has_head = False
        self._announced_bytes = 0
        super().on_message_begin()
        self._head_bytes_left = self.bounds.head_bytes

    def on_url(self, url: bytes) -> None:
        self._take_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._work += 1
        self._take_head(len(name) + len(value) + 4)
        if self._has_head:
            return  # of a trailer, which is not to be taken for the head's (RFC 9110, 6.5.1)
        if len(name) == len("content-length") and name.lower() == b"content-length":
            self._announced_bytes = int(value)
        super().on_header(name, value.strip(b" \t"))  # which is no part of it (RFC 9110, 5.5)

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() == "1.1" and sum(name == b"host" for name, _ in self.headers) != 1:
            self._is_hostless = True
            raise ValueError(_ONE_HOST)
        self._stop(self._head_timer)
        self._head_timer = None
        self._work = _WORK_OF_ONE + 1
        self._begun += 1
        self._has_head = True
        self._body_bytes_left = self._announced_bytes
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        cast("Corked", self.transport).flush()  # the next request waits until the peer takes this answer
        super().on_response_complete()
        if not self.transport.is_closing():
            self._await_head()
            self._parse_on()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop(self._unread_timer)
        self._unread_timer = self.loop.call_later(self.bounds.unread_seconds, self.cut_off, "unread")

    def resume_writing(self) -> None:
        self._stop(self._unread_timer)
        self._unread_timer = None
        super().resume_writing()
        self._parse_on()

    def _parse_on(self) -> None:
        """What waits has its turn now, once whoever is about to be answered has ended theirs."""
        if self._pieces and not self._is_parsing_on:
            self._is_parsing_on = True
            self._queue.put(self._whose, self._parse)

    def _await_head(self) -> None:
        """The next request's head, from its first byte or none at all to its last, within `idle_seconds`."""
        self._stop(self._head_timer)
        self._head_timer = self.loop.call_later(self.bounds.idle_seconds, self.transport.abort)

    def _take_head(self, count: int) -> None:
        self._head_bytes_left -= count
        if (
            self._head_bytes_left < 0 or len(self.headers) >= _MAX_HEADERS
        ):  # the parser stops, the peer is told and cut off
            self._head_bytes_left = -1
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

    def held_ahead(self, count: int) -> None:
        """Requests sent ahead of their answers would add up for each sandbox; no client that we know of sends them."""
        if count and self._must_wait():
            self.cut_off("ahead")

    def shutdown(self) -> None:
        """Cut the peer off, whatever it was doing."""
        if self.transport is not None:
            self.transport.abort()


class PublicProtocol(BoundedProtocol):
    """From anybody. What can't become a request is refused with a problem, like everything else."""

    public_bounds = Bounds()
    peers = Peers()
    fair_queue = FairQueue()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, self.public_bounds, self.fair_queue)
        self._place: Place | None = None
        self._linger: asyncio.TimerHandle | None = None

    def admits(self, transport: asyncio.Transport) -> bool:
        address = get_remote_addr(transport)
        self._place = self.peers.enter(address[0] if address else "")
        # A trusted proxy speaks for many, whose connections take turns with one another.
        self._whose = (self._place.network if self._place is not None else None) or f"connection {id(self)}"
        return self._place is not None

    def refuse_connection(self, transport: asyncio.Transport) -> None:
        """Say why, and wait a moment for the peer to read it: closing on what it is sending would reset the connection."""
        transport.write(_refusal(503, code="too_many_connections", detail=self.peers.refusal))
        if not self.peers.linger():
            transport.close()
            return
        transport.write_eof()
        self._linger = self.loop.call_later(_LINGER_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._place is not None:
            self._place.leave()
        if self._linger is not None:
            self._linger.cancel()
            self.peers.end_lingering()

    def held_ahead(self, count: int) -> None:
        if self._place is not None and not self._place.hold_ahead(count):
            self.cut_off("ahead")

    def _may_wait(self, count: int) -> bool:
        super()._may_wait(count)
        if self._place is None or self._place.hold_ahead(count):
            return True
        self._place.hold_ahead(0)  # what is left of it afterwards is asked for again
        return False

    def pause_writing(self) -> None:
        super().pause_writing()
        unread = self.transport.get_write_buffer_size()
        if self._place is not None and not self._place.hold_unread(unread):
            self.cut_off("unread")

    def resume_writing(self) -> None:
        if self._place is not None:
            self._place.hold_unread(0)
        super().resume_writing()

    def cut_off(self, reason: str) -> None:
        if self._place is not None:
            self.peers.tell(reason, self._place.address)
        super().cut_off(reason)

    def send_400_response(self, msg: str) -> None:
        """The parser gave up: no HTTP/1.1, or a head that is too large."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.cut_off("malformed")  # a body; its answer has begun, and this would be written into it
            return
        too_large = self._head_bytes_left < 0
        status, code = (431, "headers_too_large") if too_large else (400, "invalid_http")
        most = f"the request's head has more than {self.bounds.head_bytes} bytes, or {_MAX_HEADERS} fields"
        detail = most if too_large else _ONE_HOST if self._is_hostless else msg
        self.transport.write(_refusal(status, code=code, detail=detail))
        self.transport.close()

    def handle_websocket_upgrade(self) -> None:
        """From here on the connection is `ws_protocol_class`'s, which counts as one of ours."""
        if self._is_ahead:  # no client does this, and nobody has agreed to another protocol
            self.cut_off("ahead")
            return
        self.flow.hold(False)
        self.held_ahead(0)
        self._stop(self._unread_timer)
        self._is_upgraded = True
        super().handle_websocket_upgrade()
        if self._place is not None:
            cast("BoundedSocket", self.transport.get_protocol()).when_lost = self._place.leave


def _refusal(status: int, *, code: str, detail: str) -> bytes:
    """A whole answer, before which there is no request that could be answered."""
    body = encode(problem(status, code, detail))
    head = (
        f"HTTP/1.1 {status} {TITLES[status]}\r\ncontent-type: {PROBLEM_TYPE}\r\n"
        f"content-length: {len(body)}\r\ndate: {formatdate(usegmt=True)}\r\n"
        f"x-request-id: {os.urandom(12).hex()}\r\nconnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


def public_protocol(bounds: Bounds, peers: Peers | None = None, queue: FairQueue | None = None) -> type[PublicProtocol]:
    """`PublicProtocol` within `bounds`, its connections counted by `peers`: uvicorn makes its own instances."""
    counted = peers or Peers(most=bounds.connections, most_of_network=bounds.connections)
    return type(
        "PublicProtocol",
        (PublicProtocol,),
        {"public_bounds": bounds, "peers": counted, "fair_queue": queue or FairQueue()},
    )


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
