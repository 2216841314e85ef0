"""The log of one turn: numbered frames, kept, and read by any number of readers at their own pace.

Owns the frames. Refuses queues: a reader holds only its position, so that a slow one slows nobody and costs nothing.
Invariant: numbers start at 1 and have no gaps; after a terminal frame nothing is added.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from pydantic_core import to_json

from amplifier_api_server.runtime.protocol import MAX_TURN_EVENTS_BYTES, TERMINAL_EVENTS, sse

BATCH_BYTES = 64 * 1024
MAX_PLAIN_DEPTH = 64
TERMINAL_ROOM_BYTES = 256 * 1024  # what a full log leaves for the frames that end its running tools


class LogFullError(Exception):
    """The turn made more events than are kept."""


class EventLog:
    def __init__(self, request_id: str, *, limit_bytes: int = MAX_TURN_EVENTS_BYTES) -> None:
        self.request_id = request_id
        self.closed = False
        self._frames: list[bytes] = []
        self._size_bytes = 0
        self._limit_bytes = limit_bytes
        self._changed: asyncio.Future[None] | None = None

    def append(self, event: str, data: Any, *, reserved: bool = False) -> int:
        """Add a frame and wake the readers; returns its number. `reserved` may use the room kept for the end."""
        assert not self.closed, "nothing follows a terminal frame"
        terminal = event in TERMINAL_EVENTS
        frame = sse(self.request_id, len(self._frames) + 1, event, encoded(data))
        room = self._limit_bytes - (0 if reserved else TERMINAL_ROOM_BYTES)
        if not terminal and self._size_bytes + len(frame) > room:
            raise LogFullError(f"the turn's events are more than {self._limit_bytes} bytes")
        self._frames.append(frame)
        self._size_bytes += len(frame)
        self.closed = terminal
        self._wake()
        return len(self._frames)

    @property
    def last(self) -> int:
        return len(self._frames)

    def text(self) -> str:
        return b"".join(self._frames).decode()

    async def follow(self, after: int = 0) -> AsyncGenerator[bytes, None]:
        """Every frame with a number above `after`, those to come too, in batches, until the terminal one is out."""
        position = max(after, 0)
        while True:
            batch, size = [], 0
            while position < len(self._frames) and size < BATCH_BYTES:
                batch.append(self._frames[position])
                size += len(batch[-1])
                position += 1
            if batch:
                yield b"".join(batch)
            elif self.closed:
                return
            else:
                await self._wait()

    async def _wait(self) -> None:
        """Until something is added. One future serves all readers; a reader that leaves must not cancel it."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
        self._changed = None


def encoded(data: Any) -> str:
    """JSON on one line, of anything: what is no JSON is told as its text, what UTF-8 lacks is replaced."""
    try:
        return to_json(data, fallback=str, inf_nan_mode="null").decode()
    except (ValueError, RecursionError):
        return to_json(_plain(data), inf_nan_mode="null").decode()


def clean(text: str) -> str:
    """Text that UTF-8 can carry: a lone surrogate becomes U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _plain(value: Any, depth: int = 0) -> Any:
    """For what could not be encoded as it is: half surrogate pairs, bytes, circles."""
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return clean(value)
        case bytes() | bytearray():
            return bytes(value).decode("utf-8", "replace")
        case dict() if depth < MAX_PLAIN_DEPTH:
            return {clean(str(key)): _plain(item, depth + 1) for key, item in value.items()}
        case list() | tuple() | set() | frozenset() if depth < MAX_PLAIN_DEPTH:
            return [_plain(item, depth + 1) for item in value]
        case _:
            return clean(str(value)) if depth < MAX_PLAIN_DEPTH else "..."
