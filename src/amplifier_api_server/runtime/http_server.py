"""An HTTP/1.1 server for one trusted peer, on httptools: keep-alive, pipelining, chunked streams, limits,
backpressure.

Owns connections and bytes. Refuses to know paths or bodies' meanings: one `Handler` does. Invariant: no connection
holds more than `MAX_HEAD_BYTES + MAX_BODY_BYTES` of a request or one high-water mark of an answer, and every wait on
the peer has an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast
from urllib.parse import parse_qsl

import httptools

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 40 * 1024 * 1024  # a whole transcript comes back in one body; checkpoints are bounded to 32 MiB
MAX_PIPELINED = 8
REQUEST_SECONDS = 30.0  # from the first byte of a request to its last
KEEP_ALIVE_SECONDS = 600.0  # the peer keeps a pool; it should be the one that closes
WRITE_STALL_SECONDS = 300.0  # a peer that reads nothing for this long is gone
HIGH_WATER_BYTES = 256 * 1024


@dataclass(slots=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: bytes
    keep_alive: bool
    target: str = ""  # path and query as they came


@dataclass(slots=True)
class Response:
    """`stream`, when given, is the body; it is closed whatever happens to the connection."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    stream: AsyncGenerator[bytes, None] | None = None


Handler = Callable[[Request], Awaitable[Response]]


@dataclass(slots=True)
class _Partial:
    """A request while its bytes come in."""

    url: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    head_bytes: int = 0


