"""The SDK door: a loopback HTTP listener by which the vendors' own SDKs find the gateway from inside the sandbox.

Owns the listener and the addresses it gives out: `http://127.0.0.1:PORT/s/TOKEN`, a token for each session. A call that
comes by one goes on to the gateway's socket as a call of that session's running turn, bytes streaming both ways. Refuses
every other path of the gateway, and what a caller says of turns itself. Invariants: one request a connection, framed
anew, so that nothing can follow it; no more than a high-water mark of it is held; every wait has an end; nothing listens
until an address was asked for.

An address is no secret from the tenant's other processes in the sandbox, as nothing is there: they are one user. It keeps
turns apart from each other by mistake, and other users of a machine out where there is no sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import secrets
import socket
from collections.abc import AsyncGenerator, Iterable, MutableMapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol
from weakref import WeakValueDictionary

import httptools

from amplifier_api_server.runtime.gateway import Gateway, GatewayError
from amplifier_api_server.runtime.protocol import TURN_HEADER

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024  # the gateway's own limit is lower, and says so
HEAD_SECONDS = 10.0
BODY_IDLE_SECONDS = 60.0
WRITE_SECONDS = 120.0  # a caller that reads nothing for this long is gone
LINGER_SECONDS = 1.0
ANSWER_IDLE_SECONDS = 900.0  # the gateway has limits of its own, which end sooner and say why
KEY_TEXT = "not-a-key-the-gateway-adds-it"
_READ_BYTES = 64 * 1024
_PATH = re.compile(r"/s/([A-Za-z0-9_-]{16,64})(/v1/(?:models(?:/[^?#]*)?|[a-z][a-z0-9_/]*))(\?.*)?")
# Said by us, or of this connection alone, or what would speak for somebody (RFC 9110, 7.6.1).
_NOT_PASSED_ON = frozenset(
    (
        *("host", "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect"),
        *("content-length", "authorization", "x-api-key", "api-key", "cookie", "proxy-authorization"),
        *("proxy-connection", TURN_HEADER.lower()),
    )
)
_NOT_PASSED_BACK = frozenset(("connection", "keep-alive", "transfer-encoding", "content-length", "trailer", "upgrade"))


@dataclass(slots=True)
class _Head:
    """A request's head as it was read, and what has come of its body."""

    method: str = ""
    url: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    is_complete: bool = False
    body_is_complete: bool = False
    body: list[bytes] = field(default_factory=list)

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Caller(Protocol):
    """A session, as far as model calls are made by way of it."""

    def running_turn_id(self) -> str | None: ...


class SdkDoor:
    """Closed until `address` is first asked for; `close` ends it and every call under way."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._server: asyncio.Server | None = None
        self._opening = asyncio.Lock()
        self._callers: MutableMapping[str, Caller] = WeakValueDictionary()
        self._calls: set[asyncio.Task[None]] = set()

    async def environment(self, token: str) -> dict[str, str]:
        """What points the vendors' SDKs at this door, for one session. Opens it. Raises OSError."""
        base = f"http://127.0.0.1:{await self._open()}/s/{token}"
        return {
            "OPENAI_BASE_URL": f"{base}/v1",
            "OPENAI_API_KEY": KEY_TEXT,
            "ANTHROPIC_BASE_URL": base,
            "ANTHROPIC_API_KEY": KEY_TEXT,
        }

    def register(self, caller: Caller) -> str:
        """A new token for a session. It opens nothing any more when the session is gone."""
        token = secrets.token_urlsafe(24)
        self._callers[token] = caller
        return token

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _open(self) -> int:
        async with self._opening:
            if self._server is None:
                listening = socket.create_server(("127.0.0.1", 0), backlog=MAX_CONNECTIONS)
                self._server = await asyncio.start_server(self._serve, sock=listening, limit=_READ_BYTES)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._calls) >= MAX_CONNECTIONS:
            writer.transport.abort()  # an SDK takes it for a failed connection, and comes again
            return
        self._calls.add(task)
        try:
            await _Call(self._gateway, self._callers, reader, writer).run()
        except asyncio.CancelledError:
            pass  # the door is closed, or the caller has hung up
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the caller is gone
        except Exception:
            log.exception("a call of an SDK broke off")
        finally:
            self._calls.discard(task)
            writer.close()


