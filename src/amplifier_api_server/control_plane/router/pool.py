"""Connections to runtimes, kept alive: a small HTTP/1.1 client on httptools, for Unix sockets and TCP.

Owns connections and their limits. Refuses to know sessions, retries and errors' meanings. Invariants: a connection is
reused only after an answer was read to its very end, and only if nothing came after it; what is buffered of an answer is
bounded, because reading stops when the reader of it is slow, and heads, trailers and framing have a limit; every wait has a
limit of its own (connect, the whole head, idle, the whole of an answer that is read at once), and no total time cuts a
stream. What is at the other end may be hostile: it harms its own tenant alone.

Why not an HTTP library: this carries every event of every turn, and its like took twenty times the CPU a request
(docs/decisions/0005-own-connection-pool.md).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from time import monotonic
from typing import Final

import httptools

from amplifier_api_server.control_plane.pods.launcher import Address
from amplifier_api_server.control_plane.router.errors import Broken, DialError, HeadTimeout, IdleTimeout

_HIGH_WATER_BYTES: Final = 64 * 1024
_IDLE_CONNECTIONS_EACH: Final = 32
_KEEP_SECONDS: Final = 55.0  # well below the runtime's own limit, so that we are the ones who hang up
_BARREN_BYTES: Final = 64 * 1024  # a head, trailers, or chunks' framing, without a byte of body in between

Headers = list[tuple[bytes, bytes]]


class _Connection(asyncio.Protocol):
    """One connection and, at most, one answer under way on it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.parser = httptools.HttpResponseParser(self)  # reads one answer after the other
        self.lost = False
        self.used_at = 0.0
        self.is_resting = False  # kept, and nobody waits for an answer
        self._loop = asyncio.get_running_loop()
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self._barren_bytes = 0  # since the last byte of a body: the parser keeps a head's pieces, without a bound
        self.chunks: deque[bytes] = deque()
        self.buffered = 0
        self.complete = False
        self.failed = False
        self.keep = False
        self._paused = False
        self._waiter: asyncio.Future[bool] | None = None

    # What asyncio calls.
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self.is_resting:  # nobody asked: whatever this is, it must not become the next request's answer
            self._fail()
            return
        status = self.status
        self._barren_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail()
        if self._barren_bytes > _BARREN_BYTES and not self.complete:
            self._fail()
        # Not at every byte: whoever waits would begin to wait anew, and never end.
        if self.chunks or self.complete or self.failed or self.status != status:
            self._wake()

    def _fail(self) -> None:
        self.failed = True
        self.close()

    def eof_received(self) -> None:
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._can_write.set()
        self._wake()

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    # What httptools calls.
    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.status:  # an interim answer, or a second one to one request
            raise ValueError("more than one head")
        self.status = self.parser.get_status_code()
        self.keep = self.parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self._barren_bytes = 0
        self.chunks.append(body)
        self.buffered += len(body)
        if self.buffered > _HIGH_WATER_BYTES and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        self.complete = True

    # What the pool and the answer call.
    def begin(self) -> None:
        self.is_resting = False
        self._reset()

    @property
    def reusable(self) -> bool:
        return self.complete and self.keep and not self.failed and not self.lost and not self.chunks

    async def send(self, data: bytes, timeout_seconds: float) -> None:
        if self.lost or self.transport is None:
            raise DialError("the connection was closed")
        self.transport.write(data)
        if not self._can_write.is_set():
            async with asyncio.timeout(timeout_seconds):
                await self._can_write.wait()

    async def wait(self, seconds: float | None) -> bool:
        """Until something came, or the connection is lost; False when `seconds` have passed before.

        A timer of its own, because `asyncio.timeout` takes seven times as long and this is waited for at every event.
        """
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self._waiter = waiter
        timer = None if seconds is None else self._loop.call_later(seconds, _answer, waiter, False)
        try:
            return await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def take(self) -> bytes:
        """Everything that is buffered, as one piece."""
        data = self.chunks.popleft() if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks.clear()
        self.buffered = 0
        if self._paused and not self.lost and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()
        return data

    def close(self) -> None:
        self.lost = True
        if self.transport is not None:
            self.transport.abort()

    def _wake(self) -> None:
        if self._waiter is not None:
            _answer(self._waiter, True)


