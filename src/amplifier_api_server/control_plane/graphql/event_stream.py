"""A document's responses as server-sent events: graphql-sse's distinct connections mode (`next`, then `complete`).

Owns the stream's end: the last response, the client that leaves, or the credential that works no more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

import structlog

from amplifier_api_server.control_plane.errors import encode
from amplifier_api_server.control_plane.graphql import problems
from amplifier_api_server.control_plane.graphql.context import Context
from amplifier_api_server.control_plane.graphql.engine import Payload
from amplifier_api_server.control_plane.graphql.open_operations import OpenOperations
from amplifier_api_server.control_plane.routes import ClientLeft, Receive, Send
from amplifier_api_server.control_plane.services import Services
from amplifier_api_server.control_plane.sessions.pipe import STREAM_HEADERS
from amplifier_api_server.runtime.protocol import one_line
from amplifier_api_server.tenants.errors import DomainError, Forbidden

log = structlog.get_logger(__name__)

_HEARTBEAT_SECONDS: Final = 15.0
_HEARTBEAT: Final = b":\n\n"
COMPLETE: Final = b"complete"  # the event's name; and its id, by which a browser's EventSource tells that it has had it
_LAST: Final = b"id: %b\nevent: %b\ndata:\n\n" % (COMPLETE, COMPLETE)


class EventStream:
    """One answer."""

    def __init__(self, services: Services, context: Context, is_open: OpenOperations) -> None:
        self._services = services
        self._context = context
        self._open = is_open
        self._over = asyncio.Event()
        self._is_revoked = False

    async def run(self, results: AsyncGenerator[Payload, None], receive: Receive, send: Send) -> None:
        """Send all of `results`. Raises Refused before anything is sent."""
        principal = self._context.principal
        self._services.streams.require_room(principal)
        with self._open.one(principal):
            leaving = asyncio.create_task(self._until_left(receive))
            self._services.streams.add(principal, self._revoke)
            try:
                async with contextlib.aclosing(results):
                    await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
                    await self._pass_on(results, send)
            finally:
                self._services.streams.remove(principal, self._revoke)
                leaving.cancel()
                await asyncio.gather(leaving, return_exceptions=True)

    async def _pass_on(self, results: AsyncGenerator[Payload, None], send: Send) -> None:
        ending = asyncio.create_task(self._over.wait())
        following = asyncio.ensure_future(anext(results, None))
        try:
            while True:
                await asyncio.wait({following, ending}, timeout=_HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if ending.done():
                    break
                if not following.done():
                    await _say(send, _HEARTBEAT)
                    continue
                payload = following.result()
                if payload is None:
                    break
                await _say(send, _frame(payload))
                following = asyncio.ensure_future(anext(results, None))
            if self._is_revoked:
                error = Forbidden("the credential was revoked, or holds less than before", code="access_ended")
                await _say(send, _frame({"errors": [problems.bare(problems.refusal(error, self._context))]}))
            elif self._over.is_set():
                raise ClientLeft
            await send({"type": "http.response.body", "body": _LAST, "more_body": False})
        finally:
            for task in (ending, following):
                task.cancel()
            await asyncio.gather(ending, following, return_exceptions=True)

    def _revoke(self) -> None:
        self._is_revoked = True
        self._over.set()

    async def _until_left(self, receive: Receive) -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except DomainError as error:
            log.info("a stream's client sent what it should not", error=error.stable_code)
        self._context.left.set()
        self._over.set()


def _frame(payload: Payload) -> bytes:
    return b"event: next\ndata: " + one_line(encode(payload).decode()).encode() + b"\n\n"


async def _say(send: Send, frame: bytes) -> None:
    await send({"type": "http.response.body", "body": frame, "more_body": True})
