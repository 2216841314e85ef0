"""One stream to one client: a runtime's bytes as they come, until the turn ends or the client may or will read no more.

Owns what ends a stream early: the client leaves (one that reads nothing for long is cut off by its connection, which is the
same), or its key is revoked. Both cut the task that writes, and nothing else: the turn runs on. A runtime that goes on, or
stays silent, after its turn has ended is cut off, and the client is told how the turn ended. What watches for them is
made only once there is something to wait for: a stream that is there whole ends before anybody can leave it.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Final

import structlog

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.router.errors import Broken, IdleTimeout, RouterError
from amplifier_api_server.control_plane.router.pool import Answer
from amplifier_api_server.control_plane.routes import Receive, Send
from amplifier_api_server.control_plane.sessions.endings import Endings
from amplifier_api_server.control_plane.sessions.live import LiveTurn
from amplifier_api_server.control_plane.sessions.streams import OpenStreams
from amplifier_api_server.runtime.protocol import MAX_TURN_EVENTS_BYTES
from amplifier_api_server.tenants.errors import DomainError

log = structlog.get_logger(__name__)

STREAM_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
_HEARTBEAT: Final = b": still here\n\n"
_HEARTBEAT_SECONDS: Final = 15.0  # below the idle time-outs of common proxies (nginx: 60 s, AWS ALB: 60 s)
_AFTER_END_SECONDS: Final = 5.0  # for the rest of a stream whose turn has ended, while nothing of it comes
_AFTER_END_BYTES: Final = 2 * MAX_TURN_EVENTS_BYTES  # and what may come: to one that reads slowly, the whole of it
_NUMBER = re.compile(rb"(?:^|\n)id: req_[0-9A-Za-z]+:(\d{1,9})\n")


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads a stream, and how to tell that it may or will read no more."""

    principal: Principal
    receive: Receive
    streams: OpenStreams


class Pipe:
    """Run it once, in the task that answers the request. `end` cuts it, from anywhere, and is safe to call again."""

    def __init__(self, endings: Endings, turn: LiveTurn, answer: Answer, send: Send, reader: Reader) -> None:
        self._endings = endings
        self._turn = turn
        self._answer = answer
        self._send = send
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._is_cut = False
        self._heard_at: float | None = None  # the loop's clock; None while nothing is waited for
        self._bytes_after_end = 0
        self._silence: asyncio.TimerHandle | None = None

    def end(self) -> None:
        """Write no more."""
        if self._task is not None and not self._is_cut:
            self._is_cut = True
            self._task.cancel()

    async def run(self) -> None:
        """Returns when the stream is over, whoever ended it."""
        self._task = asyncio.current_task(self._loop)
        self._turn.ended.add_done_callback(self._when_ended)
        try:
            await self._pump()
        except asyncio.CancelledError:
            if not self._is_cut or self._task is None or self._task.uncancel() > 0:
                raise  # the server's own: it is stopping
        finally:
            self._task = None
            self._turn.ended.remove_done_callback(self._when_ended)
            if self._silence is not None:
                self._silence.cancel()
            if self._leaving is not None:
                self._leaving.cancel()
                self._reader.streams.remove(self._reader.principal, self.end)
            self._endings.follow(self._turn, self._answer)

    async def _pump(self) -> None:
        turn, answer = self._turn, self._answer
        await self._send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        try:
            while (chunk := await self._next()) is not None:
                _note_number(turn, chunk)
                self._count(chunk)
                is_last = answer.is_over and turn.ended.done()
                await self._write(chunk, more=not is_last)
                if is_last:
                    return
        except RouterError as error:
            ending = await self._endings.lost(turn, str(error))
            await self._write(ending.frame, more=False)
            return
        await self._endings.last_word(turn)
        await self._write(b"", more=False)

    async def _next(self) -> bytes | None:
        """What the runtime said meanwhile, a comment where it said nothing for a while; None at the end."""
        if self._leaving is None and self._answer.must_wait:
            self._leaving = self._loop.create_task(self._end_when_left())
            self._reader.streams.add(self._reader.principal, self.end)
        self._heard_at = self._loop.time()
        try:
            return await self._answer.next(_HEARTBEAT_SECONDS)
        except IdleTimeout:
            return _HEARTBEAT
        finally:
            self._heard_at = None

    def _count(self, chunk: bytes) -> None:
        """Raise Broken for a stream that goes on and on after its turn has ended."""
        if self._turn.ended.done():
            self._bytes_after_end += len(chunk)
            if self._bytes_after_end > _AFTER_END_BYTES:
                raise Broken("the stream goes on after its turn has ended")

    def _when_ended(self, _: object) -> None:
        self._silence = self._loop.call_later(_AFTER_END_SECONDS, self._cut_if_silent)

    def _cut_if_silent(self) -> None:
        since = self._loop.time() - self._heard_at if self._heard_at is not None else 0.0
        if since >= _AFTER_END_SECONDS:
            self._answer.cut()
        else:
            self._silence = self._loop.call_later(_AFTER_END_SECONDS - since, self._cut_if_silent)

    async def _write(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def _end_when_left(self) -> None:
        try:
            while (await self._reader.receive())["type"] != "http.disconnect":
                pass
        except DomainError as error:
            log.info("a stream's client sent what it should not", error=error.stable_code)
        self.end()


def _note_number(turn: LiveTurn, chunk: bytes) -> None:
    """Remember the highest event number that went out; only the last `id:` line of a chunk matters."""
    at = chunk.rfind(b"id: req_")
    if at < 0:
        return
    found = _NUMBER.match(chunk, max(0, at - 1))
    if found is not None:
        turn.last_event = max(turn.last_event, int(found[1]))
