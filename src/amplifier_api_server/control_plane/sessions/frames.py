"""A turn's stream, frame by frame, for doors that don't pass its bytes on as they are.

A sandbox wrote these bytes: what is no frame of this turn, or does not go on counting, is left out; nothing of it raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
import structlog

from amplifier_api_server.runtime.protocol import MAX_TURN_EVENTS_BYTES, TERMINAL_EVENTS, EventName

log = structlog.get_logger(__name__)

_FRAME = re.compile(rb"id: (req_[0-9A-Za-z]+):(\d{1,9})\nevent: ([a-z_]{1,32})\ndata: ([^\n]*)\Z")
_NAMES = frozenset(name.value for name in EventName)
_TERMINAL = frozenset(name.value for name in TERMINAL_EVENTS)


@dataclass(frozen=True, slots=True)
class TurnEvent:
    """One event of a turn, the same on every door. `data` is what the SSE frame's `data` line holds."""

    request_id: str
    number: int  # from 1 on; there may be gaps where a sandbox was lost
    name: str  # protocol.EventName
    data: dict[str, Any]

    @property
    def id(self) -> str:
        """What a reader goes on after: `Last-Event-ID`, `after`."""
        return f"{self.request_id}:{self.number}"

    @property
    def is_last(self) -> bool:
        return self.name in _TERMINAL


class Frames:
    """Cuts a stream's bytes into the events of one turn, those after `after`."""

    def __init__(self, request_id: str, after: int = 0) -> None:
        self._request_id = request_id.encode()
        self._last = after
        self._rest = b""

    @property
    def last(self) -> int:
        """The number of the last event that was given, or `after`."""
        return self._last

    def feed(self, chunk: bytes) -> Iterator[TurnEvent]:
        """The events that `chunk` completes."""
        *whole, self._rest = (self._rest + chunk).split(b"\n\n")
        if len(self._rest) > MAX_TURN_EVENTS_BYTES:
            log.warning("a sandbox sent a frame that does not end", request_id=self._request_id.decode())
            self._rest = b""
        for one in whole:
            event = self._read(one)
            if event is not None:
                self._last = event.number
                yield event

    def _read(self, frame: bytes) -> TurnEvent | None:
        found = _FRAME.fullmatch(frame)
        if found is None or found[1] != self._request_id or found[3].decode() not in _NAMES:
            return None  # a comment, or nothing that a turn says
        number = int(found[2])
        if number <= self._last:
            return None
        try:
            data = orjson.loads(found[4])
        except orjson.JSONDecodeError:
            data = None
        if not isinstance(data, dict):
            log.warning("a sandbox sent an event that is no JSON object", request_id=self._request_id.decode())
            return None
        return TurnEvent(self._request_id.decode(), number, found[3].decode(), data)
