"""What waits to be sent on one connection: answers first, then events, in order and within a bound.

Owns backpressure. A client that reads slowly has its streams wait here, each in its turn, and with them the sandboxes that
they come from; answers to its messages go ahead of events, and while too many of them are unread no further message is read.
Invariant: what one connection holds in memory is bounded, whatever it asked for and does not read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from amplifier_api_server.control_plane.routes import ClientLeft

_MAX_EVENT_BYTES: Final = 256 * 1024  # one event may be more than that, and then is alone
_MAX_ANSWERS: Final = 64
_MAX_ANSWER_BYTES: Final = 1024 * 1024  # one answer may be more than that, and is the last one then


class Outbox:
    """One for a connection; `run` beside it."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        self._send = send
        self._answers: deque[bytes] = deque()
        self._events: deque[bytes] = deque()
        self._event_bytes = 0
        self._answer_bytes = 0
        self._is_closed = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._filled = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._sent = asyncio.Event()

    def answer(self, data: bytes) -> None:
        """Send it soon. Whoever makes answers of messages awaits `room` before the next message."""
        if self._is_closed:
            return
        self._answers.append(data)
        self._answer_bytes += len(data)
        self._filled.set()
        self._look_for_room()

    def _look_for_room(self) -> None:
        if len(self._answers) >= _MAX_ANSWERS or self._answer_bytes > _MAX_ANSWER_BYTES:
            self._has_room.clear()
        else:
            self._has_room.set()

    async def room(self) -> None:
        """There is room for answers. Raises ClientLeft once there is nobody to answer."""
        await self._has_room.wait()
        if self._is_closed:
            raise ClientLeft

    def close(self) -> None:
        """Nobody reads it any more: it holds nothing from now on, whatever is still being answered."""
        self._is_closed = True
        self._answers.clear()
        self._events.clear()
        self._has_room.set()

    async def event(self, data: bytes) -> None:
        """Send it in its turn. Returns when there is room for it."""
        if self._waiting or self._event_bytes > _MAX_EVENT_BYTES:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._next_turn()  # it was ours, and we go away
                raise
        self._events.append(data)
        self._event_bytes += len(data)
        self._filled.set()
        self._next_turn()

    def _next_turn(self) -> None:
        """The first that waits goes on, if there is room."""
        while self._waiting and self._event_bytes <= _MAX_EVENT_BYTES:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    async def run(self) -> None:
        """Send, until cancelled. Raises what sending raises."""
        while True:
            if self._answers:
                data = self._answers.popleft()
                await self._send(data)
                self._answer_bytes -= len(data)
                self._look_for_room()
            elif self._events:
                data = self._events.popleft()
                await self._send(data)
                self._event_bytes -= len(data)
                self._next_turn()
            else:
                self._sent.set()
                self._filled.clear()
                await self._filled.wait()
                self._sent.clear()

    async def sent(self) -> None:
        """Everything that was here has been sent."""
        while self._answers or self._events or not self._sent.is_set():
            self._sent.clear()
            self._filled.set()
            await self._sent.wait()
