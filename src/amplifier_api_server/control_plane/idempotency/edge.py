"""`Idempotency-Key` at the edge: stands between it and the handler of every operation that takes one.

Owns reading the body before the work and holding the answer back until it is kept: what a client has seen, a repetition gets
too. An execution is begun with an id that is kept before it, and its turn is its answer. Refuses to know
what is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

from amplifier_api_server.control_plane.edge import Call, whole_body
from amplifier_api_server.control_plane.idempotency.answers import (
    KEPT_HEADERS,
    MAX_ANSWER_BYTES,
    Fate,
    StoredAnswer,
    fate_of,
    fate_of_document,
)
from amplifier_api_server.control_plane.idempotency.fingerprints import fingerprint_of, key_of, mutations_in
from amplifier_api_server.control_plane.idempotency.service import Idempotency, RepeatedTurn, Ticket
from amplifier_api_server.control_plane.request_json import parsed
from amplifier_api_server.control_plane.routes import Handler, Receive, Scope, Send
from amplifier_api_server.tenants.errors import DomainError, Malformed
from amplifier_api_server.tenants.ids import SessionId, new_session_id

REPLAYED: Final = (b"idempotent-replayed", b"true")
_EXECUTIONS: Final = frozenset({"execute", "executeOnce"})
_GRAPHQL: Final = "graphql"

Judge = Callable[[StoredAnswer, bool], Fate]


class RepeatsExecutions(Protocol):
    """The executions' side."""

    async def again(
        self, repeated: RepeatedTurn, body: dict[str, Any], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer as the execution was answered, or will be. Raises DomainError."""


class KeyedRequests:
    """What the edge calls instead of the handler."""

    def __init__(self, *, idempotency: Idempotency, executions: RepeatsExecutions) -> None:
        self._idempotency = idempotency
        self._executions = executions

    async def __call__(self, handler: Handler, scope: Scope, receive: Receive, send: Send) -> None:
        key = key_of(scope["headers"])
        if key is None:
            await handler(scope, receive, send)
            return
        call: Call = scope["state"]["call"]
        name = call.match.route.operation.name
        body = await whole_body(receive)
        again = _from(body, receive)
        mutations = mutations_in(body) if name == _GRAPHQL else 0
        if name == _GRAPHQL and not mutations:
            await handler(scope, again, send)
            return
        fingerprint = fingerprint_of(name, call.match.params, scope.get("query_string", b""), body)
        if name in _EXECUTIONS:
            await self._execute(handler, key, fingerprint, body, scope, again, send)
            return
        found = await self._idempotency.begin(call.caller, key, fingerprint, name)
        if isinstance(found, StoredAnswer):
            call.headers.append(REPLAYED)
            await _send(found, send)
            return
        held = _Held(found, send, lambda answer, late: _fate(answer, late=late, mutations=mutations))
        try:
            await handler(scope, again, held.send)
        except DomainError as error:
            await found.refused(error)
            raise
        except BaseException:
            await asyncio.shield(found.interrupted())
            raise
        if not held.is_settled:
            await found.interrupted()

    async def _execute(
        self, handler: Handler, key: str, fingerprint: bytes, body: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        call: Call = scope["state"]["call"]
        session_id = SessionId(call.match.params.get("session_id") or new_session_id())
        name = call.match.route.operation.name
        found = await self._idempotency.begin_turn(call.caller, key, fingerprint, session_id, name)
        if isinstance(found, RepeatedTurn):
            call.headers.append(REPLAYED)
            await self._executions.again(found, _object(body), scope, receive, send)
            return
        call.session_id, call.turn_id = found.session_id, found.turn_id
        try:
            await handler(scope, receive, send)
        except BaseException as error:
            await asyncio.shield(found.did_not_run(error))
            raise


def _fate(answer: StoredAnswer, *, late: bool, mutations: int) -> Fate:
    fate = fate_of(answer.status, comes_back=late)
    if mutations and fate is Fate.KEEP:
        return fate_of_document(answer.body, mutations)
    return fate


class _Held:
    """An answer on its way out, that leaves once it is kept. One that is too large leaves as it comes, and is not."""

    def __init__(self, ticket: Ticket, send: Send, judge: Judge) -> None:
        self._ticket = ticket
        self._send = send
        self._judge = judge
        self._start: Any = None
        self._parts: list[bytes] = []
        self._bytes = 0
        self._is_passing = False
        self.is_settled = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        part = message.get("body", b"")
        self._bytes += len(part)
        is_last = not message.get("more_body", False)
        if not self._is_passing:
            self._parts.append(part)
            if self._bytes <= MAX_ANSWER_BYTES and not is_last:
                return
        if is_last:
            self.is_settled = True
            await self._settle()
        if self._is_passing:
            await self._send(message)
            return
        self._is_passing = True
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": b"".join(self._parts), "more_body": not is_last})

    async def _settle(self) -> None:
        """One that has left in parts is over the bound: what is kept of it is that it was."""
        headers = tuple((name, value) for name, value in self._start.get("headers", ()) if name in KEPT_HEADERS)
        comes_back = any(name == b"retry-after" for name, _ in self._start.get("headers", ()))
        answer = StoredAnswer(self._start["status"], headers, b"".join(self._parts))
        fate = Fate.KEEP if self._is_passing else self._judge(answer, comes_back)
        await self._ticket.answered(answer, fate)


def _from(body: bytes, receive: Receive) -> Receive:
    """`receive`, from the beginning of the request again."""
    left = [body]

    async def again() -> Any:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return again


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body that was read once already: its fingerprint is the first one's."""
    try:
        found = parsed(body)
    except Malformed:
        return {}
    return found if isinstance(found, dict) else {}


async def _send(answer: StoredAnswer, send: Send) -> None:
    headers = [*answer.headers]
    if answer.body or answer.status != 204:  # noqa: PLR2004 - RFC 9110, 8.6: no length with 204
        headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