class Answer:
    """A runtime's answer: head first, body as it comes. Close it, or read it to its end."""

    def __init__(self, pool: Pool, address: Address, connection: _Connection) -> None:
        self._pool, self._address, self._connection = pool, address, connection
        self.status = connection.status
        self.headers = connection.headers
        self._ended = False

    async def chunks(
        self, idle_timeout_seconds: float | None = None, *, tick_seconds: float | None = None
    ) -> AsyncIterator[bytes]:
        """The body's bytes as they arrive; with `tick_seconds` an empty piece whenever nothing came for that long.

        As `next` does; leaving early closes the connection.
        """
        seconds = idle_timeout_seconds if tick_seconds is None else tick_seconds
        try:
            while True:
                try:
                    chunk = await self.next(seconds)
                except IdleTimeout:
                    if tick_seconds is None:
                        raise
                    chunk = b""
                if chunk is None:
                    return
                yield chunk
        finally:
            self.close()

    async def next(self, idle_timeout_seconds: float | None) -> bytes | None:
        """What has come of the body since the last time, waiting if that is nothing; None at the end.

        Raises IdleTimeout when nothing comes for so long (None: waits for ever) and Broken when the connection ends before
        the body does.
        """
        connection = self._connection
        while not connection.chunks:
            if connection.complete:
                return None
            if connection.lost or connection.failed:
                raise Broken("the connection ended in the middle of an answer")
            if not await connection.wait(idle_timeout_seconds):
                raise IdleTimeout("nothing came for too long")
        return connection.take()

    @property
    def is_over(self) -> bool:
        """Everything has come and was taken."""
        return self._connection.complete and not self._connection.chunks

    @property
    def must_wait(self) -> bool:
        """Whether `next` would have to wait for something."""
        return not (self._connection.chunks or self._connection.complete)

    async def read(self, limit_bytes: int, timeout_seconds: float) -> bytes:
        """The whole body, within `timeout_seconds`. Raises Broken when it is longer than `limit_bytes`, and as `next`."""
        parts, size = [], 0
        deadline = monotonic() + timeout_seconds
        try:
            while (chunk := await self.next(max(0.0, deadline - monotonic()))) is not None:
                parts.append(chunk)
                size += len(chunk)
                if size > limit_bytes:
                    raise Broken(f"the answer is longer than {limit_bytes} bytes")
        finally:
            self.close()
        return b"".join(parts)

    @property
    def is_closed(self) -> bool:
        """Nobody reads it any more."""
        return self._ended

    def cut(self) -> None:
        """End the connection, from anywhere: whoever reads from it finds it broken."""
        self._connection.close()

    def close(self) -> None:
        """Give the connection back if the answer was read to its end, else end it. Idempotent."""
        if not self._ended:
            self._ended = True
            self._pool._give_back(self._address, self._connection)  # noqa: SLF001 - the two are one thing


class Pool:
    """Kept connections to any number of runtimes. `close()` ends them all."""

    def __init__(self, *, connect_timeout_seconds: float = 2.0) -> None:
        self._connect_timeout_seconds = connect_timeout_seconds
        self._idle: dict[Address, deque[_Connection]] = {}
        self._closed = False

    async def request(
        self,
        address: Address,
        method: str,
        path: str,
        *,
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        head_timeout_seconds: float | None = 30.0,
    ) -> Answer:
        """Send one request and return when its answer's head has come.

        Raises DialError when nothing was sent, Broken or HeadTimeout when it may have been. A kept connection that is
        found closed before it is written to is replaced by a new one.
        """
        message = _encode(method, path, headers, body)
        kept = self._take_idle(address)
        if kept is not None:
            try:
                return await self._exchange(address, kept, message, head_timeout_seconds)
            except DialError:
                pass  # it was closed while it lay idle, and nothing was sent on it
        return await self._exchange(address, await self._dial(address), message, head_timeout_seconds)

    async def _exchange(
        self, address: Address, connection: _Connection, message: bytes, head_timeout_seconds: float | None
    ) -> Answer:
        connection.begin()
        try:
            await connection.send(message, self._connect_timeout_seconds)
            while not connection.status or connection.failed:
                if connection.lost or connection.failed:
                    raise Broken("the connection ended before an answer")
                if not await connection.wait(head_timeout_seconds):
                    raise HeadTimeout("no answer began in time")
        except TimeoutError as error:
            connection.close()
            raise HeadTimeout("the request could not be sent in time") from error
        except BaseException:
            connection.close()
            raise
        return Answer(self, address, connection)

    async def _dial(self, address: Address) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_seconds):
                if address.path is not None:
                    _, connection = await loop.create_unix_connection(_Connection, address.path)
                else:
                    host, port = address.host or "127.0.0.1", address.port or 0
                    _, connection = await loop.create_connection(_Connection, host, port)
        except (OSError, TimeoutError) as error:
            raise DialError(f"no connection to the runtime: {error or type(error).__name__}") from error
        return connection

    def _take_idle(self, address: Address) -> _Connection | None:
        kept = self._idle.get(address)
        oldest = monotonic() - _KEEP_SECONDS
        while kept:
            connection = kept.pop()
            if not connection.lost and connection.used_at > oldest:
                return connection
            connection.close()
        return None

    def _give_back(self, address: Address, connection: _Connection) -> None:
        if not connection.reusable or self._closed:
            connection.close()
            return
        kept = self._idle.setdefault(address, deque())
        connection.used_at = monotonic()
        connection.is_resting = True
        kept.append(connection)
        if len(kept) > _IDLE_CONNECTIONS_EACH:
            kept.popleft().close()

    def forget(self, address: Address) -> None:
        """End the kept connections to a runtime that is gone."""
        for connection in self._idle.pop(address, ()):
            connection.close()

    def close(self) -> None:
        self._closed = True
        for address in list(self._idle):
            self.forget(address)


def _answer(waiter: asyncio.Future[bool], has_come: bool) -> None:
    if not waiter.done():
        waiter.set_result(has_come)


def _encode(method: str, path: str, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    lines = [f"{method} {path} HTTP/1.1\r\nHost: runtime\r\n".encode("ascii")]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    if body or method in {"POST", "PUT"}:
        lines.append(b"Content-Length: %d\r\n" % len(body))
    lines.append(b"\r\n")
    lines.append(body)
    return b"".join(lines)