class _TooLargeError(Exception):
    """Passed out of the parser's callbacks with the status to answer."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Connection(asyncio.Protocol):
    def __init__(self, handler: Handler, connections: set[_Connection], only_pid: int | None = None) -> None:
        self._handler = handler
        self._connections = connections
        self._only_pid = only_pid
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._partial = _Partial()
        self._requests: deque[Request] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._closing = False
        self._refused = False
        self._refusal: int | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its ancestors
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._connections.add(self)
        if self._only_pid is not None and _peer(self._transport) != self._only_pid:
            log.warning("a connection of another process than the runtime's was refused")
            self.abort()
            return
        self._set_timer(KEEP_ALIVE_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._closing = True
        self._set_timer(None)
        if self._writable is not None and not self._writable.done():
            self._writable.cancel()
        if self._worker is not None:
            self._worker.cancel()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def data_received(self, data: bytes) -> None:
        if self._closing or self._refused:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(None)  # the request was taken as it is; what follows in another protocol is not
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause.status if isinstance(cause, _TooLargeError) else HTTPStatus.BAD_REQUEST)

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._partial = _Partial()
        self._set_timer(REQUEST_SECONDS)

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        self._partial.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        self._partial.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if int(self._partial.headers.get("content-length") or 0) > MAX_BODY_BYTES:
            raise _TooLargeError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

    def on_body(self, body: bytes) -> None:
        if len(self._partial.body) + len(body) > MAX_BODY_BYTES:
            raise _TooLargeError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        self._partial.body += body

    def on_message_complete(self) -> None:
        self._set_timer(None)
        partial, self._partial = self._partial, _Partial()
        path, _, query = partial.url.decode("latin-1").partition("?")
        self._requests.append(
            Request(
                method=self._parser.get_method().decode("latin-1"),
                path=path,
                query=dict(parse_qsl(query)) if query else {},
                headers=partial.headers,
                body=bytes(partial.body),
                keep_alive=self._parser.should_keep_alive(),
                target=partial.url.decode("latin-1"),
            )
        )
        if len(self._requests) >= MAX_PIPELINED and self._transport is not None:
            self._transport.pause_reading()
        if self._worker is None:
            self._worker = self._loop.create_task(self._work())

    # Our own.

    def _count_head(self, count: int) -> None:
        self._partial.head_bytes += count
        if self._partial.head_bytes > MAX_HEAD_BYTES:
            raise _TooLargeError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, self.close)

    def _refuse(self, status: int | None) -> None:
        """Read no more, answer what came before, then `status`, and close."""
        self._refused = True
        self._refusal = status
        self._set_timer(None)
        if self._transport is not None:
            self._transport.pause_reading()
        if self._worker is None:
            self._finish_refused()

    def _finish_refused(self) -> None:
        if self._transport is not None and self._refusal is not None and not self._closing:
            self._transport.write(_head(self._refusal, "application/json", length=0, keep_alive=False))
        self.close()

    async def _work(self) -> None:
        """Answer what has come in, one after the other; ends when nothing is left."""
        try:
            while self._requests and not self._closing:
                request = self._requests.popleft()
                response = await self._handler(request)
                await self._write(response, keep_alive=request.keep_alive)
                if not request.keep_alive:
                    self.close()
                elif self._transport is not None and not self._closing and not self._refused:
                    self._transport.resume_reading()
            if self._refused:
                self._finish_refused()
        except (TimeoutError, ConnectionError):
            self.abort()
        except Exception:
            log.exception("an answer broke off")
            self.abort()
        finally:
            self._worker = None
            if not self._closing:
                self._set_timer(KEEP_ALIVE_SECONDS)

    async def _write(self, response: Response, *, keep_alive: bool) -> None:
        transport = self._transport
        assert transport is not None
        if response.stream is None:
            head = _head(response.status, response.content_type, length=len(response.body), keep_alive=keep_alive)
            transport.write(head + response.body)
            await self._drain()
            return
        async with contextlib.aclosing(response.stream) as chunks:
            transport.write(_head(response.status, response.content_type, length=None, keep_alive=keep_alive))
            async for chunk in chunks:
                if chunk:
                    transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                    await self._drain()
            transport.write(b"0\r\n\r\n")

    async def _drain(self) -> None:
        if self._closing:
            raise ConnectionResetError("the peer hung up")
        if self._writable is not None:
            async with asyncio.timeout(WRITE_STALL_SECONDS):
                await self._writable

    @property
    def busy(self) -> bool:
        return self._worker is not None

    def close(self) -> None:
        """Close when what was written is sent."""
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.abort()


def _head(status: int, content_type: str, *, length: int | None, keep_alive: bool) -> bytes:
    body = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    connection = "" if keep_alive else "connection: close\r\n"
    phrase = HTTPStatus(status).phrase
    if status == HTTPStatus.NO_CONTENT:
        return f"HTTP/1.1 {status} {phrase}\r\n{connection}\r\n".encode()
    return f"HTTP/1.1 {status} {phrase}\r\ncontent-type: {content_type}\r\n{body}\r\n{connection}\r\n".encode()


def _peer(transport: asyncio.Transport) -> int:
    """The process that connected to a Unix socket (unix(7), SO_PEERCRED)."""
    credentials = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


class HttpServer:
    """Serves `handler` on listening sockets until `close`; with `only_pid`, to that process alone."""

    def __init__(self, handler: Handler, *, only_pid: int | None = None) -> None:
        self._handler = handler
        self._only_pid = only_pid
        self._connections: set[_Connection] = set()
        self._servers: list[asyncio.Server] = []

    async def listen(self, listener: socket.socket) -> None:
        """Serve a bound, listening stream socket, of the Unix kind or TCP. The server owns it from here on."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)

        def connection() -> _Connection:
            return _Connection(self._handler, self._connections, self._only_pid)

        if listener.family == socket.AF_UNIX:
            self._servers.append(await loop.create_unix_server(connection, sock=listener))
        else:
            self._servers.append(await loop.create_server(connection, sock=listener))

    async def close(self, grace_seconds: float = 1.0) -> None:
        """Take nothing new, let running answers end for `grace_seconds`, cut the rest."""
        for server in self._servers:
            server.close()
        deadline = asyncio.get_running_loop().time() + grace_seconds
        while any(one.busy for one in self._connections) and asyncio.get_running_loop().time() < deadline:
            for one in [one for one in self._connections if not one.busy]:
                one.close()
            await asyncio.sleep(0.01)
        for one in list(self._connections):
            one.abort() if one.busy else one.close()
        await asyncio.sleep(0)
