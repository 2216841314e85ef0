"""A parser of WebSocket frames (RFC 6455) that stops after each frame, so that others have their turn in between.

Owns where the parser stops. What it takes for a frame, and what it answers, is `websockets`' own.
"""

from __future__ import annotations

from collections.abc import Generator

from websockets.server import ServerProtocol
from websockets.streams import StreamReader


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
    """One frame at a time. The head of the request is parsed as it comes."""

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
