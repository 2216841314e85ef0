"""A transport that gathers what is written in one turn of the event loop: an answer's head and body leave in one write.

Owns one detail of the server, for its weight: uvicorn writes the head and each part of a body by itself, and every write is a
system call. Invariant: what is written leaves in order, no later than the loop's next turn, or with `close`.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Corked:
    """In all but `write` the transport that it wraps."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self.flush)
        self._waiting.append(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Hand over what was written: whether the peer takes it is known after that."""
        waiting, self._waiting = self._waiting, []
        if waiting and not self._transport.is_closing():
            self._transport.write(waiting[0] if len(waiting) == 1 else b"".join(waiting))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
