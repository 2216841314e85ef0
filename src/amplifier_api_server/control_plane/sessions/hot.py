"""The hot endpoints: execute, its events, its cancellation. Plain ASGI behind the edge; the services do the work.

A stream's bytes pass as the runtime made them; all that is read of them is the number of the last event, so that an error of
our own can go on counting. What ends a stream is its terminal event, or our own `error` when the runtime is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import structlog

from amplifier_api_server.control_plane.edge import Call, whole_body
from amplifier_api_server.control_plane.errors import encode
from amplifier_api_server.control_plane.idempotency.service import RepeatedTurn, in_flight
from amplifier_api_server.control_plane.request_json import parsed, validated
from amplifier_api_server.control_plane.router.pool import Answer
from amplifier_api_server.control_plane.routes import ClientLeft, Match, Receive, Scope, Send
from amplifier_api_server.control_plane.sessions.callbacks import Callbacks
from amplifier_api_server.control_plane.sessions.endings import Endings
from amplifier_api_server.control_plane.sessions.executions import Executions, OneShot, ended
from amplifier_api_server.control_plane.sessions.live import LiveTurn
from amplifier_api_server.control_plane.sessions.pipe import STREAM_HEADERS, Pipe, Reader
from amplifier_api_server.control_plane.sessions.replay import frames_after
from amplifier_api_server.control_plane.sessions.schemas import (
    Execute,
    ExecuteOnce,
    ExecutionStarted,
)
from amplifier_api_server.control_plane.sessions.service import Sessions
from amplifier_api_server.control_plane.sessions.settlement import ending_of_row
from amplifier_api_server.control_plane.sessions.streams import OpenStreams
from amplifier_api_server.runtime.protocol import TurnResult, TurnStatus
from amplifier_api_server.tenants.errors import (
    Forbidden,
    Invalid,
    NotFound,
    QuotaExceeded,
    RuntimeLost,
    TurnCancelled,
    TurnFailed,
    Unauthenticated,
    Unavailable,
)
from amplifier_api_server.tenants.ids import SessionId, TurnId, new_session_id

log = structlog.get_logger(__name__)

_AT_ONCE_SECONDS = 0.02


class HotEndpoints:
    """ASGI handlers, for the route table."""

    def __init__(
        self,
        *,
        executions: Executions,
        endings: Endings,
        sessions: Sessions,
        callbacks: Callbacks,
        streams: OpenStreams,
    ) -> None:
        self._executions = executions
        self._callbacks = callbacks
        self._endings = endings
        self._sessions = sessions
        self._streams = streams

    async def execute(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`POST /v1/sessions/{session_id}/execute`."""
        call: Call = scope["state"]["call"]
        body = validated(Execute, parsed(await whole_body(receive)))
        await self._execute(SessionId(call.match.params["session_id"]), body, call, receive, send)

    async def execute_once(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`POST /v1/executions`. Where the execution is, is said with its first byte: its session is known to nobody yet."""
        call: Call = scope["state"]["call"]
        body = validated(ExecuteOnce, parsed(await whole_body(receive)))
        session = OneShot(call.session_id or new_session_id(), body.profile, body.context)
        await self._execute(session, body, call, receive, send)

    async def _execute(
        self, session: SessionId | OneShot, body: Execute, call: Call, receive: Receive, send: Send
    ) -> None:
        callback = (
            self._callbacks.wanted(body.callback.url, body.callback.secret) if body.callback is not None else None
        )
        if body.background:
            begun = await self._executions.start(call.caller, session, body.prompt, call.turn_id, callback=callback)
            call.standings = begun.standings
            await self._started(send, begun.turn.session_id, begun.turn.id)
            return
        if body.stream:
            self._streams.require_room(call.caller)
        begun = await self._executions.begin(call.caller, session, call.turn_id, callback=callback)
        call.standings = begun.standings
        if isinstance(session, OneShot):
            call.headers.append(_location(begun.turn.session_id, begun.turn.id))
        if not body.stream:
            result = await _unless_gone(receive, self._executions.run(begun, body.prompt))
            await self._answer(send, begun.turn.session_id, result)
            return
        answer = await self._executions.open_stream(begun, body.prompt)
        await self._pipe(call, receive, send, begun.turn, answer)

    async def again(
        self, repeated: RepeatedTurn, body: dict[str, Any], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer as the execution was answered that was begun with the same Idempotency-Key, or will be.

        Its events from the start (or after Last-Event-ID) where they were asked for, whether it runs or not; that it was
        begun, to who did not wait; else its result. Raises Conflict (`idempotency_in_flight`) while there is none.
        """
        call: Call = scope["state"]["call"]
        session_id, turn_id = repeated.session_id, repeated.turn_id
        try:
            row = await self._sessions.execution(call.caller.tenant_id, session_id, turn_id)
        except NotFound as error:
            raise in_flight() from error  # the limits are asked first, then it is recorded
        if body.get("background") is True:
            await self._started(send, session_id, turn_id)
        elif body.get("stream") is True:
            if call.match.route.operation.name == "executeOnce":
                call.headers.append(_location(session_id, turn_id))
            call.match = Match(call.match.route, {"session_id": session_id, "request_id": turn_id})
            await self.events(scope, receive, send)
        elif row.status == TurnStatus.RUNNING:
            raise in_flight(turn_id)
        else:
            await self._answer(send, session_id, ending_of_row(row).result)

    async def _started(self, send: Send, session_id: SessionId, turn_id: TurnId) -> None:
        """It runs on by itself; where to ask for it is said too (RFC 9110, 15.3.3)."""
        body = ExecutionStarted(request_id=turn_id, session_id=session_id)
        await _json(send, 202, body.model_dump(), [_location(session_id, turn_id)])

    async def _answer(self, send: Send, session_id: SessionId, result: TurnResult | None) -> None:
        """The whole result as JSON, or the problem that it ended in. Raises ClientLeft for None."""
        if result is None:
            raise ClientLeft
        if result.status is not TurnStatus.COMPLETED:
            raise error_of(result, session_id)
        body = result.model_dump(mode="json", include={"request_id", "response", "finish_reason", "usage"})
        body["session_id"] = session_id
        body["tool_calls"] = [one.model_dump(mode="json", exclude_none=True) for one in result.tool_calls]
        await _json(send, 200, body)

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /v1/sessions/{session_id}/executions/{request_id}/events`.

        204 where it has ended and nothing comes after Last-Event-ID: an EventSource comes back after every other end of a
        stream (WHATWG HTML, 9.2). One that repeats its `POST` is none, and is answered with an empty stream.
        """
        call: Call = scope["state"]["call"]
        self._streams.require_room(call.caller)
        tenant_id, params = call.caller.tenant_id, call.match.params
        session_id, turn_id = SessionId(params["session_id"]), TurnId(params["request_id"])
        after = _last_event_id(scope, turn_id)
        turn = self._executions.live(tenant_id, session_id, turn_id)
        if turn is not None:
            answer = await self._while_it_reads(call, receive, self._executions.answer_of(turn, after))
            if answer is not None:
                await self._pipe(call, receive, send, turn, answer)
                return
            await ended(turn)
        recorded = await self._sessions.recorded_events(tenant_id, session_id, turn_id)
        frames = frames_after(recorded, turn_id, after)
        if frames or scope["method"] != "GET":
            await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        else:
            await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": frames})

    async def cancel(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`POST /v1/sessions/{session_id}/executions/{request_id}/cancel`."""
        call: Call = scope["state"]["call"]
        params = call.match.params
        status = await self._endings.cancel(
            call.caller.tenant_id, SessionId(params["session_id"]), TurnId(params["request_id"])
        )
        await _json(send, 200, {"request_id": params["request_id"], "status": status.value})

    async def execution(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /v1/sessions/{session_id}/executions/{request_id}`."""
        call: Call = scope["state"]["call"]
        params = call.match.params
        asked = call.caller.tenant_id, SessionId(params["session_id"]), TurnId(params["request_id"])
        row = await self._sessions.execution(*asked)
        callback = await self._callbacks.of_turn(*asked)
        await _json(send, 200, self._sessions.execution_view(row, callback).model_dump(mode="json"))

    async def _while_it_reads(
        self, call: Call, receive: Receive, waiting: Coroutine[Any, Any, Answer | None]
    ) -> Answer | None:
        """The stream that is waited for, as that of a session that wakes up is, for as long as its reader is there and may
        read. Raises ClientLeft, Unauthenticated.
        """
        work = asyncio.ensure_future(waiting)
        try:
            await asyncio.wait({work}, timeout=_AT_ONCE_SECONDS)  # what is there at once needs nobody to watch for it
            if not work.done():
                await self._watched(call, receive, work)
            return work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _watched(self, call: Call, receive: Receive, work: asyncio.Future[Any]) -> None:
        revoked = asyncio.get_running_loop().create_future()

        def end() -> None:
            if not revoked.done():
                revoked.set_result(None)

        leave = asyncio.create_task(_disconnected(receive))
        self._streams.add(call.caller, end)
        try:
            await asyncio.wait({work, leave, revoked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._streams.remove(call.caller, end)
            leave.cancel()
            await asyncio.gather(leave, return_exceptions=True)
        if not work.done():
            raise Unauthenticated("these credentials work no more") if revoked.done() else ClientLeft

    async def _pipe(self, call: Call, receive: Receive, send: Send, turn: LiveTurn, answer: Answer) -> None:
        """The runtime's bytes to the client, until the turn ends, the client leaves, or its key is revoked."""
        pipe = Pipe(self._endings, turn, answer, send, Reader(call.caller, receive, self._streams))
        await pipe.run()


def _location(session_id: SessionId, turn_id: TurnId) -> tuple[bytes, bytes]:
    return b"location", f"/v1/sessions/{session_id}/executions/{turn_id}".encode()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless_gone(receive: Receive, running: Any) -> TurnResult | None:
    """What `running` gives, or None when the caller leaves first; what runs, runs on."""
    work, leave = asyncio.ensure_future(running), asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({work, leave}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        leave.cancel()
        work.cancel()
        await asyncio.gather(work, leave, return_exceptions=True)


async def _json(send: Send, status: int, body: Any, more: Sequence[tuple[bytes, bytes]] = ()) -> None:
    raw = encode(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


def _last_event_id(scope: Scope, turn_id: TurnId) -> int:
    """The number in `Last-Event-ID` (WHATWG HTML, 9.2.4); 0 without one. Raises Invalid for another turn's or no number."""
    for name, value in scope["headers"]:
        if name == b"last-event-id" and value:
            owner, _, number = value.decode("latin-1").rpartition(":")
            if owner != turn_id or not number.isdecimal() or len(number) > 9:  # noqa: PLR2004 - more than any turn has
                raise Invalid(f"Last-Event-ID should be {turn_id}:N", code="invalid_event_id")
            return int(number)
    return 0


def error_of(result: TurnResult, session_id: SessionId) -> Exception:
    """The domain error that a turn ended in, with its ids."""
    found = result.problem or {}
    detail, code = str(found.get("detail", "the turn failed")), str(found.get("code", "turn_failed"))
    more: dict[str, Any] = {
        "request_id": result.request_id,
        "session_id": session_id,
        "usage": result.usage.model_dump(),
    }
    retry = found.get("retry_after_seconds")
    match found.get("status"):
        case 429:
            return QuotaExceeded(detail, code=code, retry_after_seconds=retry, **more)
        case 403:
            return Forbidden(detail, code=code, **more)
        case 409:
            return TurnCancelled(detail, code=code, **more)
        case 503:
            return Unavailable(detail, code=code, retry_after_seconds=retry, **more)
        case _ if code == RuntimeLost.code:
            return RuntimeLost(detail, code=code, **more)
        case _:
            return TurnFailed(detail, code=code, retry_after_seconds=retry, **more)
