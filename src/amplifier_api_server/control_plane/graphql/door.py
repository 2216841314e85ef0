"""GraphQL by HTTP: one document, one answer; of a subscription, or where nothing else is accepted, a stream of answers.

Owns what GraphQL over HTTP says of methods, media types and statuses. A document that was carried out is 200, whatever became
of its fields; one that could not be is 400 for a client that takes application/graphql-response+json, and for one that
is no GraphQL at all. Refuses bodies that a page of somebody else's could send unasked, and mutations by GET.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, Final

import structlog
from graphql import OperationType

from amplifier_api_server.control_plane.edge import Call
from amplifier_api_server.control_plane.errors import NO_SUCH_PATH, MethodNotAllowed, encode
from amplifier_api_server.control_plane.gate import Gate
from amplifier_api_server.control_plane.graphql import problems, requests
from amplifier_api_server.control_plane.graphql.context import Context
from amplifier_api_server.control_plane.graphql.engine import Asked, Engine, Payload, Prepared, Unusable
from amplifier_api_server.control_plane.graphql.event_stream import COMPLETE, EventStream
from amplifier_api_server.control_plane.graphql.explorer import kept_explorer
from amplifier_api_server.control_plane.graphql.open_operations import OpenOperations
from amplifier_api_server.control_plane.graphql.requests import Malformed, Untaken, Wanted
from amplifier_api_server.control_plane.kept_answers import KeptAnswers
from amplifier_api_server.control_plane.operations import OPERATIONS
from amplifier_api_server.control_plane.routes import ClientLeft, Receive, Scope, Send
from amplifier_api_server.control_plane.services import Services
from amplifier_api_server.tenants.errors import DomainError, Invalid, NotFound

log = structlog.get_logger(__name__)

_UNCHARGED_CHARS: Final = 2000  # a caller who is at its limit may still ask what its limits are


class GraphqlDoor:
    """ASGI handlers, for the route table."""

    def __init__(self, services: Services, engine: Engine, is_open: OpenOperations) -> None:
        self._services = services
        self._engine = engine
        self._open = is_open
        self._kept = KeptAnswers()

    async def post(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`POST /graphql`."""
        call: Call = scope["state"]["call"]
        raw = await _read(receive)
        wanted = requests.wanted(scope["headers"])
        try:
            asked = requests.of_body(raw)
        except Untaken as error:
            await self._not_taken(wanted, error, send)
            return
        await self._carry_out(call, wanted, asked, receive, send)

    async def get(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /graphql`: a page to try documents in, for a browser; else a query, or a subscription's stream.

        The page is open to everybody, and so this route is: a document's caller is authenticated here.
        """
        call: Call = scope["state"]["call"]
        wanted = requests.wanted(scope["headers"])
        if (b"last-event-id", COMPLETE) in scope["headers"]:  # an EventSource, whose stream is over (WHATWG HTML, 9.2)
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        try:
            asked = requests.of_query(scope.get("query_string", b""))
        except Untaken as error:
            await self._not_taken(wanted, error, send)
            return
        if asked is None or wanted.html:
            await self._page(wanted, scope, receive, send)
            return
        uses = self._services
        principal = await uses.authenticator.authenticate(scope["headers"])
        call.principal = scope["state"]["principal"] = principal
        await Gate(uses.admission).enter(principal, OPERATIONS["graphql"])
        await self._carry_out(call, wanted, asked, receive, send, is_get=True)

    async def _not_taken(self, wanted: Wanted, error: Untaken, send: Send) -> None:
        found = problems.of_request(error)
        self._services.telemetry.api_error(error=found["code"], status=found["status"])
        await _json(send, error.answered, wanted.media_type, {"errors": [problems.bare(found)]})

    async def _page(self, wanted: Wanted, scope: Scope, receive: Receive, send: Send) -> None:
        if not wanted.html:
            raise Malformed("send a document: POST it as JSON, or GET with ?query=")
        if not self._services.settings.graphql.graphiql:
            raise NotFound(NO_SUCH_PATH, code="no_such_path")
        page = await self._kept.get("explorer", kept_explorer)
        await page.answer(scope["headers"])(scope, receive, send)

    async def _carry_out(
        self, call: Call, wanted: Wanted, asked: Asked, receive: Receive, send: Send, *, is_get: bool = False
    ) -> None:
        context = Context(self._services, call.caller)
        try:
            prepared = await self.prepare(asked, context)
            if is_get and prepared.kind is OperationType.MUTATION:
                raise MethodNotAllowed("a mutation changes something: send it by POST", ["POST"])
            if prepared.kind is OperationType.SUBSCRIPTION and not wanted.streams:
                raise Malformed(
                    f"a subscription is a stream: ask for it with Accept: {requests.EVENTS}, or by WebSocket"
                )
        except Unusable as error:
            call.standings = tuple(context.standings.values())
            payload = {"errors": error.told()}
            if wanted.events:
                await EventStream(self._services, context, self._open).run(_alone(payload), receive, send)
            else:
                status = 400 if error.is_syntax or wanted.response else 200
                await _json(send, status, wanted.media_type, payload)
            return
        if wanted.events or prepared.kind is OperationType.SUBSCRIPTION:
            results = self.stream(prepared, asked, context)
            await EventStream(self._services, context, self._open).run(results, receive, send)
            return
        payload = await self._answer(prepared, asked, context, receive)
        call.standings = tuple(context.standings.values())
        status = 200 if "data" in payload or not wanted.response else 400
        await _json(send, status, wanted.media_type, payload)

    async def prepare(self, asked: Asked, context: Context) -> Prepared:
        """A document, parsed and measured; one that can't be carried out counts as a request.

        Raises Unusable, Refused.
        """
        admission = self._services.admission
        if len(asked.query) > _UNCHARGED_CHARS:
            await admission.has_request_left(context.principal)
        try:
            return await self._engine.prepare(asked, context.principal.tenant_id)
        except (Unusable, Invalid) as error:
            context.took([await admission.request(context.principal)])
            if isinstance(error, Invalid):
                raise Unusable([], problem=problems.refusal(error, context)) from error
            raise

    async def stream(self, prepared: Prepared, asked: Asked, context: Context) -> AsyncGenerator[Payload, None]:
        """Every response of a document. One that asks for nothing of ours counts as a request."""
        async with contextlib.aclosing(self._engine.stream(prepared, asked, context)) as results:
            async for payload in results:
                await self.charge(context)
                yield payload

    async def charge(self, context: Context) -> None:
        """A document that asked for no root field of ours, such as introspection, counts as a request."""
        if context.entered == 0:
            context.entered = 1
            context.took([await self._services.admission.request(context.principal)])

    async def _answer(self, prepared: Prepared, asked: Asked, context: Context, receive: Receive) -> Payload:
        """The whole response. A query ends when its client leaves; a mutation is carried out all the same."""
        work = asyncio.ensure_future(self._engine.run(prepared, asked, context))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                context.left.set()
                if prepared.kind is OperationType.MUTATION:
                    await work
                raise ClientLeft
            await self.charge(context)
            return work.result()
        finally:
            leaving.cancel()
            work.cancel()
            await asyncio.gather(work, leaving, return_exceptions=True)


async def _alone(payload: Payload) -> AsyncGenerator[Payload, None]:
    yield payload


async def _read(receive: Receive) -> bytes:
    """The whole body; the edge bounds it."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except DomainError as error:
        log.info("a client sent what it should not", error=error.stable_code)


async def _json(send: Send, status: int, media_type: str, body: Any) -> None:
    raw = encode(body)
    kind = f"{media_type}; charset=utf-8".encode("ascii")
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(raw))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})
