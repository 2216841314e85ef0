"""A pipe read to its end, of which a bounded head and tail are kept."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import IO

_READ_BYTES = 64 * 1024


class Capture:
    """Reads `pipe` on the running loop and owns it. Memory stays below three times `limit_bytes`, whatever comes."""

    def __init__(self, pipe: IO[bytes], limit_bytes: int) -> None:
        self._pipe = pipe
        self._descriptor = pipe.fileno()
        self._half = limit_bytes // 2
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._total = 0
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._descriptor, self._read)

    def _read(self) -> None:
        try:
            data = self._pipe.read1(_READ_BYTES)  # type: ignore[attr-defined]
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._total += len(data)
        if (room := self._half - len(self._head)) > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail.append(data)
            self._tail_bytes += len(data)
            while self._tail and self._tail_bytes - len(self._tail[0]) >= self._half:
                self._tail_bytes -= len(self._tail.popleft())

    def close(self) -> None:
        """Stop reading. Idempotent."""
        if not self._pipe.closed:
            self._loop.remove_reader(self._descriptor)
            self._pipe.close()
        if not self.ended.done():
            self.ended.set_result(None)

    def text(self) -> str:
        """What was read, or its head and tail with the number of bytes left out between them."""
        tail = b"".join(self._tail)[-self._half :]
        left_out = self._total - len(self._head) - len(tail)
        if left_out <= 0:
            return (bytes(self._head) + tail).decode(errors="replace")
        head = bytes(self._head).decode(errors="replace")
        return f"{head}\n[... {left_out} bytes left out ...]\n{tail.decode(errors='replace')}"
