"""In which order the frames of all WebSockets are handled, and how many in one turn of the event loop.

A megabyte of empty frames is more than a hundred thousand of them, and a second of the event loop, whoever sends it. Owns two
things: a parser that stops after each frame, and the queue in which sockets wait for their turn. Networks of peers take
turns, and so do the sockets of one network: a peer that opens many sockets has no larger share than one that opens one.

Invariant: one turn of the event loop handles about `_FRAMES_A_TURN` frames of all sockets together, and then everything else
that is ready has its turn.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Generator
from typing import Final, Protocol

import structlog
from websockets.server import ServerProtocol
from websockets.streams import StreamReader

log = structlog.get_logger(__name__)

FRAMES_AT_ONCE: Final = 16  # of one socket, before the next one has its turn
_FRAMES_A_TURN: Final = 128  # of all: about a millisecond


class _Stepwise(StreamReader):
    """Tells the parser that there is more, when it wants to begin with a frame, only after it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.may_begin = False
        self.is_within_frame = False

    def at_eof(self) -> Generator[None, None, bool]:
        self.is_within_frame = False
        has_ended = yield from super().at_eof()
        while not self.may_begin:
            yield
        self.may_begin = False
        self.is_within_frame = True
        return has_ended


class StepwiseProtocol(ServerProtocol):
    """RFC 6455, one frame at a time. The head of the request is parsed as it comes."""

    reader: _Stepwise

    def __init__(self, max_message_bytes: int, logger: object) -> None:
        super().__init__(max_size=max_message_bytes, logger=logger)  # type: ignore[arg-type]
        self.reader = _Stepwise()
        self.parser = self.parse()  # the one that was begun reads from another reader
        next(self.parser)

    def step(self) -> bool:
        """Parse one frame of what was fed. Whether there was one, or none can be any more (`parser_exc`)."""
        self.reader.may_begin = not self.reader.is_within_frame
        next(self.parser)
        self.reader.may_begin = False
        return bool(self.events) or self.parser_exc is not None


class Waiting(Protocol):
    """A socket of which something was read."""

    network: str  # as whom its peer is counted
    loop: asyncio.AbstractEventLoop

    def take_turn(self, frames: int) -> float:
        """Handle at most so many frames. How many there were, a large one counted as several."""

    def abort(self) -> None:
        """Cut it off."""


class Turns:
    """One for all sockets of an event loop."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[Waiting]] = OrderedDict()
        self._is_called = False

    def wait(self, one: Waiting) -> None:
        """Have its turn come. A socket waits once at a time."""
        self._queues.setdefault(one.network, deque()).append(one)
        self._call(one.loop)

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_called:
            self._is_called = True
            loop.call_soon(self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_called = False
        left = float(_FRAMES_A_TURN)
        while self._queues and left > 0:
            network, queue = self._queues.popitem(last=False)
            one = queue.popleft()
            if queue:
                self._queues[network] = queue
            left -= 1 + self._taken(one)
        if self._queues:
            self._call(loop)

    @staticmethod
    def _taken(one: Waiting) -> float:
        try:
            return one.take_turn(FRAMES_AT_ONCE)
        except Exception:
            log.exception("a socket's frames could not be handled")
            one.abort()
            return FRAMES_AT_ONCE
