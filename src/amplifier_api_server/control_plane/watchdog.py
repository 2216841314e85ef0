"""How late the event loop is, and what made it late.

The event loop serves everybody: what holds it holds everybody up. Owns a beat in the loop, which measures by how much it
comes late, and a thread beside it that looks at what the loop does while the beat does not come. One line tells of a stall,
at a bounded rate: the innermost function of ours, and those that led to it, so the door and the operation. Refuses to tell
what is worked on: no argument and no value is read. Invariant: it changes nothing, and when it fails, the loop goes on.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Final

import structlog
from prometheus_client import Counter, Histogram

from amplifier_api_server.control_plane.telemetry import RareLines

log = structlog.get_logger(__name__)

STALL_SECONDS: Final = 0.1
_BEAT_SECONDS: Final = 0.025
_SECONDS_A_LINE: Final = 5.0
_MAX_PATH: Final = 12  # functions that led to where it stands
_OURS: Final = str(Path(__file__).parent.parent) + "/"


class Watchdog:
    """Of the event loop that it is started in."""

    def __init__(self, delays: Histogram, stalls: Counter) -> None:
        self._delays = delays
        self._stalls = stalls
        self._lines = RareLines(_SECONDS_A_LINE)
        self._due_at = 0.0  # when the next beat should come
        self._told_of = 0.0  # the beat that was late when a line was written last
        self._loop_thread = 0
        self._beat: asyncio.TimerHandle | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Within the loop, once."""
        self._loop_thread = threading.get_ident()
        self._wait(asyncio.get_running_loop())
        self._thread = threading.Thread(target=self._watch, name="event-loop-watchdog", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """End both."""
        self._ended.set()
        if self._beat is not None:
            self._beat.cancel()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_at = monotonic() + _BEAT_SECONDS
        self._beat = loop.call_later(_BEAT_SECONDS, self._beats, loop)

    def _beats(self, loop: asyncio.AbstractEventLoop) -> None:
        late = max(0.0, monotonic() - self._due_at)
        self._delays.observe(late)
        if late >= STALL_SECONDS:
            self._stalls.inc()
            if self._told_of != self._due_at:  # one call outside of Python, which let no thread look
                self._tell(late, None)
        self._wait(loop)

    def _watch(self) -> None:
        """In the thread."""
        while not self._ended.wait(_BEAT_SECONDS):
            late = monotonic() - self._due_at
            if late >= STALL_SECONDS and self._told_of != self._due_at:
                try:
                    self._tell(late, sys._current_frames().get(self._loop_thread))  # noqa: SLF001 - documented
                except Exception:
                    log.exception("the event loop's watchdog could not look")

    def _tell(self, late: float, frame: FrameType | None) -> None:
        self._told_of = self._due_at
        if number := self._lines.count("stall"):
            log.warning("the event loop stood still", late_ms=round(late * 1000), stalls=number, **where(frame))


def where(frame: FrameType | None) -> dict[str, str]:
    """Where a stack stands: `at` the innermost function of ours, `by` those that led to it, `code` the innermost of all."""
    ours: list[str] = []
    code = ""
    while frame is not None:
        place = frame.f_code
        code = code or f"{'/'.join(place.co_filename.split('/')[-2:])}:{frame.f_lineno} {place.co_qualname}"
        if place.co_filename.startswith(_OURS):
            ours.append(f"{place.co_filename.removeprefix(_OURS)}:{frame.f_lineno} {place.co_qualname}")
        frame = frame.f_back
    by = " < ".join(one.rpartition("/")[2] for one in ours[1 : _MAX_PATH + 1])
    return {"at": ours[0] if ours else "unknown", "by": by, "code": code}
