"""Where finished log lines go: one file, and one write for all lines of one turn of the event loop.

Owns when lines are written. Invariants: lines keep their order; an error is written at once, with everything before it; what
waits is written when the loop comes round, or when the process ends.
"""

from __future__ import annotations

import asyncio
import atexit
from typing import IO, Any


class Lines:
    """A structlog logger: `msg` takes a line without its end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._waiting: list[bytes] = []
        self._flushed_by: asyncio.AbstractEventLoop | None = None
        atexit.register(self.flush)

    def msg(self, line: bytes) -> None:
        self._waiting.append(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a thread, or a program without a loop
            self.flush()
            return
        if self._flushed_by is not loop:
            self._flushed_by = loop
            loop.call_soon(self.flush)

    debug = info = warning = warn = log = msg

    def error(self, line: bytes) -> None:
        self._waiting.append(line)
        self.flush()

    exception = critical = fatal = error

    def flush(self) -> None:
        """Write what waits. A log that can't be written ends nothing."""
        self._flushed_by = None
        lines, self._waiting = self._waiting, []
        if lines:
            lines.append(b"")
            try:
                self._file.write(b"\n".join(lines))
                self._file.flush()
            except (OSError, ValueError):  # the reader of a pipe went away, or the file was closed at the very end
                pass


class LinesFactory:
    """What structlog is configured with: every logger writes to the same place."""

    def __init__(self, file: IO[bytes]) -> None:
        self._lines = Lines(file)

    def __call__(self, *_: Any) -> Lines:
        return self._lines
