"""One WebSocket connection (RFC 6455) of a peer that may be hostile, once its request was upgraded.

Owns the bounds that uvicorn's protocol leaves open: how large a message is before and after the peer is known, of how many
pieces it is made and how long they take, how fast frames of any kind are handled, how long a peer may leave unread what it is
sent, and how long closing takes. A peer past a bound is told so by a close frame and cut off; it harms itself alone.
Compression is not offered: its memory is each socket's own.

Invariants: frames are handled a few at a time, in turns with all other sockets; nothing is read while
something that was read waits, and no message is parsed before the application took the one before it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, cast

import structlog
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import CTRL_OPCODES, Frame
from websockets.http11 import Request, Response
from websockets.protocol import State

from amplifier_api_server.control_plane.client_addresses import TrustedProxies, network_of
from amplifier_api_server.control_plane.errors import PROBLEM_TYPE, encode, problem
from amplifier_api_server.control_plane.fair_queue import FairQueue
from amplifier_api_server.control_plane.json_bounds import LIGHT_BYTES, work_seconds
from amplifier_api_server.control_plane.origin import new_http_request_id
from amplifier_api_server.control_plane.pace import Pace
from amplifier_api_server.control_plane.stepwise import StepwiseProtocol

GOING_AWAY: Final = 1001
TOO_MUCH: Final = 1008
UNREAD: Final = 4410  # ours: what the peer was sent was not read for too long

# `scope["extensions"][KNOWN]()`: who is on the other end is known, and may send messages of the full size.
KNOWN: Final = "amplifier.known"

_FRAMES_OF_ONE = 16  # handled before another socket has its turn
_MAX_PIECES = 1024  # of one message: empty ones would cost memory and never reach its size
_FRAMES_PER_SECOND = 200  # beyond it frames are handled no faster: two for each message that is taken in a second
_FRAMES_AT_ONCE = _MAX_PIECES + 2
_CONTROL_PER_SECOND = 10  # pings and pongs, of which the busiest client that we know of sends one
_CONTROL_AT_ONCE = 50
_FRAME_BYTES = 16 * 1024  # a larger frame takes as long as several
_UNSENT_BYTES = 128 * 1024  # what the kernel keeps of a socket beyond what is under way (TCP_NOTSENT_LOWAT, tcp(7))
_BURST_BYTES = 64 * 1024  # sent in one go
_HANDSHAKE_SECONDS = 10.0
_LINGER_SECONDS = 5.0  # for the last frames to be read, once the connection is closing

log = structlog.get_logger(__name__)
_log = logging.getLogger("uvicorn.error.bounded")
_log.setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class SocketBounds:
    """What one peer may take."""

    message_bytes: int = 1024 * 1024
    unknown_message_bytes: int = 16 * 1024  # until it is known: room for any credential
    message_seconds: float = 30.0  # from a message's first byte to its last
    unread_seconds: float = 30.0  # with what it was sent unread
    ping_seconds: float = 20.0
    pong_seconds: float = 20.0


_REFUSALS: Final[Mapping[int, str]] = {
    HTTPStatus.UPGRADE_REQUIRED: "websocket_required",
    HTTPStatus.INTERNAL_SERVER_ERROR: "internal",
    HTTPStatus.SERVICE_UNAVAILABLE: "unavailable",
}


class _Handshakes(StepwiseProtocol):
    """What can't become a socket is refused with a problem, like everything else."""

    def reject(self, status: Any, text: str) -> Response:
        response = super().reject(status, text)
        detail = text.strip() or "the handshake was refused"
        code = _REFUSALS.get(response.status_code, "invalid_handshake")
        response.body = encode(problem(response.status_code, code, detail))
        for name, value in (
            ("Content-Type", PROBLEM_TYPE),
            ("Content-Length", str(len(response.body))),
            ("X-Request-Id", new_http_request_id()),
            ("Sec-WebSocket-Version", "13"),
        ):
            if name in response.headers:
                del response.headers[name]
            response.headers[name] = value
        return response


