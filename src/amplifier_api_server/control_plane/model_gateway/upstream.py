"""Calls to a provider's HTTP/1.1 server, over connections that are kept.

Owns the pool and the three ways a call fails on the wire. Refuses to know models, keys and budgets. A general client
costs three times the CPU a chunk (docs/decisions), and chunks are what there is most of here. Invariant: an answer that
is not read stops its server; nothing is sent twice, but where a kept connection turns out closed before a byte of an
answer came.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from amplifier_api_server.control_plane.model_gateway.codings import Decoder, Undecodable, UnknownCoding, decoder_of
from amplifier_api_server.control_plane.model_gateway.exchange import (
    Broken,
    Encoded,
    Exchange,
    Stalled,
    Unreachable,
    UpstreamError,
)
from amplifier_api_server.control_plane.model_gateway.proxies import Proxy, open_tunnel, proxy_for

__all__ = ["Answer", "Broken", "Encoded", "Stalled", "Timeouts", "Unreachable", "Upstream", "UpstreamError"]

_MAX_IDLE = 128  # connections kept for one origin
_KEPT_SECONDS = 30.0  # below the 60 to 75 that servers and load balancers commonly keep theirs
_STALE_SECONDS = 1.0  # a round trip: a server that took longer to hang up may have worked on the request
_END_SECONDS = 0.25  # for the end of a body whose content is all there


@dataclass(frozen=True, slots=True)
class Timeouts:
    connect_seconds: float
    idle_seconds: float  # between two bytes, and until the first


Origin = tuple[str, str, int]


class Answer:
    """A provider's answer. `close` it, whether it was read or not. A compressed body is read as what it was before."""

    __slots__ = (
        "_decoder",
        "_exchange",
        "_idle_seconds",
        "_is_closed",
        "_origin",
        "_unread",
        "_upstream",
        "headers",
        "status",
    )

    def __init__(self, upstream: Upstream, origin: Origin, exchange: Exchange, idle_seconds: float) -> None:
        self._upstream = upstream
        self._origin = origin
        self._exchange = exchange
        self._idle_seconds = idle_seconds
        self._is_closed = False
        self._unread = b""
        self._decoder: Decoder | None = None
        self.status = exchange.status
        self.headers: Mapping[bytes, bytes] = exchange.headers

    async def read(self) -> bytes:
        """What of the body came since; empty at its end. Raises Stalled, Encoded, and Broken when it is cut short."""
        if self._unread:
            unread, self._unread = self._unread, b""
            return unread
        if self._decoder is None and b"content-encoding" in self.headers:
            try:
                self._decoder = decoder_of(self.headers[b"content-encoding"])
            except UnknownCoding as error:
                raise Encoded(
                    f"the provider's answer is compressed ({error}) although that was not asked for"
                ) from error
        if self._decoder is None:
            return await self._exchange.read(self._idle_seconds)
        return await self._decoded(self._decoder)

    def unread(self, data: bytes) -> None:
        """Give back what was read, to be read again."""
        self._unread = data + self._unread

    async def _decoded(self, decoder: Decoder) -> bytes:
        try:
            while not (piece := decoder.piece()):
                data = await self._exchange.read(self._idle_seconds)
                if not data:
                    decoder.finish()
                    return b""
                decoder.feed(data)
        except Undecodable as error:
            raise Broken(f"the provider's answer is not compressed as it says: {error}") from error
        return piece

    def close(self) -> None:
        """Keep the connection if the body is at its end, else cut it. Safe to call again."""
        if not self._is_closed:
            self._is_closed = True
            self._let_go()

    def end(self) -> None:
        """Like `close`, for a body whose content is all there: its end may come a moment later."""
        if self._exchange.is_over:
            self.close()
        elif not self._is_closed:
            self._is_closed = True
            self._exchange.when_complete(_END_SECONDS, self._let_go)

    def _let_go(self) -> None:
        if self._exchange.is_reusable:
            self._upstream.keep(self._origin, self._exchange)
        else:
            self._exchange.abort()