class _Call:
    """One connection, and the one request on it."""

    def __init__(
        self,
        gateway: Gateway,
        callers: MutableMapping[str, Caller],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._gateway = gateway
        self._callers = callers
        self._reader = reader
        self._writer = writer
        self._head = _Head()
        self._head_bytes = 0
        self._body_bytes = 0
        self._has_answered = False
        self._leaving: asyncio.Task[None] | None = None
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._parser = httptools.HttpRequestParser(self)

    # What the parser calls. What follows the one request is not looked at.

    def on_url(self, url: bytes) -> None:
        if not self._head.is_complete:
            self._head.url += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head.is_complete:
            self._head.headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        if not self._head.is_complete:
            self._head.method = self._parser.get_method().decode("latin-1")
            self._head.is_complete = True

    def on_body(self, body: bytes) -> None:
        if not self._head.body_is_complete:
            self._head.body.append(body)
            self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        self._head.body_is_complete = True

    # Our own.

    async def run(self) -> None:
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                while not self._head.is_complete:
                    await self._read_more()
            path, turn = self._admit()
            if self._head.header("expect").lower() == "100-continue":
                self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await self._pass_on(path, turn)
        except _Refused as refused:
            await self._refuse(refused)
        except GatewayError as error:
            if self._has_answered:
                self._writer.transport.abort()  # so that the caller sees that it is not whole
            else:
                await self._refuse(_Refused(502, "provider_unavailable", str(error)))
        finally:
            if self._leaving is not None:
                self._leaving.cancel()

    async def _read_more(self) -> None:
        """The next bytes into the parser. Raises _Refused for what is no HTTP, ConnectionError at the end."""
        data = await self._reader.read(_READ_BYTES)
        if not data:
            raise ConnectionResetError("the caller hung up")
        if not self._head.is_complete:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES + _READ_BYTES:
                raise _Refused(431, "invalid_request", "the request's head is too large")
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise _Refused(400, "invalid_request", f"the request is no HTTP/1.1: {error}") from error
        if self._body_bytes > MAX_BODY_BYTES:
            raise _Refused(413, "request_too_large", f"a request has at most {MAX_BODY_BYTES} bytes")

    def _admit(self) -> tuple[str, str]:
        """The path at the gateway, and the turn that the call is for."""
        found = _PATH.fullmatch(self._head.url)
        if found is None or ".." in found[2] or "//" in found[2]:
            raise _Refused(404, "no_such_path", "there is nothing here but /v1/... of a session's own address")
        caller = self._callers.get(found[1])
        if caller is None:
            raise _Refused(403, "no_session", "no session has this address (any more)")
        turn = caller.running_turn_id()
        if turn is None:
            raise _Refused(403, "no_turn", "models can be called while a turn runs in the session, and none does")
        return found[2] + (found[3] or ""), turn

    async def _pass_on(self, path: str, turn: str) -> None:
        headers: dict[str, str] = {}
        for name, value in self._head.headers:
            if name not in _NOT_PASSED_ON:
                headers[name] = f"{headers[name]}, {value}" if name in headers else value
        headers[TURN_HEADER.lower()] = turn
        is_chunked = bool(self._head.header("transfer-encoding"))
        length = self._head.header("content-length")
        if is_chunked:
            headers["transfer-encoding"] = "chunked"
        else:
            headers["content-length"] = length or "0"
        async with self._gateway.request(
            self._head.method,
            path,
            body=self._body(is_chunked=is_chunked),
            headers=headers,
            idle_timeout_seconds=ANSWER_IDLE_SECONDS,
        ) as answer:
            passed = [(name, value) for name, value in answer.headers.items() if name not in _NOT_PASSED_BACK]
            self._has_answered = True
            await self._write(_head_of(answer.status, [*passed, ("transfer-encoding", "chunked")]))
            async for chunk in answer.chunks():
                await self._write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await self._write(b"0\r\n\r\n")
        if not self._head.body_is_complete:
            await self._linger()

    async def _body(self, *, is_chunked: bool) -> AsyncGenerator[bytes, None]:
        """The request's body as it comes, framed as the head that is passed on says."""
        while True:
            pieces, self._head.body = self._head.body, []
            for piece in pieces:
                yield b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece
            if self._head.body_is_complete and not self._head.body:
                break
            async with asyncio.timeout(BODY_IDLE_SECONDS):
                await self._read_more()
        if is_chunked:
            yield b"0\r\n\r\n"
        self._leaving = asyncio.create_task(self._until_left())

    async def _until_left(self) -> None:
        """Cut the call when its caller hangs up: the gateway ends what it does for it."""
        with contextlib.suppress(OSError):
            while await self._reader.read(_READ_BYTES):
                pass
        self._task.cancel()

    async def _linger(self) -> None:
        """Let a caller whose body was not wanted to its end read the answer: closing now would reset its connection."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while await self._reader.read(_READ_BYTES):
                    pass

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        async with asyncio.timeout(WRITE_SECONDS):
            await self._writer.drain()

    async def _refuse(self, refused: _Refused) -> None:
        """In the shape of the dialect that was asked for; the SDKs' own retries are told not to."""
        if "anthropic-version" in dict(self._head.headers):
            kind = {403: "permission_error", 404: "not_found_error", 413: "request_too_large"}.get(refused.status)
            told: Any = {
                "type": "error",
                "error": {"type": kind or "invalid_request_error", "message": f"{refused.code}: {refused.message}"},
            }
        else:
            told = {"message": refused.message, "type": "invalid_request_error", "param": None, "code": refused.code}
            told = {"error": told}
        body = json.dumps(told).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
        if refused.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            headers.append(("x-should-retry", "false"))
        await self._write(_head_of(refused.status, headers) + body)
        if not self._head.body_is_complete:
            await self._linger()


def _head_of(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status} {_phrase(status)}", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\nconnection: close\r\n\r\n").encode("latin-1")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Other"