class BoundedSocket(WebSocketsSansIOProtocol):
    """RFC 6455 of uvicorn's, within `SocketBounds`."""

    socket_bounds = SocketBounds()
    fair_queue = FairQueue()
    proxies = TrustedProxies()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.bounds = self.socket_bounds
        self.logger = _log
        self.conn: StepwiseProtocol = _Handshakes(self.bounds.unknown_message_bytes, _log)
        self.ping_interval, self.ping_timeout = self.bounds.ping_seconds, self.bounds.pong_seconds
        self.network = ""
        self._frames = Pace(_FRAMES_PER_SECOND, _FRAMES_AT_ONCE, self.loop.time)
        self._control_frames = Pace(_CONTROL_PER_SECOND, _CONTROL_AT_ONCE, self.loop.time)
        self._is_waiting = False  # for its turn
        self._rest: asyncio.TimerHandle | None = None  # until its frames may go on
        self.when_lost: Callable[[], None] | None = None
        self._is_failed = False
        self._resumed_at = 0.0
        self._burst_bytes = 0
        self._handshake: asyncio.TimerHandle | None = None
        self._message: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None

    # The connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._handshake = self.loop.call_later(_HANDSHAKE_SECONDS, self.transport.abort)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            # A peer that does not read is noticed after this much, not after the megabytes that the kernel would take.
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._handshake, self._message, self._unread, self._linger, self._rest):
            if timer is not None:
                timer.cancel()
        self.conn.reader.discard()
        super().connection_lost(exc)
        if self.when_lost is not None:
            self.when_lost()

    def shutdown(self) -> None:
        """The server is stopping."""
        if not self.handshake_complete:
            if self.initial_response is None:
                self.conn.send_response(self.conn.reject(HTTPStatus.SERVICE_UNAVAILABLE, "the server is stopping"))
            self._is_failed = True
            self._close()
        elif not self.close_sent:
            self.fail(GOING_AWAY, "the server is stopping; connect again")

    def fail(self, code: int, reason: str) -> None:
        """Close it from this side, whatever the application is doing; nothing that comes is read any more."""
        if self._is_failed or self.transport.is_closing():
            return
        self._is_failed = True
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        if self.conn.state is State.OPEN:
            self.conn.fail(code, reason)
        self._close()

    def _close(self) -> None:
        self.conn.reader.discard()
        if not self.transport.is_closing():
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self.transport.close()
        if self._linger is None:
            self._linger = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    # What comes.

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.handshake_initiated:
            self.conn.reader.feed_data(data)
            self._go_on()
            return
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.close_sent:  # a head that this parser takes for none
            self._close()

    @property
    def _is_held(self) -> bool:
        """It is we who don't read: the application has a message to take, or the peer something to read first."""
        return self.read_paused or not self.writable.is_set() or not self.handshake_complete

    def _go_on(self) -> None:
        """Wait for a turn where something was read and may be handled; read on where nothing was."""
        if self.transport.is_closing():
            return
        if not self.conn.reader.buffer and not self._is_held:
            self.transport.resume_reading()
            return
        self.transport.pause_reading()
        if not self._is_held and not self._is_waiting:
            self._is_waiting = True
            self.fair_queue.put(self.network, self._turn)

    def _turn(self) -> float:
        try:
            self._handle_some()
        except Exception:
            log.exception("a socket's frames could not be handled")
            self.transport.abort()
        return 0

    def _handle_some(self) -> None:
        """Handle a few of the frames that were read, a large one counted as several."""
        self._is_waiting = False
        taken = 0.0
        while taken < _FRAMES_OF_ONE and not self._is_held and not self.transport.is_closing():
            if not self.conn.step():  # the rest of a frame has not come yet
                self.transport.resume_reading()
                break
            weight = 1 + sum(len(one.data) for one in self.conn.events if isinstance(one, Frame)) / _FRAME_BYTES
            taken += weight
            self._handle_step()
            if seconds := self._frames.wait_seconds(weight):
                self._rest = self.loop.call_later(seconds, self._has_rested)
                self._is_waiting = True
                self.transport.pause_reading()
                break
        else:
            self._go_on()
        if not self.transport.is_closing():
            self._await_rest()

    def _has_rested(self) -> None:
        self._is_waiting = False
        self._rest = None
        self._go_on()

    def _handle_step(self) -> None:
        if self.conn.parser_exc is not None:
            self.handle_parser_exception()
            return
        is_control = any(isinstance(one, Frame) and one.opcode in CTRL_OPCODES for one in self.conn.events)
        if is_control and self._control_frames.wait_seconds():
            self.fail(TOO_MUCH, f"more than {_CONTROL_PER_SECOND} control frames a second")
        else:
            self.handle_events()

    def handle_parser_exception(self) -> None:
        sent = self.conn.close_sent  # none where the peer's end of the stream came first
        self._is_failed = True
        self.stop_keepalive()
        code, reason = (sent.code, sent.reason) if sent is not None else (1006, "")
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self._close()

    def handle_cont(self, event: Any) -> None:
        if len(self.frames) >= _MAX_PIECES:
            self.fail(TOO_MUCH, f"a message may have {_MAX_PIECES} fragments")
        elif not self._is_failed:
            super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        if self._is_failed:
            return
        self._stop_message_timer()
        super().send_receive_event_to_app()

    def handle_close(self, event: Any) -> None:
        super().handle_close(event)
        if self.transport.is_closing() and self._linger is None:
            self._linger = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        if self._linger is None and not self.disconnected:  # what it sent last may never be read
            self._linger = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    async def receive(self) -> Any:
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self._go_on()
        text = message.get("text")
        if isinstance(text, str) and len(text) > LIGHT_BYTES:
            await self.fair_queue.admit(self.network, work_seconds(text.encode()))
        return message

    def _await_rest(self) -> None:
        """A message that has begun ends within its time."""
        if self.conn.current_size is None and not self.conn.reader.buffer:
            self._stop_message_timer()
        elif self._message is None and self.handshake_complete:
            self._message = self.loop.call_later(self.bounds.message_seconds, self._message_is_late)

    def _message_is_late(self) -> None:
        self._message = None
        if self._is_held or self._is_waiting:
            self._await_rest()
        else:
            self.fail(TOO_MUCH, "a message did not arrive in time")

    def _stop_message_timer(self) -> None:
        if self._message is not None:
            self._message.cancel()
            self._message = None

    # What goes.

    async def send(self, message: Any) -> None:
        await self.writable.wait()
        if self._is_failed:
            raise ClientDisconnected
        await super().send(message)
        self._burst_bytes += len(message.get("text") or message.get("bytes") or "")
        if self._burst_bytes > _BURST_BYTES:  # the loop's next turn writes it, and says whether the peer reads it
            self._burst_bytes = 0
            await asyncio.sleep(0)
        if self._handshake is not None and self.handshake_complete:
            self._handshake.cancel()
            self._handshake = None
            self._go_on()
        if message["type"] == "websocket.close" and self._linger is None:
            self._linger = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        """The peer does not read: nothing more is read of it either, or its pings would fill our memory with pongs."""
        super().pause_writing()
        if not self.transport.is_closing():
            self.transport.pause_reading()
        if self._unread is None:
            self._unread = self.loop.call_later(self.bounds.unread_seconds, self._is_unread)

    def resume_writing(self) -> None:
        self._resumed_at = self.loop.time()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()
        self._go_on()

    def _is_unread(self) -> None:
        self.fail(UNREAD, f"what was sent was not read for {self.bounds.unread_seconds:g} s")

    def keepalive_timeout(self) -> None:
        """No pong in time. A peer that has much to read before it gets to the ping is slow, not gone; and where it is we who
        don't read, the pong may be there.
        """
        if self._is_held or self._is_waiting or self._resumed_at > self.ping_sent_at:
            self._resumed_at = 0.0
            self.pong_timer = self.loop.call_later(self.bounds.pong_seconds, self.keepalive_timeout)
            return
        self.pong_timer = None
        self.fail(1011, "no pong in time")

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.close_sent:
            self._close()
        else:
            cast("dict[str, Any]", self.scope["extensions"])[KNOWN] = self.known
            peer = self.client[0] if self.client is not None else ""
            self.network = network_of(self.proxies.client_of(peer, self.scope["headers"]))

    def known(self) -> None:
        """The peer is known: its messages may have the full size."""
        self.conn.max_message_size = self.bounds.message_bytes


def socket_protocol(
    bounds: SocketBounds, proxies: TrustedProxies | None = None, queue: FairQueue | None = None
) -> type[BoundedSocket]:
    """`BoundedSocket` within `bounds`: uvicorn makes its own instances, which take turns with one another."""
    own = {"socket_bounds": bounds, "fair_queue": queue or FairQueue(), "proxies": proxies or TrustedProxies()}
    return type("BoundedSocket", (BoundedSocket,), own)
