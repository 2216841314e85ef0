"""The runtime's only way out: a streaming HTTP/1.1 client for the gateway's Unix socket, on httptools.

Owns the connections to the gateway. Refuses to retry by itself: it says whether anything was sent. Invariant: every
wait for the peer ends after `idle_timeout_seconds`; leaving the context of a request in any way frees or aborts its
connection; no more than one high-water mark of an answer is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import cast

import httptools

from amplifier_api_server.runtime.protocol import Environment

CONNECT_SECONDS = 5.0
MAX_POOLED = 8
MAX_POOLED_AGE_SECONDS = 2.0  # below any server's keep-alive, so that a reused connection is rarely a dead one
HIGH_WATER_BYTES = 256 * 1024
MAX_HEAD_BYTES = 64 * 1024


class GatewayError(Exception):
    """The gateway could not be spoken with."""


class GatewayUnreachableError(GatewayError):
    """No connection could be made, so nothing was sent."""


class GatewayBrokenError(GatewayError):
    """The connection ended, or said what is not HTTP, before the answer was whole."""


class GatewaySilentError(GatewayError):
    """Nothing came for the idle timeout."""


class _Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: deque[bytes] = deque()
        self._held_bytes = 0
        self._head_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: GatewayError | None = None
        self._reading_paused = False
        self._body_until_close = False
        self._keeps_alive = False
        self._writable: asyncio.Future[None] | None = None
        self.sent_whole = True
        self.lost = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self.head_complete = False
        self.complete = False
        self.pooled_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its ancestors

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if not self.complete:
            if self.head_complete and self._body_until_close and exc is None:
                self.complete = True
            else:
                self._error = self._error or GatewayBrokenError("the gateway closed the connection in mid-answer")
        self.resume_writing()
        self._wake()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._error = GatewayBrokenError(f"the gateway's answer is not HTTP: {error}")
            self.abort()
        self._wake()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError("headers too large")
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:  # noqa: PLR2004 - an interim answer (RFC 9110, 15.2); the real one follows
            self.headers.clear()
            return
        self._body_until_close = "content-length" not in self.headers and "transfer-encoding" not in self.headers
        self.head_complete = True

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._held_bytes += len(body)
        if self._held_bytes > HIGH_WATER_BYTES and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.head_complete:
            self.complete = True
            self._keeps_alive = self._parser.should_keep_alive()  # the parser only knows now

    def send(self, head: bytes, body: bytes) -> None:
        if self._transport is None or self.lost:
            raise GatewayBrokenError("the connection is closed")
        self._parser = httptools.HttpResponseParser(self)
        self.status, self.headers, self.head_complete, self.complete, self._head_bytes = 0, {}, False, False, 0
        self._transport.write(head + body)

    async def send_on(self, body: AsyncGenerator[bytes, None], idle_timeout_seconds: float | None) -> None:
        """Send the body as it comes. An answer may come before its end."""
        self.sent_whole = False
        try:
            async with contextlib.aclosing(body) as pieces:
                async for piece in pieces:
                    if self.lost or self._transport is None:
                        return
                    self._transport.write(piece)
                    if self._writable is not None:
                        async with asyncio.timeout(idle_timeout_seconds):
                            await self._writable
            self.sent_whole = True
        finally:
            self._wake()

    async def wait(self, idle_timeout_seconds: float | None) -> None:
        """Until something changed; None waits for ever. Raises what went wrong."""
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(idle_timeout_seconds):
                await self._waiter
        except TimeoutError:
            raise GatewaySilentError(f"nothing came from the gateway for {idle_timeout_seconds:g} s") from None
        finally:
            self._waiter = None

    def take(self) -> bytes:
        """What has come of the body since the last call."""
        taken = b"".join(self._chunks)
        self._chunks.clear()
        self._held_bytes = 0
        if self._reading_paused and self._transport is not None and not self.lost:
            self._reading_paused = False
            self._transport.resume_reading()
        return taken

    @property
    def reusable(self) -> bool:
        return self.complete and self.sent_whole and not self.lost and not self._chunks and self._keeps_alive

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Answer:
    """An answer whose head has come. Its body can be read once."""

    def __init__(self, connection: _Connection, idle_timeout_seconds: float | None) -> None:
        self._connection = connection
        self._idle_timeout_seconds = idle_timeout_seconds
        self.status = connection.status
        self.headers = dict(connection.headers)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises GatewayBrokenError when it ends early, GatewaySilentError when it stops."""
        while True:
            if taken := self._connection.take():
                yield taken
            elif self._connection.complete:
                return
            else:
                await self._connection.wait(self._idle_timeout_seconds)

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body; GatewayBrokenError when it is longer than `limit_bytes`."""
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > limit_bytes:
                raise GatewayBrokenError(f"the gateway's answer is longer than {limit_bytes} bytes")
        return bytes(body)


class Gateway:
    """The gateway at one socket path."""

    def __init__(self, path: str, *, descriptor: int | None = None) -> None:
        self._path = path
        self._descriptor = descriptor
        self._pool: list[_Connection] = []

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Gateway:
        """By the descriptor that the launcher handed in, or by path where there is no sandbox."""
        if descriptor := environment.get(Environment.GATEWAY_FD):
            os.set_inheritable(int(descriptor), False)
            return cls(f"/proc/self/fd/{int(descriptor)}", descriptor=int(descriptor))
        return cls(environment[Environment.GATEWAY_PATH])

    def to_hand_on(self) -> tuple[dict[str, str], tuple[int, ...]]:
        """What another process of this program finds it by: an environment, and descriptors to inherit."""
        if self._descriptor is None:
            return {Environment.GATEWAY_PATH: self._path}, ()
        return {Environment.GATEWAY_FD: str(self._descriptor)}, (self._descriptor,)

    def is_there(self) -> bool:
        """Whether the control plane listens. Blocking, for the start: a socket whose listener has died refuses for ever."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(CONNECT_SECONDS)
            try:
                probe.connect(self._path)
            except TimeoutError:
                return True  # it has more to do than it can, but it is there
            except OSError:
                return False
        return True

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | AsyncGenerator[bytes, None] = b"",
        headers: Mapping[str, str] | None = None,
        idle_timeout_seconds: float | None,
    ) -> AsyncGenerator[Answer, None]:
        """Send a JSON request; gives the answer as soon as its head has come.

        A body that comes piece by piece is sent so; `headers`, in lower case, say how it is framed. An idle timeout of
        None is for a peer that is watched in another way.
        """
        connection = await self._connection()
        sending: asyncio.Future[None] | None = None
        try:
            fields = {"host": "gateway", "content-type": "application/json"}
            if isinstance(body, bytes):
                fields["content-length"] = str(len(body))
            fields.update(headers or {})
            head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            connection.send(head.encode("latin-1") + b"\r\n", body if isinstance(body, bytes) else b"")
            if not isinstance(body, bytes):
                sending = asyncio.ensure_future(connection.send_on(body, idle_timeout_seconds))
            while not connection.head_complete:
                if sending is not None and sending.done():
                    sending.result()
                await connection.wait(idle_timeout_seconds)
            yield Answer(connection, idle_timeout_seconds)
        finally:
            if sending is not None:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            if connection.reusable and len(self._pool) < MAX_POOLED:
                connection.pooled_at = asyncio.get_running_loop().time()
                self._pool.append(connection)
            else:
                connection.abort()

    async def close(self) -> None:
        for connection in self._pool:
            connection.abort()
        self._pool.clear()
        await asyncio.sleep(0)

    async def _connection(self) -> _Connection:
        loop = asyncio.get_running_loop()
        while self._pool:
            pooled = self._pool.pop()
            if not pooled.lost and loop.time() - pooled.pooled_at < MAX_POOLED_AGE_SECONDS:
                return pooled
            pooled.abort()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_unix_connection(_Connection, self._path)
        except (OSError, TimeoutError) as error:
            raise GatewayUnreachableError(f"the gateway can't be reached: {error or type(error).__name__}") from error
        return connection
