"""One connection to a provider: a request out, an answer in, again and again.

Owns the bytes of one connection and their flow. Invariant: at most one chunk beyond `_HIGH_WATER_BYTES` is held of an
answer that is not read, because then the socket is not read either.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools

_HIGH_WATER_BYTES = 256 * 1024
_MAX_HEAD_BYTES = 64 * 1024
_INFORMATIONAL = range(100, 200)


class UpstreamError(Exception):
    """A call that failed on the wire. The message names the host and the reason, never a header or a body."""


class Unreachable(UpstreamError):
    """No connection could be made: nothing was sent."""


class Stalled(UpstreamError):
    """Not a byte for longer than allowed."""


class Broken(UpstreamError):
    """The connection ended or spoke no HTTP before the answer was complete."""


class Encoded(UpstreamError):
    """The body is in a coding that was not asked for and can't be read: it would be so again."""


class Exchange(asyncio.Protocol):
    """The connection. `registry` holds it for as long as it is open."""

    def __init__(self, registry: set[Exchange]) -> None:
        self._registry = registry
        self._transport: asyncio.Transport | None = None
        self._lost = asyncio.get_running_loop().create_future()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._on_lost: Callable[[], None] | None = None
        self._on_complete: Callable[[], None] | None = None
        self._is_paused = False
        self._is_resting = False
        self._failure = ""
        self._begin()

    def _begin(self) -> None:
        """Ready for the next answer."""
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._head_bytes = 0
        self._is_head_read = False
        self._is_complete = False
        self._is_kept = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.heard_nothing = True

    # What callers do.

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing() and not self._lost.done()

    @property
    def was_closed(self) -> bool:
        """The other side ended it, and not in the midst of anything."""
        return self._lost.done() and not self._failure

    @property
    def is_over(self) -> bool:
        return self._is_complete or self._lost.done()

    @property
    def is_reusable(self) -> bool:
        return self._is_complete and self.is_open and self._is_kept

    async def send(self, head: bytes, body: bytes, idle_seconds: float) -> None:
        """Send a request and wait for the head of its answer. Raises Stalled or Broken, and is closed then."""
        assert self._transport is not None
        try:
            self._transport.writelines([head, body] if body else [head])
            while not self._is_head_read and not self._lost.done() and not self._failure:
                await self._wait(idle_seconds)
        except BaseException:
            self.abort()
            raise
        if not self._is_head_read:
            self.abort()
            raise Broken(self._failure or "the provider closed the connection without an answer")

    async def read(self, idle_seconds: float) -> bytes:
        """What came since; empty at the end. Raises Stalled or Broken."""
        while not self._chunks:
            if self._is_complete:
                return b""
            if self._failure or self._lost.done():
                raise Broken(self._failure or "the provider closed the connection in mid-answer")
            await self._wait(idle_seconds)
        chunk = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        return chunk

    def rest(self, seconds: float, on_lost: Callable[[], None]) -> None:
        """Stay open without a request, for so long at most; `on_lost` when it ends meanwhile."""
        self._is_resting = True
        self._on_lost = on_lost
        self._set_timer(seconds, self.abort)

    def wake(self) -> None:
        """Used again."""
        self._is_resting = False
        self._on_lost = None
        self._clear_timer()
        self._begin()

    def when_complete(self, seconds: float, then: Callable[[], None]) -> None:
        """Call `then` once, when the answer is complete, the connection lost, or the time over."""
        self._on_complete = then
        self._chunks.clear()
        self._set_timer(seconds, self._completed)

    def abort(self) -> None:
        self._clear_timer()
        if self._transport is not None:
            self._transport.abort()

    async def lost(self) -> None:
        """Returns when the connection is gone."""
        await asyncio.shield(self._lost)

    # What the transport says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._registry.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._registry.discard(self)
        self._clear_timer()
        # A body without a length ends with its connection (RFC 9112, 6.3).
        if exc is None and self._is_head_read and not self._is_complete and not self._has_length:
            self._is_complete = True
        if exc is not None and not self.heard_nothing and not self._is_complete:
            self._failure = self._failure or "the connection to the provider was reset in mid-answer"
        if not self._lost.done():
            self._lost.set_result(None)
        self._wake()
        self._completed()
        if self._on_lost is not None:
            self._on_lost()

    def data_received(self, data: bytes) -> None:
        if self._is_resting:  # nobody asked: whatever this is, it must not become the next call's answer
            self.abort()
            return
        self.heard_nothing = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"the provider's answer is not HTTP: {type(error).__name__}")
        if self._buffered > _HIGH_WATER_BYTES and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    # What the parser says.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _MAX_HEAD_BYTES:
            raise ValueError("the answer's head is too large")
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status in _INFORMATIONAL:
            self.headers = {}
        else:
            self._is_head_read = True
            self._is_kept = self._parser.should_keep_alive()  # it forgets what it knew when the message is complete

    def on_body(self, body: bytes) -> None:
        if self._on_complete is None:
            self._chunks.append(body)
            self._buffered += len(body)

    def on_message_complete(self) -> None:
        if self._is_complete:
            raise ValueError("a second answer to one request")
        if self.status in _INFORMATIONAL:
            return
        self._is_complete = True
        self._completed()

    @property
    def _has_length(self) -> bool:
        return b"content-length" in self.headers or b"transfer-encoding" in self.headers

    def _completed(self) -> None:
        then, self._on_complete = self._on_complete, None
        if then is not None:
            self._clear_timer()
            asyncio.get_running_loop().call_soon(then)  # not from within the parser

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason
        self.abort()

    async def _wait(self, seconds: float) -> None:
        """Until something happens. Raises Stalled after `seconds`.

        A timer and a future, not asyncio.timeout: this is awaited once a chunk.
        """
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = loop.call_later(seconds, self._stall)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _stall(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(Stalled("the provider was silent for too long"))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _set_timer(self, seconds: float, then: Callable[[], None]) -> None:
        self._clear_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
