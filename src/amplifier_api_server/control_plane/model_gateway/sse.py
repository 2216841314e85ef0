"""Server-sent events as bytes: where one ends, and what its data is (WHATWG HTML, 9.2).

Owns no meaning. Invariant: what `feed` and `rest` return, joined, is what was fed, byte for byte.
"""

from __future__ import annotations

import re

# The first of the blank lines that end an event, with each of the three line ends that the standard allows.
_END_OF_EVENT = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n|\n\r(?!\n)")
_DATA = re.compile(rb"(?:^|\r\n|\n|\r)data(?::[ ]?([^\r\n]*))?(?=\r|\n|$)")
_LONGEST_END = 4
_BOM = b"\xef\xbb\xbf"
_FIELD = re.compile(rb":|(?:data|event|id|retry)(?=[:\r\n])")
_FIELDS = (b"data", b"event", b"id", b"retry")
_FIRST_CHARS = frozenset(b"{[")  # of JSON, which no field of an event begins with


class EventTooLarge(Exception):
    """One event is larger than anything that a model says."""


class EventSplitter:
    """Cuts a stream into whole events, however its chunks fell."""

    __slots__ = ("_buffer", "_max_event_bytes", "_searched")

    def __init__(self, max_event_bytes: int) -> None:
        self._buffer = b""
        self._searched = 0  # no event ends before here
        self._max_event_bytes = max_event_bytes

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that are whole now, each with its blank line. Raises EventTooLarge."""
        # Nearly every chunk is exactly one event, or several: then nothing is copied or searched twice.
        buffer = self._buffer + chunk if self._buffer else chunk
        events: list[bytes] = []
        start, search = 0, self._searched
        while match := _END_OF_EVENT.search(buffer, search):
            # A line feed that is still to come may belong to this end.
            if buffer[match.end() - 1] == 13 and match.end() == len(buffer):  # noqa: PLR2004 - a carriage return
                break
            events.append(buffer[start : match.end()])
            start = search = match.end()
        self._buffer = buffer[start:]
        self._searched = max(0, len(self._buffer) - _LONGEST_END)
        if len(self._buffer) > self._max_event_bytes:
            raise EventTooLarge(f"an event of the stream is longer than {self._max_event_bytes} bytes")
        return events

    def rest(self) -> bytes:
        """What was fed since the last whole event."""
        rest, self._buffer, self._searched = self._buffer, b"", 0
        return rest


def is_stream(begin: bytes, *, is_labelled: bool) -> bool | None:
    """Whether a body that begins like this is a stream of events, whatever it is labelled as; None: more of it is needed.

    `is_labelled`: it says that it is one. That is believed of all but JSON.
    """
    begin = begin.removeprefix(_BOM).lstrip(b" \t\r\n")
    if not begin or _BOM.startswith(begin):
        return None
    if is_labelled:
        return begin[0] not in _FIRST_CHARS
    if _FIELD.match(begin):
        return True
    return None if any(field.startswith(begin) for field in _FIELDS) else False


def data_of(event: bytes) -> bytes:
    """The event's data, its lines joined by line feeds; empty for a comment."""
    if event.startswith(b"data: ") and event.endswith(b"\n\n") and event.find(b"\n") == len(event) - 2:
        return event[6:-2]
    return b"\n".join(match[1] or b"" for match in _DATA.finditer(event.removeprefix(_BOM)))
