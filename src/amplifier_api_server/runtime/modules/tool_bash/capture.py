"""A pipe read to its end, of which a bounded head and tail are kept."""

from __future__ import annotations

import asyncio
import codecs
from collections import deque
from typing import IO

_READ_BYTES = 64 * 1024
_LONGEST_CHARACTER = 4  # bytes
_GOES_ON = range(0x80, 0xC0)  # a character's bytes but its first (RFC 3629, 3)


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
        head, tail = bytes(self._head), b"".join(self._tail)[-self._half :]
        if self._total <= len(head) + len(tail):
            return (head + tail).decode(errors="replace")
        head, tail = _without_cut_end(head), _without_cut_start(tail)
        left_out = self._total - len(head) - len(tail)
        return f"{head.decode(errors='replace')}\n[... {left_out} bytes left out ...]\n{tail.decode(errors='replace')}"


def _without_cut_end(text: bytes) -> bytes:
    """Less a character of UTF-8 whose last bytes are missing."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(text[-_LONGEST_CHARACTER:])
    return text.removesuffix(decoder.getstate()[0])


def _without_cut_start(text: bytes) -> bytes:
    """Less the bytes that go on with a character of UTF-8 whose first bytes are missing."""
    begins = next((at for at, byte in enumerate(text[:_LONGEST_CHARACTER]) if byte not in _GOES_ON), 0)
    return text[begins:]
