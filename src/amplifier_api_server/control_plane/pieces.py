"""Bytes of a connection that came and are not parsed yet, handed to the parser so that it never parses past a message's end.

The parser can't be stopped between two messages: it parses all that it is given. So it is given no more than up to the next
place at which a message may end. Owns these places; knows no parser and no meaning. Invariant: no piece has anything behind
the end of a message that ends in it.

A message ends with its head, with a chunked body's trailer (both end with an empty line; RFC 9112, 2.1 and 7.1), or with the
last byte that its Content-Length announced. An empty line may also be in a chunked body or before a request, where the piece
merely ends early.
"""

from __future__ import annotations

import re
from typing import Final

PIECE_BYTES: Final = 4 * 1024  # of a head or chunked body: some 700 callbacks of the parser at most

_EMPTY_LINE = re.compile(rb"\n\r?\n")
_KEPT = 2  # bytes: an empty line may begin in what was handed over and end in what came next


class Pieces:
    """One connection's."""

    __slots__ = ("_at", "_before", "_data")

    def __init__(self) -> None:
        self._data = b""
        self._at = 0
        self._before = b""  # the last bytes that were handed over, where an empty line may have begun in them

    def __len__(self) -> int:
        return len(self._data) - self._at

    def add(self, data: bytes) -> None:
        self._data = self._data[self._at :] + data if len(self) else data
        self._at = 0

    def clear(self) -> None:
        self._data, self._at = b"", 0

    def take(self, body_bytes: int = 0) -> bytes | memoryview:
        """The next piece. Where `body_bytes` are left of a body whose length is known, it is of that body alone."""
        data, begin = self._data, self._at
        if body_bytes:
            end, self._before = min(begin + body_bytes, len(data)), b""
        else:
            end = self._next_stop(begin)
            self._before = (
                data[max(begin, end - _KEPT) : end]
                if end - begin >= _KEPT
                else (self._before + data[begin:end])[-_KEPT:]
            )
        self._at = end
        if end < len(data):
            return memoryview(data)[begin:end]
        self.clear()
        return data[begin:] if begin else data

    def _next_stop(self, begin: int) -> int:
        """After the first empty line, or after as much as is handed over at once."""
        before = self._before
        if before:
            found = _EMPTY_LINE.search(before + self._data[begin : begin + _KEPT])
            if found and found.end() > len(before):
                return begin + found.end() - len(before)
        end = min(begin + PIECE_BYTES, len(self._data))
        found = _EMPTY_LINE.search(self._data, begin, end)
        return found.end() if found else end