class Upstream:
    """Opens calls and keeps connections. `ssl_context` None: the system's certificates."""

    def __init__(self, *, ssl_context: ssl.SSLContext | None = None, environ: Mapping[str, str] | None = None) -> None:
        self._ssl_context = ssl_context
        self._environ = environ
        self._idle: defaultdict[Origin, list[Exchange]] = defaultdict(list)
        self._open: set[Exchange] = set()
        self._is_closed = False

    async def call(self, method: str, url: str, headers: Mapping[str, str], body: bytes, timeouts: Timeouts) -> Answer:
        """Send a request and return when its answer's head is there.

        Raises Unreachable (no connection: nothing was sent), Stalled, Broken.
        """
        parts = urlsplit(url)
        origin = _origin(parts)
        try:
            proxy = proxy_for(parts, self._environ)
        except OSError as error:
            raise Unreachable(str(error)) from error
        head = _head(method, parts, headers, len(body), proxy)
        loop = asyncio.get_running_loop()
        while kept := self._take(origin):
            began = loop.time()
            try:
                await kept.send(head, body, timeouts.idle_seconds)
            except Broken:
                # Closed at once and without a byte: it was stale, and the request reached nobody.
                if kept.heard_nothing and kept.was_closed and loop.time() - began < _STALE_SECONDS:
                    continue
                raise
            return Answer(self, origin, kept, timeouts.idle_seconds)
        fresh = await self._connect(parts, origin, proxy, timeouts.connect_seconds)
        await fresh.send(head, body, timeouts.idle_seconds)
        return Answer(self, origin, fresh, timeouts.idle_seconds)

    async def close(self) -> None:
        """Cut every connection."""
        self._is_closed = True
        open_now = list(self._open)
        for exchange in open_now:
            exchange.abort()
        if open_now:
            await asyncio.wait([asyncio.ensure_future(one.lost()) for one in open_now], timeout=2)

    def keep(self, origin: Origin, exchange: Exchange) -> None:
        """Take a connection whose answer was read to its end."""
        idle = self._idle[origin]
        if self._is_closed or len(idle) >= _MAX_IDLE:
            exchange.abort()
            return
        exchange.rest(_KEPT_SECONDS, lambda: _discard(idle, exchange))
        idle.append(exchange)

    def _take(self, origin: Origin) -> Exchange | None:
        idle = self._idle.get(origin)
        while idle:
            exchange = idle.pop()
            if exchange.is_open:
                exchange.wake()
                return exchange
        return None

    async def _connect(
        self, parts: SplitResult, origin: Origin, proxy: Proxy | None, timeout_seconds: float
    ) -> Exchange:
        loop = asyncio.get_running_loop()
        scheme, host, port = origin
        context = self._context() if scheme == "https" else None
        exchange = Exchange(self._open)
        try:
            async with asyncio.timeout(timeout_seconds):
                if proxy is None:
                    await loop.create_connection(
                        lambda: exchange, host, port, ssl=context, server_hostname=host if context else None
                    )
                elif context is None:
                    await loop.create_connection(lambda: exchange, proxy.host, proxy.port)
                else:
                    await open_tunnel(proxy, host, port, context, exchange)
        except (OSError, TimeoutError, ssl.SSLError, UnicodeError) as error:
            exchange.abort()
            reason = str(error) or type(error).__name__
            raise Unreachable(f"{parts.hostname}:{port} can't be reached: {reason}") from error
        return exchange

    def _context(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
        return self._ssl_context


def _discard(idle: list[Exchange], exchange: Exchange) -> None:
    with contextlib.suppress(ValueError):
        idle.remove(exchange)


def _origin(parts: SplitResult) -> Origin:
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise Unreachable(f"{parts.geturl()!r} should be an http or https address")
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _head(method: str, parts: SplitResult, headers: Mapping[str, str], length: int, proxy: Proxy | None) -> bytes:
    """A request's head. Through a proxy without TLS the target is the whole address (RFC 9112, 3.2.2)."""
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = parts.netloc.rpartition("@")[2]
    fields = [f"Host: {host}"]
    if proxy is not None and parts.scheme == "http":
        target = f"http://{host}{target}"
        if proxy.authorization:
            fields.append(f"Proxy-Authorization: {proxy.authorization}")
    fields += (f"{name}: {value}" for name, value in headers.items())
    if length or method == "POST":
        fields.append(f"Content-Length: {length}")
    return "\r\n".join([f"{method} {target} HTTP/1.1", *fields, "", ""]).encode("latin-1")
