"""What a sandbox gets of a model call: a head, events or a body, and an end.

Owns the order of ASGI's messages to the sandbox. Invariant: nothing is sent twice, nor to one that hung up.
"""

from __future__ import annotations

from amplifier_api_server.control_plane.model_gateway.answers import Refusal, Send, no_turn, respond
from amplifier_api_server.control_plane.model_gateway.dialects import Dialect
from amplifier_api_server.control_plane.model_gateway.failures import Passed

_STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class Outlet:
    """Of one call."""

    def __init__(self, send: Send, dialect: Dialect) -> None:
        self._send = send
        self._dialect = dialect
        self.has_begun = False  # the sandbox was sent the head of an answer
        self.is_abandoned = False  # nobody wants the rest
        self._is_streaming = False  # it has no end yet

    async def events(self, data: bytes) -> None:
        """Whole events of a stream."""
        if self.is_abandoned or not data:
            return
        if not self.has_begun:
            self.has_begun = self._is_streaming = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def whole(self, passed: Passed) -> None:
        """An answer in one piece."""
        if not self.is_abandoned and not self.has_begun:
            await self._respond(passed)

    async def close(self, told: Refusal | Passed | None, last_words: bytes) -> None:
        """The end: an error, in a stream that has begun by its `last_words`; or just the end.

        Where the dialect has it so, a stream that was cut has no end on the wire: the connection breaks off.
        """
        if self._is_streaming:
            if told is not None and self._dialect.aborts_when_cut:
                await self._send({"type": "http.response.body", "body": last_words, "more_body": True})
            else:
                await self._send({"type": "http.response.body", "body": last_words, "more_body": False})
        elif self.has_begun:
            return
        elif isinstance(told, Passed):
            await self._respond(told)
        else:  # an answer that came after its turn had ended passes no more
            await (told or no_turn()).send(self._send, self._dialect.error)

    async def _respond(self, passed: Passed) -> None:
        self.has_begun = True
        await respond(self._send, passed.status, passed.body, content_type=passed.content_type, headers=passed.headers)
