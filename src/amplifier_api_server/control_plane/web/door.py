"""The gateway's path for pages: what a tool in a sandbox asks, and what it is answered.

Owns the bounds on one turn's fetches. The turn has been found by its runtime's own socket, and says whose lists hold.
Refusals are `protocol.Failure`s, as a runtime reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from pydantic import ValidationError

from amplifier_api_server.control_plane.errors import headers_of, status_of
from amplifier_api_server.control_plane.model_gateway.answers import Receive, Refusal, Send, respond
from amplifier_api_server.control_plane.model_gateway.turns import MeteredTurn
from amplifier_api_server.control_plane.web.pages import Pages
from amplifier_api_server.runtime.protocol import Failure, Fetch, Fetched
from amplifier_api_server.tenants.errors import DomainError, Forbidden, Invalid, Unavailable
from amplifier_api_server.tenants.ids import TurnId

MAX_FETCH_BYTES = 32 * 1024  # of a request
MAX_AT_ONCE_OF_A_TURN = 4
MAX_OF_A_TURN = 500
_REMEMBERED_TURNS = 20_000


class WebDoor:
    """Answers `Gateway.FETCH`."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._running: Counter[TurnId] = Counter()
        self._begun: OrderedDict[TurnId, int] = OrderedDict()

    async def answer(
        self, turn_of: Callable[[], MeteredTurn], body: Coroutine[Any, Any, bytes], receive: Receive, send: Send
    ) -> None:
        """Fetch what `body` (a protocol.Fetch) asks for. Raises Disconnected."""
        with contextlib.closing(body):
            try:
                await self._answer(turn_of(), await body, receive, send)
            except Refusal as refusal:
                failure = Failure(
                    code=refusal.code, detail=refusal.detail, retry_after_seconds=refusal.retry_after_seconds
                )
                await respond(send, refusal.status, failure.model_dump_json().encode())

    async def _answer(self, turn: MeteredTurn, raw: bytes, receive: Receive, send: Send) -> None:
        """A sandbox that hangs up meanwhile ends the fetch."""
        fetching = asyncio.ensure_future(self._fetch(turn, raw))
        hung_up = asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait({fetching, hung_up}, return_when=asyncio.FIRST_COMPLETED)
            if not fetching.done():
                return
            await respond(send, 200, fetching.result().model_dump_json().encode())
        except DomainError as error:
            failure = Failure(
                code=error.stable_code, detail=error.detail, retry_after_seconds=error.retry_after_seconds
            )
            await respond(send, status_of(error), failure.model_dump_json().encode(), headers=headers_of(error))
        finally:
            hung_up.cancel()
            fetching.cancel()
            await asyncio.gather(hung_up, fetching, return_exceptions=True)

    async def _fetch(self, turn: MeteredTurn, raw: bytes) -> Fetched:
        try:
            wanted = Fetch.model_validate_json(raw)
        except ValidationError as error:
            where = ", ".join(".".join(map(str, one["loc"])) for one in error.errors(include_input=False)[:5])
            raise Invalid(f"no valid fetch: {where}", code="invalid_request") from error
        self._count(turn.turn_id)
        self._running[turn.turn_id] += 1
        try:
            return await self._pages.fetch(turn.tenant_id, wanted.url, wanted.max_bytes)
        finally:
            self._running[turn.turn_id] -= 1
            self._running += Counter()  # forgets those at 0

    def _count(self, turn_id: TurnId) -> None:
        """Raises Unavailable, Forbidden."""
        if self._running[turn_id] >= MAX_AT_ONCE_OF_A_TURN:
            detail = f"the turn fetches {MAX_AT_ONCE_OF_A_TURN} pages at once; try again"
            raise Unavailable(detail, code="busy", retry_after_seconds=1)
        begun = self._begun.pop(turn_id, 0) + 1
        self._begun[turn_id] = begun
        while len(self._begun) > _REMEMBERED_TURNS:
            self._begun.popitem(last=False)
        if begun > MAX_OF_A_TURN:
            raise Forbidden(f"the turn has fetched {MAX_OF_A_TURN} pages", code="web_not_allowed")


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
